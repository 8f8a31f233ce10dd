"""``python -m bench memory``: what relays cost that have carried traffic and are idle now."""

import argparse
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.command_line import (
    add_rounds_options,
    begin,
    parser_of,
    plan,
    print_facts,
    print_participants,
    write_json,
)
from bench.contenders import Contender, all_contenders
from bench.goals import FDS_EACH, OURS_AS_SERVERS, RSS_EACH, goal_row, table_of_goals
from bench.machine import process_clock
from bench.processes import LineProcess
from bench.regimes import KIB, PING_PONG, RelayRegime
from bench.report import Column, every_round, figure_column, rounds_table
from bench.rounds import Rounds, run_rounds
from bench.setting import Setting, set_up
from bench.usage import Usage
from bench.values import count, message_size, seconds, seconds_or_none

ALSO = ("gsplice-server",)
ANSWER_SECONDS = 5.0
QUICK_RELAYS, QUICK_SECONDS = 50, 0.3


@dataclass(frozen=True)
class IdleRelays:
    """What one contender held with its relays idle, less what it held before the first."""

    rss_each: float
    fds_each: float
    pipes: float  # of all relays together
    cpu_share: float  # of one CPU, of all relays together
    stats: dict[str, object] | None  # its own account, where it gives one


def parser() -> argparse.ArgumentParser:
    options = parser_of("memory", "What relays cost that have carried traffic and are idle now.")
    add_rounds_options(options, duration=2.0, warmup=None)
    options.add_argument("--relays", type=count, default=1000, help="(default: 1000)")
    options.add_argument(
        "--size",
        type=message_size,
        default=65536,
        help="of a message of the traffic (default: 65536)",
    )
    options.add_argument(
        "--settle", type=seconds_or_none, default=2.0, help="seconds of idling (default: 2.0)"
    )
    options.add_argument(
        "--idle",
        type=seconds,
        default=1.0,
        help="seconds in which their CPU is read (default: 1.0)",
    )
    return options


def main(arguments: Sequence[str]) -> int:
    options = begin(parser(), arguments)
    if options.list:
        return print_participants(all_contenders())
    if options.quick:
        options.relays = min(options.relays, QUICK_RELAYS)
        options.settle, options.idle = QUICK_SECONDS, QUICK_SECONDS
    regime = RelayRegime("idle", options.size, options.relays, PING_PONG, also=ALSO)
    planned = plan([regime], None, options.contender)
    facts = print_facts()
    done: list[Rounds[IdleRelays]] = []
    measure = partial(measure_idle, options.settle, options.idle)
    status = run_rounds(done, planned, options, measure, idle_table, Contender.why_not)
    print(goals_table(done))
    for rounds in done:
        write_json(options.json, facts, {"memory": every_round(rounds)})
    return status


def measure_idle(
    settle: float,
    idle: float,
    contender: Contender,
    regime: RelayRegime,
    warmup: float,
    seconds: float,
) -> IdleRelays:
    with set_up(contender, regime, probe_first=True) as setting:
        setting.observe(warmup, seconds, [])
        time.sleep(settle)
        return _idle(setting, regime.connections, idle, contender.answers_stats)


def _idle(setting: Setting, relays: int, seconds: float, answers_stats: bool) -> IdleRelays:
    pids = setting.relay.family()
    clocks = [process_clock(pid) for pid in pids]
    cpu = -sum(map(time.clock_gettime, clocks))
    time.sleep(seconds)
    cpu += sum(map(time.clock_gettime, clocks))
    before, after = setting.usage_before, Usage.of(pids)
    assert before is not None
    return IdleRelays(
        rss_each=(after.rss - before.rss) / relays,
        fds_each=(after.fds.total() - before.fds.total()) / relays,
        pipes=(after.fds["pipe"] - before.fds["pipe"]) / 2,
        cpu_share=cpu / seconds,
        stats=_stats(setting.relay) if answers_stats else None,
    )


def _stats(relay: LineProcess) -> dict[str, object]:
    relay.signal(signal.SIGUSR1)
    figures: dict[str, object] = json.loads(relay.answer(ANSWER_SECONDS))
    return figures


def kb_each(relays: IdleRelays) -> float:
    return relays.rss_each / KIB


def fds_each(relays: IdleRelays) -> float:
    return relays.fds_each


def stats_column(heading: str, field: str) -> Column[IdleRelays]:
    """Of the last round."""

    def cell(rounds: Rounds[IdleRelays], name: str) -> str:
        *_, last = rounds.results[name].values()
        return str((last.stats or {}).get(field, "-"))

    return Column(heading, cell)


COLUMNS: tuple[Column[IdleRelays], ...] = (
    figure_column("RSS each, KB", kb_each, digits=1),
    Column("±", lambda rounds, name: f"{rounds.spread(name, kb_each):.1f}"),  # a median may be 0
    figure_column("fds each", fds_each, digits=2),
    figure_column("pipes", lambda relays: relays.pipes),
    figure_column("CPU, %", lambda relays: relays.cpu_share, 100, 2),
    stats_column("stats().pipes", "pipes"),
    stats_column("of them idle", "idle_pipes"),
    stats_column("active", "active"),
)


def idle_table(rounds: Rounds[IdleRelays]) -> str:
    title = f"{rounds.regime.connections} idle relays, 1 KB = 1024 bytes"
    return rounds_table(rounds, COLUMNS, title=title)


def goals_table(done: Sequence[Rounds[IdleRelays]]) -> str:
    """A relay that is idle holds its two sockets, and little else."""
    rows = [
        goal_row("idle", name, what, "", limit, values)
        for rounds in done
        for name in OURS_AS_SERVERS
        for what, limit, figure in (
            ("RSS each", RSS_EACH, kb_each),
            ("fds each", FDS_EACH, fds_each),
        )
        if (values := rounds.values(name, figure))
    ]
    return table_of_goals(rows)
