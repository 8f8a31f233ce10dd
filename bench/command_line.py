"""What the commands of the bench have in common."""

import argparse
import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from bench.compiler import compiler
from bench.contenders import Contender, all_contenders
from bench.regimes import Regime
from bench.report import BASELINE

Named = TypeVar("Named", Contender, Regime)


def add_contender_option(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--contender", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )


def chosen(named: Sequence[Named], patterns: Sequence[str] | None) -> list[Named]:
    """Those that a pattern matches, or all; a pattern that matches none ends the program."""
    if patterns is None:
        return list(named)
    for pattern in patterns:
        if not any(fnmatchcase(one.name, pattern) for one in named):
            sys.exit(f"nothing is called {pattern!r}; python -m bench --list shows the names")
    return [one for one in named if any(fnmatchcase(one.name, pattern) for pattern in patterns)]


def chosen_contenders(patterns: Sequence[str] | None) -> list[Contender]:
    """Those asked for that are on this machine; the one that all are compared with first."""
    contenders = all_contenders()
    if patterns is None:
        contenders = [contender for contender in contenders if contender.by_default]
    picked = sorted(chosen(contenders, patterns), key=lambda one: one.name != BASELINE)
    for contender in picked:
        if reason := contender.missing():
            print(f"left out: {contender.name} ({reason})")
    present = [contender for contender in picked if not contender.missing()]
    if not present:
        sys.exit("no contender is left")
    return present


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
