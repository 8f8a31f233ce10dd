"""``python -m bench syscalls``: which system calls a message costs, as strace counts them."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench import machine
from bench.command_line import (
    add_contender_option,
    chosen_regimes,
    plan,
    print_facts,
    progress,
    stop_on_sigterm,
)
from bench.contenders import Contender
from bench.measure import amount_of
from bench.processes import ProcessFailed
from bench.regimes import OF_BYTES, REGIMES, RelayRegime
from bench.report import table
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
    options = argparse.ArgumentParser(
        prog="python -m bench syscalls", description="System calls for each message."
    )
    options.add_argument(
        "--regime", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )
    options.add_argument("--seconds", type=float, default=0.5, help="for each (default: 0.5)")
    add_contender_option(options)
    options.add_argument("--json", metavar="FILE", help="write every count to FILE")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if reason := missing():
        sys.exit(f"no system calls are counted: {reason}")
    stop_on_sigterm()
    planned = plan(chosen_regimes(REGIMES, options.regime), options.contender)
    facts = machine.facts()
    print_facts(facts)
    results: dict[str, dict[str, Count]] = {}
    status = 0
    for regime, contenders in planned:
        counts, failures = count_all(regime, contenders, options.seconds)
        results[regime.name] = counts
        status |= bool(failures)
        print(regime_table(regime, counts))
        for name, failure in failures.items():
            print(f"  {name} failed: {failure}")
        print(flush=True)
    if options.json:
        write_json(options.json, facts, results)
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


def count_all(
    regime: RelayRegime, contenders: Sequence[Contender], seconds: float
) -> tuple[dict[str, Count], dict[str, str]]:
    counts, failures = {}, {}
    for contender in contenders:
        if contender.why_not(regime):
            continue
        progress(f"{regime.name}: {contender.name}")
        try:
            counts[contender.name] = count(contender, regime, seconds)
        except ProcessFailed as failure:
            failures[contender.name] = str(failure)
    progress("")
    return counts, failures


def count(contender: Contender, regime: RelayRegime, seconds: float) -> Count:
    with set_up(contender, regime, probe_first=True) as setting:
        with traced(setting.relay.family()) as trace:
            setting.begin()
            answer = setting.observe(0.0, seconds, [])
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


def regime_table(regime: RelayRegime, counts: Mapping[str, Count]) -> str:
    rows = [
        [name, f"{result.total():.3g}", f"{result.failed_each():.3g}", result.breakdown()]
        for name, result in counts.items()
    ]
    what = regime.what.partition(",")[0].removesuffix("s")
    return f"{regime.name}, for each {what}:\n" + table(
        ["", "calls", "in vain", "of which"], rows, last="left"
    )


def write_json(
    path: str, facts: Mapping[str, str], results: Mapping[str, Mapping[str, Count]]
) -> None:
    counts = {
        regime: {
            name: {
                "messages": result.messages,
                "calls": {call: vars(calls) for call, calls in result.calls.items()},
            }
            for name, result in of_regime.items()
        }
        for regime, of_regime in results.items()
    }
    with open(path, "w") as file:
        json.dump({"machine": facts, "system calls": counts}, file, indent=1)
