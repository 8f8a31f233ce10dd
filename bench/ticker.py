"""``python -m bench ticker``: whether a ticker of 5 ms gets its turns beside saturated relays.

The contenders are those in Python: their event loop is what the rest of the program lives on, too.
"""

import argparse
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
from bench.goals import LONGEST_GAP, OURS, TICKS, goal_row, table_of_goals
from bench.measure import amount_of
from bench.processes import LineProcess
from bench.regimes import PING_PONG, REGIMES, RelayRegime
from bench.report import Column, every_round, figure_column, rounds_table
from bench.rounds import Rounds, run_rounds
from bench.setting import set_up

# One connection that never waits, several, many, and messages instead of a stream. The first is a
# control: nothing is sent, and what is missing then is the machine's fault.
IDLE = RelayRegime("idle", 256, 1, PING_PONG)
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
    options = parser_of("ticker", "A ticker of 5 ms beside saturated relays.")
    add_choice_option(options, "regime", default=BY_DEFAULT)
    add_rounds_options(options, duration=2.0)
    return options


def main(arguments: Sequence[str]) -> int:
    options = begin(parser(), arguments)
    if options.list:
        return print_regimes_and_contenders(REGIMES)
    named = [IDLE.name, *(options.regime or BY_DEFAULT)]
    planned = [
        (regime, [one for one in contenders if one.ticks or options.contender])
        for regime, contenders in plan([IDLE, *REGIMES], named, options.contender)
    ]
    facts = print_facts()
    done: list[Rounds[Ticking]] = []
    status = run_rounds(done, planned, options, measure, regime_table, why_not)
    print(goals_table(done))
    figures = {rounds.regime.name: every_round(rounds) for rounds in done}
    write_json(options.json, facts, {"ticker": figures})
    return status


def why_not(contender: Contender, regime: RelayRegime) -> str:
    """What keeps it out; nothing if it can take part."""
    return contender.why_not(regime) or ("" if contender.ticks else "it has no ticker")


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


def percent_of_ticks(ticking: Ticking) -> float:
    return ticking.share * 100


def gap_in_ms(ticking: Ticking) -> float:
    return ticking.longest_gap * 1e3


def regime_table(rounds: Rounds[Ticking]) -> str:
    assert isinstance(rounds.regime, RelayRegime)
    unit = rounds.regime.unit
    columns: tuple[Column[Ticking], ...] = (
        figure_column("ticks, %", percent_of_ticks, digits=1),
        Column("fewest", lambda rounds, name: f"{min(rounds.values(name, percent_of_ticks)):.1f}"),
        figure_column("longest gap, ms", gap_in_ms, digits=1),
        Column("longest of all", lambda rounds, name: f"{max(rounds.values(name, gap_in_ms)):.1f}"),
        figure_column(unit.rate, lambda ticking: ticking.rate, unit.rate_scale),
    )
    return rounds_table(rounds, columns)


def goals_table(done: Sequence[Rounds[Ticking]]) -> str:
    """Most ticks come in time, and none waits long, whatever the relays have to do."""
    rows = [
        goal_row(rounds.regime.name, name, what, "", limit, values)
        for rounds in done
        for name in OURS
        for what, limit, figure in (
            ("ticks", TICKS, percent_of_ticks),
            ("longest gap", LONGEST_GAP, gap_in_ms),
        )
        if rounds.regime is not IDLE and (values := rounds.values(name, figure))
    ]
    return table_of_goals(rows)
