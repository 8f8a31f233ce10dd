"""``python -m bench memory``: what relays cost that have carried traffic and are idle now."""

import argparse
import itertools
import json
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tabulate import tabulate

from bench import machine
from bench.command_line import (
    add_contender_option,
    chosen_contenders,
    print_facts,
    progress,
    stop_on_sigterm,
)
from bench.contenders import Contender
from bench.measure import PATIENCE_SECONDS, blamed_on, peer_command, relay_command
from bench.processes import LineProcess, ProcessFailed
from bench.usage import Usage

BY_DEFAULT = ("gevent", "gsplice", "gsplice-server")
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class IdleRelays:
    """What one contender held with its relays idle, less what it held before the first."""

    rss_each: float
    fds_each: float
    pipes: float  # of all relays together
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
    add_contender_option(options)
    options.add_argument("--json", metavar="FILE", help="write every measurement to FILE")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    stop_on_sigterm()
    contenders = chosen_contenders(options.contender or BY_DEFAULT)
    facts = machine.facts()
    print_facts(facts)
    results, failures = run_rounds(contenders, options)
    print(table(results, options.relays))
    for name, reason in failures.items():
        print(f"  {name} failed: {reason}")
    if options.json:
        write_json(options.json, facts, results)
    return 1 if failures else 0


def run_rounds(
    contenders: Sequence[Contender], options: argparse.Namespace
) -> tuple[dict[str, list[IdleRelays]], dict[str, str]]:
    results: dict[str, list[IdleRelays]] = {}
    failures: dict[str, str] = {}
    for number, contender in itertools.product(range(options.rounds), contenders):
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
    with ExitStack() as stack:
        backend = stack.enter_context(LineProcess(peer_command("echo")))
        relay = stack.enter_context(
            LineProcess(relay_command(contender, int(backend.wait_until_ready())))
        )
        port = int(relay.wait_until_ready())
        before = Usage.of(relay.family())
        try:
            client = stack.enter_context(
                LineProcess(peer_command("ping", port, options.size, options.relays))
            )
            client.wait_until_ready()
            client.tell(f"measure 0 {options.seconds}")
            client.answer(options.seconds + PATIENCE_SECONDS)
            time.sleep(options.settle)
            return _difference(contender, relay, before, options.relays)
        except ProcessFailed as failure:
            raise blamed_on(relay, failure) from None


def _difference(contender: Contender, relay: LineProcess, before: Usage, relays: int) -> IdleRelays:
    after = Usage.of(relay.family())
    return IdleRelays(
        rss_each=(after.rss - before.rss) / relays,
        fds_each=(after.fds.total() - before.fds.total()) / relays,
        pipes=(after.fds["pipe"] - before.fds["pipe"]) / 2,
        stats=_stats(relay) if contender.answers_stats else None,
    )


def _stats(relay: LineProcess) -> dict[str, object]:
    relay.signal(signal.SIGUSR1)
    figures: dict[str, object] = json.loads(relay.answer(ANSWER_SECONDS))
    return figures


def table(results: dict[str, list[IdleRelays]], relays: int) -> str:
    headings = ["", "RSS each", "±", "fds each", "pipes", "stats().pipes", "of them idle", "active"]
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
        *(str(stats.get(field, "-")) for field in ("pipes", "idle_pipes", "active")),
    ]


def write_json(path: str, facts: dict[str, str], results: dict[str, list[IdleRelays]]) -> None:
    rounds = {name: [vars(result) for result in measured] for name, measured in results.items()}
    with open(path, "w") as file:
        json.dump({"machine": facts, "contenders": rounds}, file, indent=1)
