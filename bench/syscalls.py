"""``python -m bench syscalls``: which system calls a message costs, as strace counts them."""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from bench.command_line import (
    add_choice_option,
    add_rounds_options,
    begin,
    parser_of,
    plan,
    print_facts,
    print_regimes_and_contenders,
    write_json,
)
from bench.contenders import Contender
from bench.measure import amount_of
from bench.processes import ProcessFailed
from bench.regimes import OF_BYTES, REGIMES, RelayRegime
from bench.report import Column, rounds_table
from bench.rounds import Rounds, run_rounds
from bench.setting import set_up

TRACER_SECONDS = 20.0
NEGLIGIBLE = 0.02  # of all calls: timers, and the beginning and the end


@dataclass(frozen=True)
class Calls:
    """Of one system call: how often, and how often in vain."""

    made: int
    failed: int


@dataclass(frozen=True)
class Count:
    """What one contender called in one regime."""

    messages: float  # writes, messages, connections, files: what the regime's client repeats
    calls: Mapping[str, Calls]

    def each(self) -> dict[str, float]:
        """By name, for each message; the most frequent one first."""
        ordered = sorted(self.calls.items(), key=lambda item: -item[1].made)
        return {name: calls.made / self.messages for name, calls in ordered}

    def total(self) -> float:
        return sum(self.each().values())

    def breakdown(self) -> str:
        """Those that matter, by name."""
        least = NEGLIGIBLE * self.total()
        return ", ".join(f"{name} {each:.3g}" for name, each in self.each().items() if each > least)

    def failed_each(self) -> float:
        return sum(calls.failed for calls in self.calls.values()) / self.messages


@dataclass
class Trace:
    """It is empty until the tracing has ended."""

    calls: dict[str, Calls] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    options = parser_of("syscalls", "System calls for each message.")
    add_choice_option(options, "regime")
    add_rounds_options(options, rounds=1, duration=0.5, warmup=None)
    return options


def main(arguments: Sequence[str]) -> int:
    options = begin(parser(), arguments)
    if options.list:
        return print_regimes_and_contenders(REGIMES)
    if reason := missing():
        sys.exit(f"no system calls are counted: {reason}")
    planned = plan(REGIMES, options.regime, options.contender)
    facts = print_facts()
    done: list[Rounds[Count]] = []
    status = run_rounds(done, planned, options, count, regime_table, Contender.why_not)
    write_json(options.json, facts, {"system calls": as_json(done)})
    return status


def missing() -> str:
    """Why nothing can be traced here; nothing if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    # It cannot be asked for: it is a matter of capabilities, of Yama, and of a container's policy.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        try:
            with traced([child.pid]):
                return ""
        except ProcessFailed as failure:
            return str(failure)


def count(contender: Contender, regime: RelayRegime, warmup: float, seconds: float) -> Count:
    with set_up(contender, regime, probe_first=True) as setting:
        with traced(setting.relay.family()) as trace:
            setting.begin()
            answer = setting.observe(warmup, seconds, [])
        amount = amount_of(answer, regime)
        if not amount:
            raise ProcessFailed(f"nothing came through in {seconds} s")
        return Count(amount / (regime.size if regime.unit is OF_BYTES else 1), trace.calls)


@contextmanager
def traced(pids: Sequence[int]) -> Iterator[Trace]:
    """Count the calls of these processes, of all their threads, and of what they start."""
    trace = Trace()
    targets = [word for pid in pids for word in ("-p", str(pid))]
    with tempfile.NamedTemporaryFile("r") as summary:
        command = ["strace", "-c", "-f", "-o", summary.name, *targets]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                _await_attached(tracer, len(pids))
                yield trace
            finally:
                tracer.send_signal(signal.SIGINT)  # it detaches, and writes the summary
                tracer.communicate(timeout=TRACER_SECONDS)
        trace.calls.update(read_summary(summary))


def _await_attached(tracer: "subprocess.Popen[str]", count: int) -> None:
    assert tracer.stderr is not None
    for line in tracer.stderr:
        if "attached" not in line:
            raise ProcessFailed(line.strip())
        count -= 1
        if count == 0:
            return
    raise ProcessFailed("strace has ended")


def read_summary(lines: Iterator[str]) -> Iterator[tuple[str, Calls]]:
    """The columns: % time, seconds, usecs/call, calls, errors (empty if none), syscall."""
    for line in lines:
        words = line.split()
        if len(words) in (5, 6) and words[3].isdigit() and words[-1] != "total":
            yield words[-1], Calls(int(words[3]), int(words[4]) if len(words) == 6 else 0)


def middle(rounds: Rounds[Count], name: str) -> Count:
    """The round with the median number of calls, or the one above it: its calls belong together."""
    ordered = sorted(rounds.results[name].values(), key=Count.total)
    return ordered[len(ordered) // 2]


COLUMNS = (
    Column[Count]("calls", lambda rounds, name: f"{middle(rounds, name).total():.3g}"),
    Column[Count]("in vain", lambda rounds, name: f"{middle(rounds, name).failed_each():.3g}"),
    Column[Count]("of which", lambda rounds, name: middle(rounds, name).breakdown()),
)


def regime_table(rounds: Rounds[Count]) -> str:
    assert isinstance(rounds.regime, RelayRegime)
    what = rounds.regime.shape.what.removesuffix("s")
    title = f"{rounds.regime.name}, for each {what}"
    return rounds_table(rounds, COLUMNS, title=title, last="left")


def as_json(done: Sequence[Rounds[Count]]) -> dict[str, object]:
    return {
        rounds.regime.name: {name: asdict(middle(rounds, name)) for name in rounds.results}
        for rounds in done
    }
