"""The tables of the servers: each beside itself without gsplice, and beside nginx."""

import os
from collections.abc import Sequence

from bench.measure import Measurement
from bench.report import (
    SHARES,
    Column,
    Compare,
    Comparison,
    Figure,
    busy,
    comparison_column,
    cost,
    figure_column,
    notes_of_load,
    rate,
    rounds_table,
    spread_column,
    times_less_cpu,
    times_the_rate,
)
from bench.rounds import Rounds
from bench.web.cases import Case
from bench.web.servers import all_servers

NGINX = "nginx"
AS_IT_IS = {server.name: server.as_it_is for server in all_servers()}
# Of what there is: whoever uses so much of it could not have gone any faster.
ALL_OF_IT = 0.9


def to_itself(compare: Compare) -> Comparison:
    return lambda rounds, name: rounds.ratio(name, AS_IT_IS[name], compare)


def to_nginx(compare: Compare) -> Comparison:
    return lambda rounds, name: rounds.ratio(name, NGINX, compare)


COMPARISONS = {
    "times its rate as it is": to_itself(times_the_rate),
    "times less cpu than as it is": to_itself(times_less_cpu),
    "times the rate of nginx": to_nginx(times_the_rate),
    "times less cpu than nginx": to_nginx(times_less_cpu),
}
RATIOS = (
    comparison_column("rate x", to_itself(times_the_rate)),
    comparison_column("cpu x", to_itself(times_less_cpu)),
    comparison_column("rate x nginx", to_nginx(times_the_rate)),
    comparison_column("cpu x nginx", to_nginx(times_less_cpu)),
)
BUSY = Column("busy %: server / client / backend", busy)
LARGE_COLUMNS: tuple[Column[Measurement], ...] = (
    figure_column("MB/s", rate, 1e-6),
    spread_column(rate),
    figure_column("CPU s/GB", cost, 1e9, 3),
    spread_column(cost),
    *RATIOS,
    BUSY,
)
SMALL_COLUMNS: tuple[Column[Measurement], ...] = (
    figure_column("requests/s", rate, 1),
    spread_column(rate),
    figure_column("CPU µs/request", cost, 1e6, 1),
    spread_column(cost),
    figure_column("p50 µs", lambda m: m.p50, 1e6),
    figure_column("p99 µs", lambda m: m.p99, 1e6),
    *RATIOS,
    BUSY,
)


def case_table(rounds: Rounds[Measurement]) -> str:
    assert isinstance(rounds.regime, Case)
    columns = SMALL_COLUMNS if rounds.regime.is_small else LARGE_COLUMNS
    return rounds_table(rounds, columns, [*bottlenecks(rounds), *notes_of_load(rounds)])


def used(rounds: Rounds[Measurement], name: str, shares: Sequence[Figure]) -> float:
    """CPUs, in the median round."""
    return rounds.median(name, lambda measurement: sum(share(measurement) for share in shares))


def bottlenecks(rounds: Rounds[Measurement]) -> list[str]:
    """Where a rate says more of something else than of the server: what its CPU is for."""
    cpus = len(os.sched_getaffinity(0))
    notes = []
    for what, shares, limit in (
        ("the client", SHARES[1:2], 1),
        ("the backend", SHARES[2:3], 1),
        (f"the machine's {cpus} CPUs together", SHARES, cpus),
    ):
        beside = [name for name in rounds.results if used(rounds, name, shares) > ALL_OF_IT * limit]
        if beside:
            names = ", ".join(beside)
            notes.append(f"{what} had no CPU left beside {names}: compare CPU, not rates")
    return notes
