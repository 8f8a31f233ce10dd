"""Rounds: the contenders take turns, and what each did is kept by the number of its round.

Invariant: whoever failed takes no further turn, and keeps nobody else from his; what has been
measured until an interrupt is there, and printed.
"""

import argparse
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from bench.processes import ProcessFailed
from bench.regimes import Regime


class Named(Protocol):
    """Anything with a name: a regime, say."""

    @property
    def name(self) -> str: ...


class Participant(Named, Protocol):
    """A contender, or whatever else takes its turn in a round."""

    @property
    def description(self) -> str: ...

    @property
    def missing(self) -> Callable[[], str]: ...

    @property
    def by_default(self) -> bool: ...


Taking = TypeVar("Taking", bound=Participant)
Case = TypeVar("Case", bound=Regime)
Result = TypeVar("Result")
Turn = TypeVar("Turn")


@dataclass
class Rounds(Generic[Result]):
    """What the contenders did in the rounds of one regime; a round that failed has no entry."""

    regime: Regime
    results: dict[str, dict[int, Result]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)  # and why

    def add(self, contender: str, number: int, result: Result) -> None:
        self.results.setdefault(contender, {})[number] = result

    def values(self, contender: str, figure: Callable[[Result], float]) -> list[float]:
        return [figure(result) for result in self.results.get(contender, {}).values()]

    def median(self, contender: str, figure: Callable[[Result], float]) -> float:
        return statistics.median(self.values(contender, figure))

    def spread(self, contender: str, figure: Callable[[Result], float]) -> float:
        """Half of the way from the lowest to the highest round."""
        values = self.values(contender, figure)
        return (max(values) - min(values)) / 2

    def ratio(
        self, contender: str, to: str, compare: Callable[[Result, Result], float]
    ) -> float | None:
        """The median of the ratios of each round: what slows a whole round down is in both."""
        ratios = self.ratios(contender, to, compare)
        return statistics.median(ratios) if ratios else None

    def ratios(
        self, contender: str, to: str, compare: Callable[[Result, Result], float]
    ) -> list[float]:
        mine, theirs = self.results.get(contender, {}), self.results.get(to, {})
        common = mine.keys() & theirs.keys()
        return [compare(mine[number], theirs[number]) for number in common]


def run_rounds(
    done: list[Rounds[Result]],
    plan: Sequence[tuple[Case, Sequence[Taking]]],
    options: argparse.Namespace,
    measure: Callable[[Taking, Case, float, float], Result],
    table: Callable[[Rounds[Result]], str],
    why_not: Callable[[Taking, Case], str] = lambda contender, case: "",
) -> int:
    """Add to ``done`` what is measured, as it is: an interrupt does not lose the rest.

    The result is the exit status that says how it went.
    """
    try:
        for case, contenders in plan:
            reasons = {one.name: why_not(one, case) for one in contenders}
            takers = [one for one in contenders if not reasons[one.name]]
            done.append(Rounds(case, left_out={name: why for name, why in reasons.items() if why}))
            try:
                _take_turns(done[-1], case, takers, options, measure)
            finally:
                print(table(done[-1]), end="\n\n", flush=True)
    except KeyboardInterrupt:
        progress("")
        has_results = any(rounds.results for rounds in done)
        what = "what was measured until now:" if has_results else "nothing was measured"
        print(f"interrupted; {what}", file=sys.stderr)
        return 128 + signal.SIGINT
    failed = any(rounds.failures for rounds in done)
    return 0 if any(rounds.results for rounds in done) and not failed else 1


def _take_turns(
    rounds: Rounds[Result],
    case: Case,
    contenders: Sequence[Taking],
    options: argparse.Namespace,
    measure: Callable[[Taking, Case, float, float], Result],
) -> None:
    for number, contender in turns(contenders, options.rounds):
        if contender.name in rounds.failures:
            continue
        progress(f"{case.name}: round {number + 1} of {options.rounds}, {contender.name}")
        try:
            result = measure(contender, case, options.warmup, options.seconds)
        except ProcessFailed as failure:
            rounds.failures[contender.name] = str(failure)
        else:
            rounds.add(contender.name, number, result)
    progress("")


def turns(takers: Sequence[Turn], rounds: int) -> Iterator[tuple[int, Turn]]:
    """Round by round, each of them; the number of the round is beside it."""
    for number in range(rounds):
        for taker in rotated(takers, number):
            yield number, taker


def rotated(takers: Sequence[Turn], by: int) -> list[Turn]:
    """Another one goes first in each round, so that none is always measured after the same one."""
    by %= max(1, len(takers))
    return [*takers[by:], *takers[:by]]


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
