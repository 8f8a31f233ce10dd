"""``python -m bench``: the contenders side by side, round by round."""

import argparse
from collections.abc import Sequence

from bench import pictures, report
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
from bench.goals import goals_table
from bench.measure import Measurement, measure
from bench.regimes import REGIMES, SCALE, RelayRegime
from bench.rounds import Rounds, run_rounds
from bench.values import folder_to_fill


def main(arguments: Sequence[str]) -> int:
    return run(REGIMES, parser("", "The contenders side by side, round by round."), arguments)


def scale(arguments: Sequence[str]) -> int:
    """``python -m bench scale``: what a message and a byte cost with 1 to 10,000 relays."""
    return run(SCALE, parser("scale", "The cost with 1 to 10,000 relays."), arguments)


def parser(command: str, description: str) -> argparse.ArgumentParser:
    options = parser_of(command, description)
    add_choice_option(options, "regime")
    add_rounds_options(options)
    options.add_argument(
        "--pictures", type=folder_to_fill, metavar="DIR", help="draw pictures into DIR"
    )
    return options


def run(
    regimes: Sequence[RelayRegime], parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> int:
    options = begin(parser, arguments)
    if options.list:
        return print_regimes_and_contenders(regimes)
    if options.pictures:
        pictures.check_matplotlib()
    planned = plan(regimes, options.regime, options.contender)
    facts = print_facts()
    print("rate x and cpu x are to the gevent loop of the same round; more is better in both\n")
    done: list[Rounds[Measurement]] = []
    status = run_rounds(done, planned, options, measure, report.regime_table, Contender.why_not)
    print(report.ratio_table(done), end="\n\n")
    print(goals_table(done))
    figures = report.as_json(done, report.COMPARISONS)
    write_json(options.json, facts, {"regimes": figures})
    if options.pictures:
        pictures.draw(figures, {}, options.pictures, options.contender)
    return status
