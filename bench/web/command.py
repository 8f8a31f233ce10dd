"""``python -m bench web``: HTTP servers side by side, round by round."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial

from bench import machine
from bench.command_line import (
    add_rounds_options,
    check_rounds_options,
    chosen,
    present,
    print_facts,
    run_rounds,
    stop_on_sigterm,
)
from bench.compiler import compiler
from bench.report import Rounds, as_json
from bench.web.cases import CASES, PROXY, STATIC, UPLOAD, Case
from bench.web.files import folder_for
from bench.web.goals import goals_table
from bench.web.measure import BACKEND, measure
from bench.web.report import COMPARISONS, case_table
from bench.web.servers import Server, all_servers, server_named

WHAT = {
    PROXY: "responses of a backend,",
    UPLOAD: "requests to a backend,",
    STATIC: "files",
}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench web", description=__doc__)
    options.add_argument(
        "--case", action="append", metavar="NAME", help="only these (repeatable; * and ? work)"
    )
    add_rounds_options(options)
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print_list()
        return 0
    check_rounds_options(parser(), options)
    if not compiler():
        sys.exit("no C compiler: the client of this bench is written in C, and has no substitute")
    stop_on_sigterm()
    servers = present(all_servers(), options.contender)
    cases = possible(chosen(CASES, options.case))
    facts = machine.facts()
    print_facts(facts)
    print("rate x and cpu x are to the same server as it is, of the same round; more is better\n")
    done: list[Rounds] = []
    with folder_for(cases) as folder:
        plan = [(case, takers) for case in cases if (takers := in_case(case, servers))]
        status = run_rounds(done, plan, options, partial(measure, folder), case_table)
    print(goals_table(done))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(as_json(facts, done, COMPARISONS), file, indent=1)
    return status


def possible(cases: Sequence[Case]) -> list[Case]:
    """Those whose backend is on this machine."""
    reason = server_named(BACKEND).missing()
    if reason:
        print(f"left out: cases with a backend's response ({reason})")
    return [case for case in cases if not reason or case.kind in (UPLOAD, STATIC)]


def in_case(case: Case, servers: Sequence[Server]) -> list[Server]:
    return [server for server in servers if case.kind in server.kinds]


def print_list() -> None:
    print("cases:")
    for case in CASES:
        where = "1 connection" if case.connections == 1 else f"{case.connections} connections"
        print(f"  {case.name:24} {WHAT[case.kind]} {case.size} bytes each, {where}")
    print("servers:")
    for server in all_servers():
        remark = server.missing() or ("" if server.by_default else "when named")
        print(f"  {server.name:24} {server.description}" + (f" ({remark})" if remark else ""))
