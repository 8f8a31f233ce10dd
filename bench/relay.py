"""``python -m bench``: the contenders side by side, round by round."""

import argparse
import json
from collections.abc import Sequence

from bench import machine, report
from bench.command_line import (
    add_rounds_options,
    check_rounds_options,
    chosen,
    chosen_contenders,
    print_facts,
    run_rounds,
    stop_on_sigterm,
)
from bench.contenders import all_contenders
from bench.measure import measure
from bench.regimes import REGIMES, OneWay


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument(
        "--regime", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )
    add_rounds_options(options)
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print_list()
        return 0
    check_rounds_options(parser(), options)
    stop_on_sigterm()
    regimes = chosen(REGIMES, options.regime)
    contenders = chosen_contenders(options.contender)
    facts = machine.facts()
    print_facts(facts)
    print("rate x and cpu x are to the gevent loop of the same round; more is better in both\n")
    done: list[report.Rounds] = []
    plan = [(regime, contenders) for regime in regimes]
    status = run_rounds(done, plan, options, measure, report.regime_table)
    print(report.ratio_table(done))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report.as_json(facts, done, report.COMPARISONS), file, indent=1)
    return status


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
