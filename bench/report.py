"""From measurements to figures: medians, spread, and ratios within one run."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from bench.measure import Measurement
from bench.regimes import Regime, RelayRegime

BASELINE = "gevent"
CEILING = "ceiling"
NOT_MEASURED = "-"
# A machine that is busier than this with something else is not one to quote figures from.
NOTABLE_OTHER_LOAD = 0.1

Figure = Callable[[Measurement], float]
Compare = Callable[[Measurement, Measurement], float]
Comparison = Callable[["Rounds", str], float | None]


@dataclass
class Rounds:
    """What the contenders did in the rounds of one regime; a round that failed has no entry."""

    regime: Regime
    results: dict[str, dict[int, Measurement]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)  # and why

    def add(self, contender: str, number: int, measurement: Measurement) -> None:
        self.results.setdefault(contender, {})[number] = measurement

    def median(self, contender: str, figure: Figure) -> float:
        return statistics.median(map(figure, self.results[contender].values()))

    def spread(self, contender: str, figure: Figure) -> float:
        """Half of the way from the lowest to the highest round, as a share of the median."""
        values = [figure(measurement) for measurement in self.results[contender].values()]
        return (max(values) - min(values)) / 2 / statistics.median(values)

    def ratio(self, contender: str, to: str, compare: Compare) -> float | None:
        """The median of the ratios of each round: what slows a whole round down is in both."""
        ratios = self.ratios(contender, to, compare)
        return statistics.median(ratios) if ratios else None

    def ratios(self, contender: str, to: str, compare: Compare) -> list[float]:
        mine, theirs = self.results.get(contender, {}), self.results.get(to, {})
        common = mine.keys() & theirs.keys()
        return [compare(mine[number], theirs[number]) for number in common]


def rate(measurement: Measurement) -> float:
    return measurement.rate


def cost(measurement: Measurement) -> float:
    return measurement.cost


def times_the_rate(mine: Measurement, theirs: Measurement) -> float:
    return mine.rate / theirs.rate


def times_less_cpu(mine: Measurement, theirs: Measurement) -> float:
    return theirs.cost / mine.cost


COMPARISONS: Mapping[str, Comparison] = {
    "times the rate": lambda rounds, name: rounds.ratio(name, BASELINE, times_the_rate),
    "times less cpu": lambda rounds, name: rounds.ratio(name, BASELINE, times_less_cpu),
}


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[Rounds, str], str]


def figure_column(heading: str, figure: Figure, scale: float, digits: int = 0) -> Column:
    return Column(
        heading, lambda rounds, name: f"{rounds.median(name, figure) * scale:,.{digits}f}"
    )


def spread_column(figure: Figure) -> Column:
    return Column("±", lambda rounds, name: f"{rounds.spread(name, figure) * 100:.0f} %")


def ratio_column(heading: str, to: str, compare: Compare) -> Column:
    return comparison_column(heading, lambda rounds, name: rounds.ratio(name, to, compare))


def comparison_column(heading: str, compare: Comparison) -> Column:
    return Column(heading, lambda rounds, name: as_ratio(compare(rounds, name)))


def as_ratio(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


# Of one CPU each: it shows which of the three had none left.
SHARES: tuple[Figure, ...] = (
    lambda m: m.relay_cpu / m.seconds,
    lambda m: m.client_cpu / m.seconds,
    lambda m: m.backend_cpu / m.seconds,
)


def busy(rounds: Rounds, name: str) -> str:
    return " / ".join(f"{rounds.median(name, share) * 100:3.0f}" for share in SHARES)


RATIOS = (
    ratio_column("rate x", BASELINE, times_the_rate),
    ratio_column("cpu x", BASELINE, times_less_cpu),
    ratio_column("of ceiling", CEILING, times_the_rate),
)
BUSY = Column("busy %: relay / client / backend", busy)
LATENCIES = (
    figure_column("p50 µs", lambda m: m.p50, 1e6),
    figure_column("p99 µs", lambda m: m.p99, 1e6),
    figure_column("p99.9 µs", lambda m: m.p999, 1e6),
)


def columns(rounds: Rounds) -> tuple[Column, ...]:
    assert isinstance(rounds.regime, RelayRegime)
    unit = rounds.regime.unit
    return (
        figure_column(unit.rate, rate, unit.rate_scale),
        spread_column(rate),
        figure_column(unit.cost, cost, unit.cost_scale, unit.cost_digits),
        spread_column(cost),
        *(() if rounds.regime.backend_observes else LATENCIES),
        *RATIOS,
        BUSY,
    )


def regime_table(rounds: Rounds) -> str:
    """One regime: a line for each contender, in the order in which they were first measured."""
    return rounds_table(rounds, columns(rounds))


def rounds_table(rounds: Rounds, columns: Sequence[Column], notes: Sequence[str] = ()) -> str:
    rows = [[name, *(column.cell(rounds, name) for column in columns)] for name in rounds.results]
    lines = [f"{rounds.regime.name}:"]
    if rows:
        lines.append(table(["", *(column.heading for column in columns)], rows))
    lines += [f"  {name} is left out: {reason}" for name, reason in rounds.left_out.items()]
    lines += [f"  {name} failed: {reason}" for name, reason in rounds.failures.items()]
    lines += [f"  note: {note}" for note in (*notes, *_notes_of_load(rounds))]
    return "\n".join(lines)


def ratio_table(regimes: Sequence[Rounds]) -> str:
    """All regimes: rate x / cpu x of each contender, to the gevent loop."""
    names = list(dict.fromkeys(name for rounds in regimes for name in rounds.results))
    rows = [[rounds.regime.name, *(_both(rounds, name) for name in names)] for rounds in regimes]
    return table(["rate x / cpu x", *names], rows)


def _both(rounds: Rounds, name: str) -> str:
    compares = (times_the_rate, times_less_cpu)
    return " / ".join(as_ratio(rounds.ratio(name, BASELINE, compare)) for compare in compares)


def _notes_of_load(rounds: Rounds) -> list[str]:
    loads = [m.other_load for results in rounds.results.values() for m in results.values()]
    if not loads or statistics.median(loads) < NOTABLE_OTHER_LOAD:
        return []
    return [f"something else kept {statistics.median(loads):.2f} CPUs busy meanwhile"]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], last: str = "right") -> str:
    alignment = ("left", *["right"] * (len(headings) - 2), last)
    return str(
        tabulate(rows, headings, tablefmt="simple", colalign=alignment, disable_numparse=True)
    )


def as_json(
    facts: Mapping[str, str], done: Sequence[Rounds], comparisons: Mapping[str, Comparison]
) -> dict[str, object]:
    """Every measurement of every round, with the medians beside them."""
    return {
        "machine": dict(facts),
        "regimes": {rounds.regime.name: _regime_as_json(rounds, comparisons) for rounds in done},
    }


def _regime_as_json(rounds: Rounds, comparisons: Mapping[str, Comparison]) -> dict[str, object]:
    unit = rounds.regime.unit if isinstance(rounds.regime, RelayRegime) else None
    return {
        "kind": type(rounds.regime).__name__,
        "unit": vars(unit) if unit else None,
        "size": rounds.regime.size,
        "connections": rounds.regime.connections,
        "failures": rounds.failures,
        "contenders": {
            name: {
                "rate": rounds.median(name, rate),
                "cost": rounds.median(name, cost),
                "p50": rounds.median(name, lambda m: m.p50),
                "p99": rounds.median(name, lambda m: m.p99),
                "p99.9": rounds.median(name, lambda m: m.p999),
                **{what: compare(rounds, name) for what, compare in comparisons.items()},
                "rounds": {number: vars(result) for number, result in results.items()},
            }
            for name, results in rounds.results.items()
        },
    }
