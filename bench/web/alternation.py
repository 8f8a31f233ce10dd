"""One measurement of a server whose process takes turns: a batch with gsplice, a batch without it.

What is timed is what the client sees: from before a request is sent until the last byte of its
answer is there. On a connection that is kept that is all of it: what a server still does for a
request when the answer has gone out, the next one has to wait for. The time of a batch is the
median of its requests', so that one in which the CPU was somebody else's is not counted. Its CPU is
all that the server's process used.

All processes share one CPU. As one request is under way at a time, none of them has to wait for
another, and the time is the sum of what each does. On two CPUs it depends on which of them the
kernel wakes the client: an answer in two pieces takes as long as one in one piece where the client
is awake for the first when the second is sent, and a tenth longer where it is not.

Invariant: a window opens and closes with an answer of the same kind, and the CPU is read at the
same point of it, so there are whole requests in it, each with what comes after its answer.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from bench.machine import OtherLoad
from bench.processes import ProcessFailed
from bench.rounds import turns
from bench.web.cases import Case
from bench.web.measure import Setting, ask, set_up
from bench.web.servers import Server
from bench.web.switched import ORIGINAL, SWITCH, VARIANTS

SKIPPED = 5  # requests after each switch
BATCH = 20
# CPython 3.13 remembers the methods of a class no more once it has been changed a thousand times.
# A switch changes one three times, at the most; a turn has three switches.
MOST_TURNS = 100


@dataclass(frozen=True)
class Batch:
    """Seconds, for each of its requests."""

    time: float
    cpu: float


Turn = Mapping[str, Batch]  # by the variant
Figure = Callable[[Batch], float]


@dataclass(frozen=True)
class Alternation:
    """What one process did, turn by turn."""

    turns: Sequence[Turn]
    other_load: float

    def median(self, variant: str, figure: Figure) -> float:
        return statistics.median(figure(turn[variant]) for turn in self.turns)

    def ratios(self, variant: str, figure: Figure) -> list[float]:
        """How many times less than the original next to it, turn by turn; more is better."""
        return [figure(turn[ORIGINAL]) / figure(turn[variant]) for turn in self.turns]

    def ratio(self, variant: str, figure: Figure) -> float:
        return statistics.median(self.ratios(variant, figure))


def measure(folder: Path, server: Server, case: Case, warmup: float, seconds: float) -> Alternation:
    with on_one_cpu(), set_up(folder, server, case) as setting:
        backend_pids = setting.backend.family() if setting.backend else []
        others = OtherLoad([setting.client.pid, *backend_pids, *setting.front.family()])
        kept = list(_turns(setting, warmup, seconds))
        if not kept:
            raise ProcessFailed(f"the warm-up took all {MOST_TURNS} turns that a process has")
        return Alternation(kept, others.so_far())


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Have the process, and what it starts meanwhile, on one of its CPUs."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _turns(setting: Setting, warmup: float, seconds: float) -> Iterator[Turn]:
    """As many as there is time for, at least one; those that begin in the warm-up are not kept."""
    warm = time.monotonic() + warmup
    for _, taken in groupby(turns(VARIANTS, MOST_TURNS), itemgetter(0)):
        is_warm = time.monotonic() >= warm
        batches = {variant: _batch(setting, variant) for _, variant in taken}
        if is_warm:
            yield batches
            if time.monotonic() >= warm + seconds:
                return


def _batch(setting: Setting, variant: str) -> Batch:
    status = ask(setting.port, f"{SWITCH}{variant}")
    if status != "200":
        raise ProcessFailed(f"it does not switch to {variant}: {status}")
    answer = setting.ask(f"batch {SKIPPED} {BATCH}", 0)
    return Batch(answer["p50"], answer["server_cpu"] / BATCH)
