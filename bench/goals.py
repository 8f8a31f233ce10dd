"""What gsplice is to reach in the relays' regimes, and whether it did, and by how much.

Invariant: a goal is judged by the median of the rounds, never by the best one; what is compared was
measured in the same round. The best of several others is the one beside which gsplice looks worst.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.measure import Measurement
from bench.regimes import EXCHANGES, KIB, MIB, NO_DELAY, ONE_WAY, PING_PONG, RelayRegime
from bench.report import CEILING, Compare, table, times_less_cpu, times_the_rate
from bench.rounds import Rounds

OURS = ("gsplice",)
OURS_AS_SERVERS = ("gsplice", "gsplice-server")
HAPROXY = ("haproxy", "haproxy-splice")
PEERS = ("gevent", *HAPROXY, "go", "nginx", "uvloop", "uvloop-protocol")
NOISE = 0.1  # of a goal: as much as measurements on one machine differ from each other
LEAST_ROUNDS = 5

REACHED, WITHIN_NOISE, MISSED = VERDICTS = ("reached", "within the noise", "missed")
TOO_FEW_ROUNDS = "too few rounds"
HEADINGS = ("", "", "what", "beside", "goal", "median", "rounds", "margin", "")


@dataclass(frozen=True)
class Limit:
    """At least so much, or at the most; ``digits`` of it and of what is held against it matter."""

    figure: float
    at_most: bool = False
    digits: int = 2
    unit: str = ""

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"

    def margin(self, value: float) -> float:
        """How much better than the limit, as a share of it; less than nothing if it is worse."""
        share = value / self.figure
        return 1 - share if self.at_most else share - 1

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.show(self.figure)}"


def goal_row(
    where: str,
    who: str,
    what: str,
    beside: str,
    limit: Limit,
    values: Sequence[float],
    noise: float = NOISE,
) -> list[str]:
    """A line of a table of goals; ``values`` are those of the rounds."""
    median = statistics.median(values)
    margin = limit.margin(median)
    verdict = WITHIN_NOISE if margin >= -noise else MISSED
    if margin >= 0:
        verdict = REACHED if len(values) >= LEAST_ROUNDS else TOO_FEW_ROUNDS
    rounds = f"{limit.show(min(values))} to {limit.show(max(values))}"
    figures = [str(limit), limit.show(median), rounds, f"{margin * 100:+.0f} %"]
    return [where, who, what, beside, *figures, verdict]


def table_of_goals(rows: Sequence[Sequence[str]]) -> str:
    """Nothing where no goal was measured."""
    if not rows:
        return ""
    counts = Counter(verdict for *_, verdict in rows)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    text = f"goals, by the median of the rounds:\n{table(HEADINGS, rows, last='left')}"
    text += f"\n  {summary}"
    if few := counts[TOO_FEW_ROUNDS]:
        text += f", {few} with {TOO_FEW_ROUNDS} ({LEAST_ROUNDS} are the least)"
    return text


@dataclass(frozen=True)
class Goal:
    """In the regimes for which ``applies`` is true, ``who`` beside the best of ``to``."""

    applies: Callable[[RelayRegime], bool]
    what: str
    compare: Compare  # more is better
    least: float
    to: Sequence[str]
    who: Sequence[str] = OURS


def times_less_p99(mine: Measurement, theirs: Measurement) -> float:
    return theirs.p99 / mine.p99


def compared_as_a_whole(regime: RelayRegime) -> bool:
    """All but short connections, whose goal takes into account that Python accepts them."""
    return regime.shape is not EXCHANGES


def one_way(least: int, most: int) -> Callable[[RelayRegime], bool]:
    """Streams of writes of so many bytes, wherever they go."""
    return lambda regime: regime.shape in (ONE_WAY, NO_DELAY) and least <= regime.size <= most


def ping_pong(regime: RelayRegime) -> bool:
    return regime.shape is PING_PONG


def short_connections(regime: RelayRegime) -> bool:
    return regime.shape is EXCHANGES


MODERATION_OFF = "gsplice-unmoderated"
# fmt: off
GOALS = (
    Goal(compared_as_a_whole,       "rate x", times_the_rate, 1.0,     PEERS),
    Goal(compared_as_a_whole,       "cpu x",  times_less_cpu, 1.0,     PEERS),
    Goal(one_way(64 * KIB, MIB),    "rate x", times_the_rate, 0.95,    [CEILING]),
    Goal(one_way(64 * KIB, MIB),    "cpu x",  times_less_cpu, 1 / 1.1, [CEILING]),
    Goal(one_way(KIB, KIB),         "cpu x",  times_less_cpu, 4.0,     PEERS),
    Goal(one_way(4 * KIB, 4 * KIB), "cpu x",  times_less_cpu, 2.0,     PEERS),
    Goal(ping_pong,                 "p99 x",  times_less_p99, 1.0,     HAPROXY),
    Goal(ping_pong,                 "p99 x",  times_less_p99, 1.0,     [MODERATION_OFF]),
    Goal(short_connections,         "cpu x",  times_less_cpu, 0.7,     HAPROXY, OURS_AS_SERVERS),
)
# fmt: on

# Of an idle relay (memory.py), and of a ticker beside saturated ones (ticker.py).
RSS_EACH = Limit(9, at_most=True, digits=1, unit=" KB")
FDS_EACH = Limit(2, at_most=True)
TICKS = Limit(95, digits=1, unit=" %")
LONGEST_GAP = Limit(10, at_most=True, digits=1, unit=" ms")


def goals_table(done: Sequence[Rounds[Measurement]]) -> str:
    """Each goal that was measured, regime by regime."""
    rows = [
        row
        for rounds in done
        for goal in GOALS
        if isinstance(rounds.regime, RelayRegime) and goal.applies(rounds.regime)
        for name in goal.who
        if (row := _row(goal, rounds, name))
    ]
    return table_of_goals(rows)


def _row(goal: Goal, rounds: Rounds[Measurement], name: str) -> list[str]:
    others = {to: ratios for to in goal.to if (ratios := rounds.ratios(name, to, goal.compare))}
    if not others:
        return []
    best = min(others, key=lambda to: statistics.median(others[to]))
    limit = Limit(goal.least)
    return goal_row(rounds.regime.name, name, goal.what, best, limit, others[best])
