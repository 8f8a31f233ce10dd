"""``python -m bench``: the contenders side by side, round by round."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench import machine, pictures, report
from bench.command_line import (
    add_rounds_options,
    check_rounds_options,
    chosen_regimes,
    plan,
    print_facts,
    run_rounds,
    stop_on_sigterm,
)
from bench.contenders import Contender, all_contenders
from bench.measure import measure
from bench.regimes import REGIMES, SCALE, RelayRegime


def parser(name: str, description: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog=f"python -m bench {name}", description=description)
    options.add_argument(
        "--regime", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )
    add_rounds_options(options)
    options.add_argument("--pictures", type=Path, metavar="DIR", help="draw pictures into DIR")
    return options


def main(arguments: Sequence[str]) -> int:
    return run(REGIMES, parser("", "The contenders side by side, round by round."), arguments)


def scale(arguments: Sequence[str]) -> int:
    """``python -m bench scale``: what a message and a byte cost with 1 to 10,000 relays."""
    return run(SCALE, parser("scale", "The cost with 1 to 10,000 relays."), arguments)


def run(
    regimes: Sequence[RelayRegime], options_parser: argparse.ArgumentParser, words: Sequence[str]
) -> int:
    options = options_parser.parse_args(words)
    if options.list:
        print_list(regimes)
        return 0
    check_rounds_options(options_parser, options)
    stop_on_sigterm()
    planned = plan(chosen_regimes(regimes, options.regime), options.contender)
    facts = machine.facts()
    print_facts(facts)
    print("rate x and cpu x are to the gevent loop of the same round; more is better in both\n")
    done: list[report.Rounds] = []
    status = run_rounds(done, planned, options, measure, report.regime_table, Contender.why_not)
    print(report.ratio_table(done))
    figures = json.dumps(report.as_json(facts, done, report.COMPARISONS), indent=1)
    if options.json:
        Path(options.json).write_text(figures)
    if options.pictures:
        pictures.draw(json.loads(figures)["regimes"], {}, options.pictures, options.contender)
    return status


def print_list(regimes: Sequence[RelayRegime]) -> None:
    print("regimes:")
    for regime in regimes:
        where = "1 connection" if regime.connections == 1 else f"{regime.connections} connections"
        sizes = regime.sizes
        size = f"{sizes[0]}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        print(f"  {regime.name:26} {regime.what} of {size} bytes on {where}")
    print("contenders:")
    for contender in all_contenders():
        remark = contender.missing() or ("" if contender.by_default else "when named")
        print(f"  {contender.name:26} {contender.description}" + (f" ({remark})" if remark else ""))
