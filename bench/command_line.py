"""What the commands of the bench have in common: their options, how they begin, what they write."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn, TypeVar

from bench import machine
from bench.compiler import CannotCompile, compiled, compiler
from bench.contenders import Contender, all_contenders
from bench.regimes import RelayRegime
from bench.report import BASELINE
from bench.rounds import Named, Participant
from bench.values import count, file_to_write, seconds, seconds_or_none

USAGE_ERROR = 2  # as argparse has it
LIST_WIDTH = 26
# What runs each of them; the first is the one that is meant where none is named.
COMMANDS = {
    "relay": "bench.relay:main",
    "scale": "bench.relay:scale",
    "memory": "bench.memory:main",
    "ticker": "bench.ticker:main",
    "syscalls": "bench.syscalls:main",
    "web": "bench.web.command:main",
    "web-alternating": "bench.web.alternating:main",
    "pictures": "bench.pictures:main",
}
EPILOG = f"Commands: {', '.join(COMMANDS)} (default: relay). bench/README.rst explains them."

Choice = TypeVar("Choice", bound=Named)
Taking = TypeVar("Taking", bound=Participant)


def run_program(main: Callable[[list[str]], int]) -> NoReturn:
    """Run *main* with the words of the command line, and exit with its status.

    Where nobody reads on (``| head``), and where it is interrupted, it is a quiet end, with the
    status that a shell gives what a signal has ended. The signal itself would leave what was
    started behind.
    """
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except CannotCompile as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def parser_of(command: str, description: str) -> argparse.ArgumentParser:
    prog = f"python -m bench {command}".rstrip()
    return argparse.ArgumentParser(prog=prog, description=description, epilog=EPILOG)


def add_choice_option(
    options: argparse.ArgumentParser, what: str, default: Sequence[str] | None = None
) -> None:
    """``--contender NAME``, or whatever it is that is chosen."""
    unless = f"; default: {', '.join(default)}" if default else ""
    options.add_argument(
        f"--{what}",
        action="append",
        metavar="NAME",
        help=f"only these (repeatable; * and ? work{unless})",
    )


def add_rounds_options(
    options: argparse.ArgumentParser,
    rounds: int = 5,
    duration: float = 1.0,
    warmup: float | None = 0.3,
) -> None:
    """What all have that measure; those without a warm-up say ``None``."""
    options.add_argument(
        "--rounds", type=count, default=rounds, help=f"for each of them (default: {rounds})"
    )
    options.add_argument(
        "--seconds",
        type=seconds,
        default=duration,
        help=f"of traffic, for each measurement (default: {duration})",
    )
    if warmup is None:
        options.set_defaults(warmup=0.0)
    else:
        options.add_argument(
            "--warmup",
            type=seconds_or_none,
            default=warmup,
            help=f"seconds before each, not counted (default: {warmup})",
        )
    options.add_argument(
        "--quick",
        action="store_true",
        help="one short round: does it all run? Its figures are worth nothing",
    )
    add_choice_option(options, "contender")
    options.add_argument(
        "--json", type=file_to_write, metavar="FILE", help="write every measurement to it"
    )
    options.add_argument("--list", action="store_true", help="list what there is to choose from")


def begin(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for; SIGTERM is an end from now on."""
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 0.3
        options.warmup = min(options.warmup, 0.1)
    # Like Ctrl-C: the processes that were started are ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return options


def no_such_name(name: str, names: Iterable[str]) -> NoReturn:
    print(f"nothing is called {name!r}; there are {', '.join(names)}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def matching(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """Those that a pattern matches, or all; a pattern that matches none ends the program."""
    if patterns is None:
        return list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            no_such_name(pattern, names)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def chosen(named: Sequence[Choice], patterns: Sequence[str] | None) -> list[Choice]:
    names = matching([one.name for one in named], patterns)
    return [one for one in named if one.name in names]


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


def plan(
    regimes: Sequence[RelayRegime],
    regime_patterns: Sequence[str] | None,
    contender_patterns: Sequence[str] | None,
) -> list[tuple[RelayRegime, list[Contender]]]:
    """Which contenders are to take part in which regimes, of those that can be had here."""
    regimes = chosen(regimes, regime_patterns)
    contenders = _in_order(present(all_contenders(), contender_patterns))
    named = contender_patterns is not None
    also = {name for regime in regimes for name in regime.also if not named}
    extra = _in_order([one for one in all_contenders() if one.name in also and not one.missing()])
    return [
        (regime, [*contenders, *(one for one in extra if one.name in regime.also)])
        for regime in _possible(regimes)
    ]


def _possible(regimes: Sequence[RelayRegime]) -> Iterator[RelayRegime]:
    """Those whose place can be had on this machine."""
    for regime in regimes:
        if reason := regime.place.missing():
            print(f"left out: {regime.name} ({reason})")
        else:
            yield regime


def _in_order(contenders: Sequence[Contender]) -> list[Contender]:
    """What has to be compiled is; the one that all are compared with goes first."""
    return sorted(filter(_compiles, contenders), key=lambda one: one.name != BASELINE)


def _compiles(contender: Contender) -> bool:
    if contender.source is None:
        return True
    try:
        compiled(contender.source)
    except CannotCompile as error:
        print(f"left out: {contender.name} ({error})")
        return False
    return True


def print_regimes_and_contenders(regimes: Sequence[RelayRegime]) -> int:
    print("regimes:")
    for regime in regimes:
        least, most = min(regime.sizes), max(regime.sizes)
        size = f"{least}" if least == most else f"{least} to {most}"
        lasting = "" if regime.shape.connections_last else "each on a connection of its own, "
        where = f"{lasting}{connections_in_words(regime.connections)}"
        print(f"  {regime.name:{LIST_WIDTH}} {regime.shape.what} of {size} bytes, {where}")
    print("contenders:")
    return print_participants(all_contenders())


def print_participants(participants: Sequence[Participant]) -> int:
    for one in participants:
        remark = one.missing() or ("" if one.by_default else "when named")
        print(f"  {one.name:{LIST_WIDTH}} {one.description}" + (f" ({remark})" if remark else ""))
    return 0


def connections_in_words(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections at the same time"


def print_facts() -> dict[str, str]:
    """The first line of the output, which a figure is quoted with."""
    facts = machine.facts()
    print(", ".join(f"{name}: {fact}" for name, fact in facts.items()))
    if not compiler():
        print("no C compiler: client and backend are Python, and may be what limits the rates")
    print(flush=True)
    return facts


def write_json(path: Path | None, facts: Mapping[str, str], figures: Mapping[str, object]) -> None:
    """Where one was asked for."""
    if path:
        try:
            path.write_text(json.dumps({"machine": facts, **figures}, indent=1))
        except OSError as error:
            sys.exit(f"{path} could not be written: {error.strerror}")
