"""``python -m bench web``: HTTP servers side by side, round by round."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from bench.command_line import (
    LIST_WIDTH,
    add_choice_option,
    add_rounds_options,
    begin,
    chosen,
    connections_in_words,
    parser_of,
    present,
    print_facts,
    print_participants,
    write_json,
)
from bench.compiler import compiler
from bench.measure import Measurement
from bench.report import as_json
from bench.rounds import Rounds, run_rounds
from bench.web.cases import BYTES, CASES, PROXY, STATIC, UPLOAD, Case
from bench.web.files import folder_for
from bench.web.goals import goals_table
from bench.web.measure import BACKEND, measure
from bench.web.report import COMPARISONS, case_table
from bench.web.servers import Server, all_servers, server_named

WHAT = {
    PROXY: "responses of a backend,",
    UPLOAD: "requests to a backend,",
    STATIC: "files",
    BYTES: "bytes of the application,",
}


def parser() -> argparse.ArgumentParser:
    options = parser_of("web", "HTTP servers side by side, round by round.")
    add_choice_option(options, "case")
    add_rounds_options(options)
    return options


def main(arguments: Sequence[str]) -> int:
    options = begin(parser(), arguments)
    if options.list:
        return print_list()
    cases = possible(chosen(CASES, options.case))
    servers = present(all_servers(), options.contender)
    check_compiler()
    facts = print_facts()
    print("rate x and cpu x are to the same server as it is, of the same round; more is better\n")
    done: list[Rounds[Measurement]] = []
    with folder_for(cases) as folder:
        plan = [(case, takers) for case in cases if (takers := in_case(case, servers))]
        status = run_rounds(done, plan, options, partial(measure, folder), case_table)
    print(goals_table(done))
    write_json(options.json, facts, {"regimes": as_json(done, COMPARISONS)})
    return status


def possible(cases: Sequence[Case]) -> list[Case]:
    """Those whose backend is on this machine."""
    reason = server_named(BACKEND).missing()
    if reason:
        print(f"left out: cases with a backend's response ({reason})")
    return [case for case in cases if not reason or case.kind != PROXY]


def in_case(case: Case, servers: Sequence[Server]) -> list[Server]:
    return [server for server in servers if case.kind in server.kinds]


def print_list(cases: Sequence[Case] = CASES, servers: Sequence[Server] | None = None) -> int:
    print("cases:")
    for case in cases:
        where = connections_in_words(case.connections)
        print(f"  {case.name:{LIST_WIDTH}} {WHAT[case.kind]} {case.size} bytes each, {where}")
    print("servers:")
    return print_participants(all_servers() if servers is None else servers)


def check_compiler() -> None:
    if not compiler():
        sys.exit("no C compiler: the client of this bench is written in C, and has no substitute")
