"""``python -m bench ticker``: whether a ticker of 5 ms gets its turns beside saturated relays.

The contenders are those in Python: their event loop is what the rest of the program lives on, too.
"""

import argparse
import json
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import machine
from bench.command_line import (
    add_contender_option,
    chosen_regimes,
    plan,
    print_facts,
    progress,
    stop_on_sigterm,
    turns,
)
from bench.contenders import Contender
from bench.measure import amount_of
from bench.processes import LineProcess, ProcessFailed
from bench.regimes import REGIMES, PingPong, RelayRegime
from bench.report import table
from bench.setting import set_up

# One connection that never waits, several, many, and messages instead of a stream. The first is a
# control: nothing is sent, and what is missing then is the machine's fault.
IDLE = PingPong("idle", 256, 1)
BY_DEFAULT = ("one-way-512k", "one-way-64k-x8", "one-way-16k-x100", "ping-pong-256-x32")
ANSWER_SECONDS = 10.0  # of a loop that starves
SLACK_SECONDS = 1.0  # the traffic lasts longer than the ticking


@dataclass(frozen=True)
class Ticking:
    """One contender in one round."""

    share: float  # of the ticks that came before the next one was due
    longest_gap: float  # seconds without a tick
    rate: float  # of the relay meanwhile, in the regime's unit


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m bench ticker", description="A ticker of 5 ms beside saturated relays."
    )
    options.add_argument(
        "--regime",
        action="append",
        metavar="NAME",
        help=f"(repeatable; * and ? work; default: {', '.join(BY_DEFAULT)})",
    )
    options.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    options.add_argument("--seconds", type=float, default=2.0, help="for each (default: 2.0)")
    options.add_argument("--warmup", type=float, default=0.3, help="seconds (default: 0.3)")
    add_contender_option(options)
    options.add_argument("--json", metavar="FILE", help="write every measurement to FILE")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    stop_on_sigterm()
    regimes = [IDLE, *chosen_regimes(REGIMES, options.regime or BY_DEFAULT)]
    planned = plan(regimes, options.contender)
    facts = machine.facts()
    print_facts(facts)
    results: dict[str, dict[str, list[Ticking]]] = {}
    status = 0
    for regime, contenders in planned:
        takers = [one for one in contenders if one.ticks and not one.why_not(regime)]
        results[regime.name], failures = run_rounds(regime, takers, options)
        print(f"{regime.name}:\n{regime_table(regime, results[regime.name])}")
        for name, failure in failures.items():
            print(f"  {name} failed: {failure}")
            status = 1
        print(flush=True)
    if options.json:
        write_json(options.json, facts, results)
    return status


def run_rounds(
    regime: RelayRegime, contenders: Sequence[Contender], options: argparse.Namespace
) -> tuple[dict[str, list[Ticking]], dict[str, str]]:
    results: dict[str, list[Ticking]] = {}
    failures: dict[str, str] = {}
    for number, contender in turns(contenders, options.rounds):
        if contender.name in failures:
            continue
        progress(f"{regime.name}: round {number + 1} of {options.rounds}, {contender.name}")
        try:
            ticking = measure(contender, regime, options.warmup, options.seconds)
        except ProcessFailed as failure:
            failures[contender.name] = str(failure)
        else:
            results.setdefault(contender.name, []).append(ticking)
    progress("")
    return results, failures


def measure(contender: Contender, regime: RelayRegime, warmup: float, seconds: float) -> Ticking:
    with set_up(contender, regime) as setting:
        rate = 0.0
        if regime is IDLE:
            _tick(setting.relay, seconds)
        else:
            setting.begin()
            setting.begin_to_observe(warmup, seconds + SLACK_SECONDS, [])
            time.sleep(warmup)
            _tick(setting.relay, seconds)
            answer = setting.observed(SLACK_SECONDS)
            rate = amount_of(answer, regime) / answer["seconds"]
        setting.client.stop()  # a loop that starves can answer then
        return Ticking(**json.loads(setting.relay.answer(ANSWER_SECONDS)), rate=rate)


def _tick(relay: LineProcess, seconds: float) -> None:
    """What it has counted is its next answer."""
    relay.signal(signal.SIGUSR2)
    time.sleep(seconds)
    relay.signal(signal.SIGUSR2)


def regime_table(regime: RelayRegime, results: Mapping[str, Sequence[Ticking]]) -> str:
    headings = ["", "ticks", "fewest", "longest gap, ms", "longest of all", regime.unit.rate]
    rows = []
    for name, rounds in results.items():
        shares = [ticking.share * 100 for ticking in rounds]
        gaps = [ticking.longest_gap * 1e3 for ticking in rounds]
        rate = statistics.median(ticking.rate for ticking in rounds) * regime.unit.rate_scale
        figures = [f"{statistics.median(shares):.1f} %", f"{min(shares):.1f} %"]
        figures += [f"{statistics.median(gaps):.1f}", f"{max(gaps):.1f}", f"{rate:,.0f}"]
        rows.append([name, *figures])
    return table(headings, rows)


def write_json(
    path: str, facts: Mapping[str, str], results: Mapping[str, Mapping[str, Sequence[Ticking]]]
) -> None:
    figures = {
        regime: {name: [vars(one) for one in rounds] for name, rounds in of_regime.items()}
        for regime, of_regime in results.items()
    }
    with open(path, "w") as file:
        json.dump({"machine": facts, "ticker": figures}, file, indent=1)
