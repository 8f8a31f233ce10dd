"""What gsplice's takeovers are to reach, as ratios in one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bench.report import Compare, Rounds, as_ratio, table, times_less_cpu, times_the_rate
from bench.web.report import AS_IT_IS, NGINX


@dataclass(frozen=True)
class Goal:
    """For the servers and the cases that the patterns match."""

    cases: str
    servers: str
    what: str
    compare: Compare
    least: float
    to: str = ""  # else to the same server without gsplice


GOALS = (
    Goal("proxy-[0-9]*[mg]", "*-gsplice", "rate x", times_the_rate, 1.45),
    Goal("proxy-[0-9]*[mg]", "*-gsplice", "cpu x", times_less_cpu, 2.0),
    Goal("proxy-[0-9]*[mg]", "*-gsplice", "rate x nginx", times_the_rate, 1.8, NGINX),
    Goal("static-[0-9]*[mg]", "pywsgi-gsplice", "rate x", times_the_rate, 1.3),
    Goal("static-[0-9]*[mg]", "pywsgi-gsplice", "rate x nginx", times_the_rate, 0.95, NGINX),
    Goal("*-[0-9]*k", "*-gsplice", "rate x", times_the_rate, 1.0),
    Goal("*-[0-9]*k", "*-gsplice", "cpu x", times_less_cpu, 1.0),
)


def goals_table(done: Sequence[Rounds]) -> str:
    """Each goal that was measured; "within the noise" is one that some rounds met."""
    rows = [row for rounds in done for goal in GOALS for row in _rows(goal, rounds)]
    return table(["", "", "goal", "", "median", "rounds", ""], rows) if rows else ""


def _rows(goal: Goal, rounds: Rounds) -> list[list[str]]:
    if not fnmatchcase(rounds.regime.name, goal.cases):
        return []
    names = [name for name in rounds.results if fnmatchcase(name, goal.servers)]
    return [row for name in names if (row := _row(goal, rounds, name))]


def _row(goal: Goal, rounds: Rounds, name: str) -> list[str]:
    to = goal.to or AS_IT_IS[name]
    ratios = sorted(rounds.ratios(name, to, goal.compare))
    if not ratios:
        return []
    median = rounds.ratio(name, to, goal.compare)
    return [
        rounds.regime.name,
        name,
        goal.what,
        f">= {goal.least:.2f}",
        as_ratio(median),
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        _verdict(median or 0, ratios[-1], goal.least),
    ]


def _verdict(median: float, highest: float, least: float) -> str:
    if median >= least:
        return "met"
    return "within the noise" if highest >= least else "missed"
