"""``python -m bench web-alternating``: small answers with gsplice and without it, by one process.

Two processes of the very same program differ by up to a quarter in what a small answer takes, and
by another one from round to round. Here a server takes turns with itself (`alternation`,
`switched`).
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from bench.command_line import (
    add_choice_option,
    add_rounds_options,
    begin,
    chosen,
    parser_of,
    present,
    print_facts,
    write_json,
)
from bench.goals import Limit, goal_row, table_of_goals
from bench.report import Column, notes_of_load, rounds_table
from bench.rounds import Rounds, run_rounds
from bench.web.alternation import BATCH, Alternation, Figure, measure
from bench.web.cases import SMALL_CASES, Case
from bench.web.command import check_compiler, in_case, possible, print_list
from bench.web.files import folder_for
from bench.web.servers import switched_servers
from bench.web.switched import CONTROL, ORIGINAL, PATCHED

FIGURES: dict[str, Figure] = {"time": lambda batch: batch.time, "cpu": lambda batch: batch.cpu}
GOAL = Limit(1.0, digits=3)  # no slower than without gsplice
NOISE = 0.01  # of a ratio: what the control is off by where little else is going on
SECONDS = 2.0
MICRO = 1e6

Of = Rounds[Alternation]


def parser() -> argparse.ArgumentParser:
    options = parser_of(
        "web-alternating",
        f"Small answers by one process, {BATCH} with gsplice and {BATCH} without it in turn.",
    )
    add_choice_option(options, "case")
    add_rounds_options(options, duration=SECONDS)
    return options


def main(arguments: Sequence[str]) -> int:
    options = begin(parser(), arguments)
    if options.list:
        return print_list(SMALL_CASES, switched_servers())
    cases = possible(chosen(SMALL_CASES, options.case))
    servers = present(switched_servers(), options.contender)
    check_compiler()
    facts = print_facts()
    print("x is to the original methods in the same process and turn; more is better\n")
    done: list[Of] = []
    with folder_for(cases) as folder:
        plan = [(case, in_case(case, servers)) for case in cases]
        status = run_rounds(done, plan, options, partial(measure, folder), case_table)
    print(goals_table(done))
    write_json(options.json, facts, {"cases": {of.regime.name: as_json(of) for of in done}})
    return status


def ratios(of: Of, name: str, variant: str, figure: Figure) -> list[float]:
    """Those of all turns, whichever their round."""
    results = of.results[name].values()
    return [ratio for result in results for ratio in result.ratios(variant, figure)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Between which half of the values are."""
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4)
    return lower, upper


def micros_column(heading: str, variant: str, figure: Figure) -> Column[Alternation]:
    def cell(of: Of, name: str) -> str:
        return f"{of.median(name, lambda result: result.median(variant, figure)) * MICRO:,.1f}"

    return Column(heading, cell)


def ratio_column(heading: str, variant: str, figure: Figure) -> Column[Alternation]:
    """The median of the rounds, each of which is the median of its turns."""
    return Column(heading, lambda of, name: f"{of.median(name, of_round(variant, figure)):.3f}")


def of_round(variant: str, figure: Figure) -> Callable[[Alternation], float]:
    return lambda result: result.ratio(variant, figure)


def half_column(variant: str, figure: Figure) -> Column[Alternation]:
    def cell(of: Of, name: str) -> str:
        lower, upper = quartiles(ratios(of, name, variant, figure))
        return f"{lower:.2f} to {upper:.2f}"

    return Column("half", cell)


def columns_of(what: str, figure: Figure) -> list[Column[Alternation]]:
    return [
        micros_column(f"{what} µs", ORIGINAL, figure),
        micros_column("gsplice", PATCHED, figure),
        ratio_column(f"{what} x", PATCHED, figure),
        half_column(PATCHED, figure),
        ratio_column("control", CONTROL, figure),
        half_column(CONTROL, figure),
    ]


COLUMNS = [column for what, figure in FIGURES.items() for column in columns_of(what, figure)]


def case_table(of: Of) -> str:
    return rounds_table(of, COLUMNS, [*notes_of_load(of), *notes_of_noise(of)])


def noise(of: Of, name: str, figure: Figure) -> float:
    """By what the control is off in the same run; nothing smaller can be told."""
    return max(NOISE, abs(of.median(name, of_round(CONTROL, figure)) - 1))


def notes_of_noise(of: Of) -> list[str]:
    return [
        f"{name} differs from itself by {off * 100:.1f} % in {what}"
        for name in of.results
        for what, figure in FIGURES.items()
        if (off := noise(of, name, figure)) > NOISE
    ]


def goals_table(done: Sequence[Of]) -> str:
    rows = [
        goal_row(
            of.regime.name,
            name,
            f"{what} x",
            "the original",
            GOAL,
            of.values(name, of_round(PATCHED, figure)),
            noise(of, name, figure),
        )
        for of in done
        for name in of.results
        for what, figure in FIGURES.items()
    ]
    return table_of_goals(rows)


def as_json(of: Of) -> dict[str, Any]:
    assert isinstance(of.regime, Case)
    return {
        "kind": of.regime.kind,
        "size": of.regime.size,
        "failures": of.failures,
        "servers": {name: server_as_json(of, name) for name in of.results},
    }


def server_as_json(of: Of, name: str) -> dict[str, Any]:
    return {
        **{
            f"{what} x": {
                variant: {
                    "median": of.median(name, of_round(variant, figure)),
                    "quartiles": quartiles(ratios(of, name, variant, figure)),
                }
                for variant in (PATCHED, CONTROL)
            }
            for what, figure in FIGURES.items()
        },
        "rounds": {number: asdict(result) for number, result in of.results[name].items()},
    }
