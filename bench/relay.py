"""``python -m bench``: the contenders side by side, round by round."""

import argparse
import json
import sys
from collections.abc import Sequence

from bench import machine, report
from bench.command_line import (
    add_contender_option,
    chosen,
    chosen_contenders,
    print_facts,
    progress,
    stop_on_sigterm,
)
from bench.contenders import Contender, all_contenders
from bench.measure import measure
from bench.processes import ProcessFailed
from bench.regimes import REGIMES, OneWay, Regime


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="for each regime (default: 5)")
    options.add_argument(
        "--seconds", type=float, default=1.0, help="for each measurement (default: 1.0)"
    )
    options.add_argument(
        "--warmup", type=float, default=0.3, help="seconds before each, not counted (default: 0.3)"
    )
    options.add_argument(
        "--regime", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )
    add_contender_option(options)
    options.add_argument("--json", metavar="FILE", help="write every measurement to FILE")
    options.add_argument("--list", action="store_true", help="list regimes and contenders")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print_list()
        return 0
    if options.rounds < 1 or options.seconds <= 0 or options.warmup < 0:
        parser().error("--rounds and --seconds are more than 0, --warmup is not less")
    stop_on_sigterm()
    regimes = chosen(REGIMES, options.regime)
    contenders = chosen_contenders(options.contender)
    facts = machine.facts()
    print_facts(facts)
    print("rate x and cpu x are to the gevent loop of the same round; more is better in both\n")
    done: list[report.Rounds] = []
    try:
        run_regimes(done, regimes, contenders, options)
        status = 1 if any(rounds.failures for rounds in done) else 0
    except KeyboardInterrupt:
        progress("")
        print("interrupted; what was measured until now:", file=sys.stderr)
        status = 130
    print(report.ratio_table(done))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report.as_json(facts, done), file, indent=1)
    return status


def run_regimes(
    done: list[report.Rounds],
    regimes: Sequence[Regime],
    contenders: Sequence[Contender],
    options: argparse.Namespace,
) -> None:
    """Add to ``done`` what is measured, as it is: an interrupt does not lose the rest."""
    for regime in regimes:
        rounds = report.Rounds(regime)
        done.append(rounds)
        try:
            run_rounds(rounds, contenders, options)
        finally:
            print(report.regime_table(rounds), end="\n\n", flush=True)


def run_rounds(
    rounds: report.Rounds, contenders: Sequence[Contender], options: argparse.Namespace
) -> None:
    regime = rounds.regime
    for number in range(options.rounds):
        for contender in rotated(contenders, number):
            if contender.name in rounds.failures:
                continue
            progress(f"{regime.name}: round {number + 1} of {options.rounds}, {contender.name}")
            try:
                result = measure(contender, regime, options.warmup, options.seconds)
            except ProcessFailed as failure:
                rounds.failures[contender.name] = str(failure)
            else:
                rounds.add(contender.name, number, result)
    progress("")


def rotated(contenders: Sequence[Contender], by: int) -> list[Contender]:
    """Another one goes first in each round, so that none is always measured after the same one."""
    by %= len(contenders)
    return [*contenders[by:], *contenders[:by]]


def print_list() -> None:
    print("regimes:")
    for regime in REGIMES:
        what = "writes" if isinstance(regime, OneWay) else "messages"
        where = "1 connection" if regime.connections == 1 else f"{regime.connections} connections"
        print(f"  {regime.name:20} {what} of {regime.size} bytes on {where}")
    print("contenders:")
    for contender in all_contenders():
        remark = contender.missing() or ("" if contender.by_default else "when named")
        print(f"  {contender.name:20} {contender.description}" + (f" ({remark})" if remark else ""))
