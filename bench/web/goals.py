"""What gsplice's takeovers are to reach, as ratios in one run.

The goals of small bodies are those of `alternating`: by what is judged here, two processes of one
program would miss them as often as they reach them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bench.goals import Limit, goal_row, table_of_goals
from bench.measure import Measurement
from bench.report import Compare, times_less_cpu, times_the_rate
from bench.rounds import Rounds
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
    Goal("proxy-[0-9]*[mg]", "*-gsplice", "rate x", times_the_rate, 1.8, NGINX),
    Goal("static-[0-9]*[mg]", "pywsgi-gsplice", "rate x", times_the_rate, 1.3),
    Goal("static-[0-9]*[mg]", "pywsgi-gsplice", "rate x", times_the_rate, 0.95, NGINX),
)


def goals_table(done: Sequence[Rounds[Measurement]]) -> str:
    """Each goal that was measured, case by case."""
    rows = [row for rounds in done for goal in GOALS for row in _rows(goal, rounds)]
    return table_of_goals(rows)


def _rows(goal: Goal, rounds: Rounds[Measurement]) -> list[list[str]]:
    if not fnmatchcase(rounds.regime.name, goal.cases):
        return []
    names = [name for name in rounds.results if fnmatchcase(name, goal.servers)]
    return [row for name in names if (row := _row(goal, rounds, name))]


def _row(goal: Goal, rounds: Rounds[Measurement], name: str) -> list[str]:
    to = goal.to or AS_IT_IS[name]
    ratios = rounds.ratios(name, to, goal.compare)
    if not ratios:
        return []
    return goal_row(rounds.regime.name, name, goal.what, to, Limit(goal.least), ratios)
