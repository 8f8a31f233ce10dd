"""``python -m bench memory``: what relays cost that have carried traffic and are idle now."""

import argparse
import json
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tabulate import tabulate

from bench import machine
from bench.command_line import (
    add_contender_option,
    plan,
    print_facts,
    progress,
    stop_on_sigterm,
    turns,
)
from bench.contenders import Contender
from bench.machine import process_clock
from bench.processes import LineProcess, ProcessFailed
from bench.regimes import PingPong
from bench.setting import Setting, set_up
from bench.usage import Usage

ALSO = ("gsplice-server",)
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class IdleRelays:
    """What one contender held with its relays idle, less what it held before the first."""

    rss_each: float
    fds_each: float
    pipes: float  # of all relays together
    cpu_share: float  # of one CPU, of all relays together
    stats: dict[str, object] | None  # its own account, where it gives one


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__)
    options.add_argument("--relays", type=int, default=1000, help="(default: 1000)")
    options.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    options.add_argument(
        "--size", type=int, default=65536, help="of a message of the traffic (default: 65536)"
    )
    options.add_argument(
        "--seconds", type=float, default=2.0, help="of traffic, before the idling (default: 2.0)"
    )
    options.add_argument(
        "--settle", type=float, default=2.0, help="seconds of idling (default: 2.0)"
    )
    options.add_argument(
        "--idle", type=float, default=1.0, help="seconds in which their CPU is read (default: 1.0)"
    )
    add_contender_option(options)
    options.add_argument("--json", metavar="FILE", help="write every measurement to FILE")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    stop_on_sigterm()
    contenders = takers(options)
    facts = machine.facts()
    print_facts(facts)
    results, failures = run_rounds(contenders, options)
    print(table(results, options.relays))
    for name, reason in failures.items():
        print(f"  {name} failed: {reason}")
    if options.json:
        write_json(options.json, facts, results)
    return 1 if failures else 0


def takers(options: argparse.Namespace) -> list[Contender]:
    """Those that are asked for and can have so many relays."""
    regime = PingPong("idle", options.size, options.relays, also=ALSO)
    ((_, contenders),) = plan([regime], options.contender)
    for contender in contenders:
        if reason := contender.why_not(regime):
            print(f"left out: {contender.name} ({reason})")
    return [contender for contender in contenders if not contender.why_not(regime)]


def run_rounds(
    contenders: Sequence[Contender], options: argparse.Namespace
) -> tuple[dict[str, list[IdleRelays]], dict[str, str]]:
    results: dict[str, list[IdleRelays]] = {}
    failures: dict[str, str] = {}
    for number, contender in turns(contenders, options.rounds):
        if contender.name in failures:
            continue
        progress(f"round {number + 1} of {options.rounds}, {contender.name}")
        with noting_failure(failures, contender.name):
            results.setdefault(contender.name, []).append(measure_idle(contender, options))
    progress("")
    return {name: measured for name, measured in results.items() if measured}, failures


@contextmanager
def noting_failure(failures: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except ProcessFailed as failure:
        failures[name] = str(failure)


def measure_idle(contender: Contender, options: argparse.Namespace) -> IdleRelays:
    regime = PingPong("idle", options.size, options.relays)
    with set_up(contender, regime, probe_first=True) as setting:
        setting.observe(0.0, options.seconds, [])
        time.sleep(options.settle)
        return _idle(contender, setting, options)


def _idle(contender: Contender, setting: Setting, options: argparse.Namespace) -> IdleRelays:
    pids = setting.relay.family()
    clocks = [process_clock(pid) for pid in pids]
    cpu = -sum(map(time.clock_gettime, clocks))
    time.sleep(options.idle)
    cpu += sum(map(time.clock_gettime, clocks))
    before, after = setting.usage_before, Usage.of(pids)
    assert before is not None
    return IdleRelays(
        rss_each=(after.rss - before.rss) / options.relays,
        fds_each=(after.fds.total() - before.fds.total()) / options.relays,
        pipes=(after.fds["pipe"] - before.fds["pipe"]) / 2,
        cpu_share=cpu / options.idle,
        stats=_stats(setting.relay) if contender.answers_stats else None,
    )


def _stats(relay: LineProcess) -> dict[str, object]:
    relay.signal(signal.SIGUSR1)
    figures: dict[str, object] = json.loads(relay.answer(ANSWER_SECONDS))
    return figures


def table(results: dict[str, list[IdleRelays]], relays: int) -> str:
    headings = [
        "",
        "RSS each",
        "±",
        "fds each",
        "pipes",
        "CPU",
        "stats().pipes",
        "of them idle",
        "active",
    ]
    rows = [_row(name, rounds) for name, rounds in results.items()]
    alignment = ("left", *["right"] * (len(headings) - 1))
    title = f"{relays} idle relays, 1 KB = 1024 bytes:\n"
    return title + tabulate(rows, headings, colalign=alignment, disable_numparse=True)


def _row(name: str, rounds: Sequence[IdleRelays]) -> list[str]:
    rss = [result.rss_each / 1024 for result in rounds]
    stats = rounds[-1].stats or {}
    return [
        name,
        f"{statistics.median(rss):.1f} KB",
        f"{(max(rss) - min(rss)) / 2:.1f} KB",
        f"{statistics.median(result.fds_each for result in rounds):.2f}",
        f"{statistics.median(result.pipes for result in rounds):.0f}",
        f"{statistics.median(result.cpu_share for result in rounds):.2%}",
        *(str(stats.get(field, "-")) for field in ("pipes", "idle_pipes", "active")),
    ]


def write_json(path: str, facts: dict[str, str], results: dict[str, list[IdleRelays]]) -> None:
    rounds = {name: [vars(result) for result in measured] for name, measured in results.items()}
    with open(path, "w") as file:
        json.dump({"machine": facts, "memory": rounds}, file, indent=1)
