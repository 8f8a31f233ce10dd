"""What the commands of the bench have in common."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from bench.compiler import compiled, compiler
from bench.contenders import Contender, all_contenders
from bench.measure import Measurement
from bench.processes import ProcessFailed
from bench.regimes import Regime, RelayRegime
from bench.report import BASELINE, Rounds


class Named(Protocol):
    """Anything with a name: a regime, say."""

    @property
    def name(self) -> str: ...


class Participant(Named, Protocol):
    """A contender, or whatever else takes its turn in a round."""

    @property
    def missing(self) -> Callable[[], str]: ...

    @property
    def by_default(self) -> bool: ...


Choice = TypeVar("Choice", bound=Named)
Taking = TypeVar("Taking", bound=Participant)
Case = TypeVar("Case", bound=Regime)


def add_contender_option(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--contender", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )


def add_rounds_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--rounds", type=int, default=5, help="for each of them (default: 5)")
    options.add_argument(
        "--seconds", type=float, default=1.0, help="for each measurement (default: 1.0)"
    )
    options.add_argument(
        "--warmup", type=float, default=0.3, help="seconds before each, not counted (default: 0.3)"
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="one short round: does it all run? Its figures are worth nothing",
    )
    add_contender_option(options)
    options.add_argument("--json", metavar="FILE", help="write every measurement to FILE")
    options.add_argument("--list", action="store_true", help="list what there is to choose from")


def check_rounds_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.rounds < 1 or options.seconds <= 0 or options.warmup < 0:
        parser.error("--rounds and --seconds are more than 0, --warmup is not less")
    if options.quick:
        options.rounds, options.seconds, options.warmup = 1, 0.3, 0.1


def chosen(named: Sequence[Choice], patterns: Sequence[str] | None) -> list[Choice]:
    """Those that a pattern matches, or all; a pattern that matches none ends the program."""
    if patterns is None:
        return list(named)
    for pattern in patterns:
        if not any(fnmatchcase(one.name, pattern) for one in named):
            sys.exit(f"nothing is called {pattern!r}; python -m bench --list shows the names")
    return [one for one in named if any(fnmatchcase(one.name, pattern) for pattern in patterns)]


def chosen_contenders(patterns: Sequence[str] | None) -> list[Contender]:
    """Those asked for that are on this machine; the one that all are compared with first."""
    return in_order(present(all_contenders(), patterns))


def in_order(contenders: Sequence[Contender]) -> list[Contender]:
    """What has to be compiled is; the one that all are compared with goes first."""
    return sorted(filter(_compiles, contenders), key=lambda one: one.name != BASELINE)


def _compiles(contender: Contender) -> bool:
    if contender.source is None:
        return True
    try:
        compiled(contender.source)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"left out: {contender.name} ({error})")
        return False
    return True


def chosen_regimes(
    regimes: Sequence[RelayRegime], patterns: Sequence[str] | None
) -> list[RelayRegime]:
    """Those asked for whose place can be had on this machine."""
    found = []
    for regime in chosen(regimes, patterns):
        if reason := regime.place.missing():
            print(f"left out: {regime.name} ({reason})")
        else:
            found.append(regime)
    return found


def plan(
    regimes: Sequence[RelayRegime], patterns: Sequence[str] | None
) -> list[tuple[RelayRegime, list[Contender]]]:
    """Which contenders are to take part in which regimes, and can be had here."""
    contenders = chosen_contenders(patterns)
    also = {name for regime in regimes for name in regime.also} if patterns is None else set()
    extra = [one for one in all_contenders() if one.name in also and not one.missing()]
    return [
        (regime, [*contenders, *(one for one in in_order(extra) if one.name in regime.also)])
        for regime in regimes
    ]


def present(named: Sequence[Taking], patterns: Sequence[str] | None) -> list[Taking]:
    """Those asked for that are on this machine; of the others it is said why they are not."""
    if patterns is None:
        named = [one for one in named if one.by_default]
    found = []
    for one in chosen(named, patterns):
        if reason := one.missing():
            print(f"left out: {one.name} ({reason})")
        else:
            found.append(one)
    if not found:
        sys.exit("no contender is left")
    return found


def run_rounds(
    done: list[Rounds],
    plan: Sequence[tuple[Case, Sequence[Taking]]],
    options: argparse.Namespace,
    measure: Callable[[Taking, Case, float, float], Measurement],
    table: Callable[[Rounds], str],
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
        print("interrupted; what was measured until now:", file=sys.stderr)
        return 130
    return 1 if any(rounds.failures for rounds in done) else 0


def _take_turns(
    rounds: Rounds,
    case: Case,
    contenders: Sequence[Taking],
    options: argparse.Namespace,
    measure: Callable[[Taking, Case, float, float], Measurement],
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


def turns(contenders: Sequence[Taking], rounds: int) -> Iterator[tuple[int, Taking]]:
    """Round by round, each of them; the number of the round is beside it."""
    for number in range(rounds):
        for contender in rotated(contenders, number):
            yield number, contender


def rotated(contenders: Sequence[Taking], by: int) -> list[Taking]:
    """Another one goes first in each round, so that none is always measured after the same one."""
    by %= max(1, len(contenders))
    return [*contenders[by:], *contenders[:by]]


def print_facts(facts: dict[str, str]) -> None:
    print(", ".join(f"{name}: {fact}" for name, fact in facts.items()))
    if not compiler():
        print("no C compiler: client and backend are Python, and may be what limits the rates")
    print(flush=True)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def stop_on_sigterm() -> None:
    """Like Ctrl-C: the processes that were started are ended on the way out."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
