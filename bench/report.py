"""From measurements to figures: medians, spread, and ratios within one run."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tabulate import tabulate

from bench.measure import Measurement
from bench.regimes import RelayRegime, Shape
from bench.rounds import Rounds

BASELINE = "gevent"
CEILING = "ceiling"
NOT_MEASURED = "-"
# A machine that is busier than this with something else is not one to quote figures from.
NOTABLE_OTHER_LOAD = 0.1


class Disturbed(Protocol):
    """A measurement that tells what else the machine did."""

    @property
    def other_load(self) -> float: ...


Result = TypeVar("Result")
Load = TypeVar("Load", bound=Disturbed)
Figure = Callable[[Measurement], float]
Compare = Callable[[Measurement, Measurement], float]
Comparison = Callable[[Rounds[Measurement], str], float | None]


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
class Column(Generic[Result]):
    """Of a table that has a line for each contender."""

    heading: str
    cell: Callable[[Rounds[Result], str], str]


def figure_column(
    heading: str, figure: Callable[[Result], float], scale: float = 1, digits: int = 0
) -> Column[Result]:
    """The median of the rounds."""
    return Column(
        heading, lambda rounds, name: f"{rounds.median(name, figure) * scale:,.{digits}f}"
    )


def spread_column(figure: Callable[[Result], float]) -> Column[Result]:
    """As a share of the median."""

    def cell(rounds: Rounds[Result], name: str) -> str:
        return f"{rounds.spread(name, figure) / rounds.median(name, figure) * 100:.0f} %"

    return Column("±", cell)


def ratio_column(heading: str, to: str, compare: Compare) -> Column[Measurement]:
    return comparison_column(heading, lambda rounds, name: rounds.ratio(name, to, compare))


def comparison_column(heading: str, compare: Comparison) -> Column[Measurement]:
    return Column(heading, lambda rounds, name: as_ratio(compare(rounds, name)))


def as_ratio(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


# Of one CPU each: it shows which of the three had none left.
SHARES: tuple[Figure, ...] = (
    lambda m: m.relay_cpu / m.seconds,
    lambda m: m.client_cpu / m.seconds,
    lambda m: m.backend_cpu / m.seconds,
)


def busy(rounds: Rounds[Measurement], name: str) -> str:
    return " / ".join(f"{rounds.median(name, share) * 100:3.0f}" for share in SHARES)


RATIOS = (
    ratio_column("rate x", BASELINE, times_the_rate),
    ratio_column("cpu x", BASELINE, times_less_cpu),
    ratio_column("of ceiling", CEILING, times_the_rate),
)
BUSY = Column("busy %: relay / client / backend", busy)
LATENCIES: tuple[Column[Measurement], ...] = (
    figure_column("p50 µs", lambda m: m.p50, 1e6),
    figure_column("p99 µs", lambda m: m.p99, 1e6),
    figure_column("p99.9 µs", lambda m: m.p999, 1e6),
)


HELD: tuple[Column[Measurement], ...] = (
    figure_column("RSS MiB", lambda m: m.rss, 1 / 2**20, 1),
    figure_column("fds", lambda m: m.fds),
)


def columns(rounds: Rounds[Measurement]) -> tuple[Column[Measurement], ...]:
    assert isinstance(rounds.regime, RelayRegime)
    unit = rounds.regime.unit
    return (
        figure_column(unit.rate, rate, unit.rate_scale),
        spread_column(rate),
        figure_column(unit.cost, cost, unit.cost_scale, unit.cost_digits),
        spread_column(cost),
        *(() if rounds.regime.shape.backend_observes else LATENCIES),
        *RATIOS,
        *HELD,
        BUSY,
    )


def regime_table(rounds: Rounds[Measurement]) -> str:
    """One regime: a line for each contender, in the order in which they were first measured."""
    return rounds_table(rounds, columns(rounds), notes_of_load(rounds))


def rounds_table(
    rounds: Rounds[Result],
    columns: Sequence[Column[Result]],
    notes: Sequence[str] = (),
    title: str = "",
    last: str = "right",
) -> str:
    """A line for each contender, and below why others have none."""
    rows = [[name, *(column.cell(rounds, name) for column in columns)] for name in rounds.results]
    lines = [f"{title or rounds.regime.name}:"]
    if rows:
        lines.append(table(["", *(column.heading for column in columns)], rows, last))
    lines += [f"  {name} is left out: {reason}" for name, reason in rounds.left_out.items()]
    lines += [f"  {name} failed: {reason}" for name, reason in rounds.failures.items()]
    lines += [f"  note: {note}" for note in notes]
    return "\n".join(lines)


def ratio_table(regimes: Sequence[Rounds[Measurement]]) -> str:
    """All regimes: rate x / cpu x of each contender, to the gevent loop."""
    names = list(dict.fromkeys(name for rounds in regimes for name in rounds.results))
    if not names:
        return "nothing was measured"
    rows = [[rounds.regime.name, *(_both(rounds, name) for name in names)] for rounds in regimes]
    return table(["rate x / cpu x", *names], rows)


def _both(rounds: Rounds[Measurement], name: str) -> str:
    compares = (times_the_rate, times_less_cpu)
    return " / ".join(as_ratio(rounds.ratio(name, BASELINE, compare)) for compare in compares)


def notes_of_load(rounds: Rounds[Load]) -> list[str]:
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
    done: Sequence[Rounds[Measurement]], comparisons: Mapping[str, Comparison]
) -> dict[str, dict[str, Any]]:
    """Every measurement of every round, with the medians beside them."""
    return {rounds.regime.name: _regime_as_json(rounds, comparisons) for rounds in done}


def _regime_as_json(
    rounds: Rounds[Measurement], comparisons: Mapping[str, Comparison]
) -> dict[str, Any]:
    regime = rounds.regime
    return {
        **(_shape_as_json(regime.shape) if isinstance(regime, RelayRegime) else {}),
        "size": regime.size,
        "connections": regime.connections,
        "failures": rounds.failures,
        "left out": rounds.left_out,
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


def _shape_as_json(shape: Shape) -> dict[str, object]:
    return {"kind": shape.kind, "unit": vars(shape.unit)}


def every_round(rounds: Rounds[Any]) -> dict[str, list[dict[str, object]]]:
    """The same where there is no more to say than what each round has."""
    return {
        name: [vars(result) for result in results.values()]
        for name, results in rounds.results.items()
    }
