"""``python tests/pressure.py``: very many relays at once, and very many one after another.

Every byte is checked at both ends (tests/streams.py). What the forwarder holds meanwhile (fds,
watchers, pipes, memory) is looked at from outside, and has to be flat, or back where it was when
the relays are over. A short form of each run is a test (tests/test_pressure.py).

Invariant: a run ends by itself, in time, and so do its processes, whatever happens in them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # as a script it would find only its neighbours

import resource  # noqa: E402

import gsplice  # noqa: E402
from bench.processes import LineProcess, ProcessFailed  # noqa: E402
from bench.usage import Usage  # noqa: E402
from gsplice._pipe import _IDLE_PIPES  # noqa: E402

#: Seconds in which a process has to answer a question that costs it nothing, on a busy machine.
PATIENCE = 60.0
#: Fds of a forwarder that are no relay's: its hub's, listeners, pipes in the pool, and those of
#: relays that have stalled.
SPARE_FDS = 200
#: What each connection of a wave may seem to have left behind: far less than the least leak, of
#: one object, or one page. It was 0.3 blocks, 90 bytes and, in the first waves, 8 KiB of RSS; from
#: the third wave on, next to nothing.
BLOCKS_KEPT = 0.5
BYTES_KEPT = 512
RSS_KEPT = 2048
#: The socket to the target, which a server has before there is a client for it. It has none before
#: the first one, nor where it has accepted as many at once as it does, and nobody else was left.
RESERVED = 1
#: Of the relays at once, so many of a hundred end in an object in the forwarder's process, and
#: have one fd; the others are between two sockets.
OBJECTS_PERCENT = 2

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(gsplice.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    ),
}


class Role(LineProcess):
    """A process of ``tests/load.py``; threads may take turns in asking it."""

    def __init__(self, name: str, *arguments: object) -> None:
        command = [sys.executable, str(REPOSITORY / "tests/load.py"), name, *map(str, arguments)]
        super().__init__(command, ENVIRONMENT)
        self._turn = threading.Lock()

    def ask(self, *words: object, seconds: float = PATIENCE) -> dict[str, Any]:
        with self._turn:
            self.tell(" ".join(map(str, words)))
            answer: dict[str, Any] = json.loads(self.answer(seconds))
            return answer


@dataclass(frozen=True)
class Sample:
    """What the forwarder held at a moment."""

    seconds: float
    rss: int
    fds: int
    pipes: int
    watchers: int
    #: In use of Python's own memory (blocks), and of what comes from malloc (bytes), which is
    #: larger objects and what C code has. What either keeps for later is left out; it is in `rss`.
    blocks: int
    allocated: int
    connections: int
    accepted: int

    @classmethod
    def of(cls, forwarder: Role, begun: float) -> Sample:
        figures = forwarder.ask("figures")
        usage = Usage.of([forwarder.pid])
        return cls(
            seconds=time.monotonic() - begun,
            rss=usage.rss,
            fds=usage.fds.total(),
            pipes=figures["pipes"],
            watchers=figures["watchers"] or _polled(forwarder.pid),
            blocks=figures["blocks"],
            allocated=figures["allocated"],
            connections=figures["connections"],
            accepted=figures["accepted"],
        )


def _polled(pid: int) -> int:
    """Return how many fds the kernel polls for a process, when it has said which (or is too busy).

    libuv says so right before it waits, which is after the answer to the last question.
    """
    deadline = time.monotonic() + 1
    while not _is_asleep(pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    polled = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "eventpoll" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                polled += Path(f"/proc/{pid}/fdinfo/{fd}").read_text().count("tfd:")
    return polled


def _is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


class Site:
    """A forwarder with a backend behind it and clients in front of it."""

    def __init__(self, stack: contextlib.ExitStack, user: int | None = None) -> None:
        self.backend = stack.enter_context(Role("backend"))
        port = self.backend.wait_until_ready()
        users = () if user is None else (user,)
        self.forwarder = stack.enter_context(Role("forwarder", port, *users))
        self.port, self.service_port = self.forwarder.wait_until_ready().split()
        self.clients = stack.enter_context(Role("clients"))
        self.clients.wait_until_ready()
        self.begun = time.monotonic()

    def sample(self) -> Sample:
        return Sample.of(self.forwarder, self.begun)

    def at_rest(self) -> Sample:
        """Return what the forwarder holds once all relays are over."""
        deadline = time.monotonic() + PATIENCE
        while self._active():
            if time.monotonic() > deadline:
                raise ProcessFailed(f"there are still {self._active()} transfers")
            time.sleep(0.02)
        self.forwarder.ask("collect")
        return self.sample()

    def _active(self) -> int:
        figures = self.forwarder.ask("figures")
        return int(figures["active"] + figures["connections"])

    @contextlib.contextmanager
    def sampled(self, every: float) -> Iterator[list[Sample]]:
        """Sample from time to time, as long as the block lasts."""
        samples: list[Sample] = []
        over = threading.Event()
        failures: list[Exception] = []

        def sample() -> None:
            try:
                while not over.wait(every):
                    samples.append(self.sample())
            except Exception as failure:
                failures.append(failure)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield samples
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]


@dataclass
class Run:
    """What a run has shown: *count* connections, or so many in each wave."""

    name: str
    count: int
    before: Sample
    samples: list[Sample] = field(default_factory=list)
    #: At rest: after each wave.
    after: list[Sample] = field(default_factory=list)
    #: Of many at once: when all were there, halfway.
    at_half: list[Sample] = field(default_factory=list)
    clients: dict[str, int] = field(default_factory=dict)
    backend: dict[str, int] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def finish(self, site: Site, answers: list[dict[str, Any]]) -> None:
        """Put together what the processes say at the end."""
        for answer in answers:
            self.clients = dict(Counter(self.clients) + Counter(answer["counts"]))
            self.complaints += answer["complaints"]
        self.stats = site.forwarder.ask("figures")
        tally = site.backend.ask("tally")
        deadline = time.monotonic() + PATIENCE
        expected = sum(self.clients.values()) - sum(self.stats["services"].values())
        while sum(tally["counts"].values()) < expected and time.monotonic() < deadline:
            time.sleep(0.05)  # it has yet to read what the forwarder has delivered
            tally = site.backend.ask("tally")
        self.backend = dict(Counter(tally["counts"]) + Counter(self.stats["services"]))
        self.complaints += tally["complaints"] + self.stats["complaints"]
        for process in (site.backend, site.forwarder, site.clients):
            if complaint := process.last_complaint():
                self.complaints.append(complaint)

    def rss_per_connection(self) -> float:
        """Return by how many bytes memory grows with each connection, once it is warm."""
        warm = [each for each in (*self.samples, *self.after) if each.accepted > self.count / 5]
        return statistics.linear_regression(
            [each.accepted for each in warm], [each.rss for each in warm]
        ).slope

    def is_flat(self) -> bool:
        """Whether the last wave has left nothing behind that was not there after the one before.

        What is in use is exact, and tells of every leak. RSS tells of memory that is neither
        Python's nor malloc's, but also of what both keep for later: one wave alone proves nothing
        by it, as it may be the one for which they take some more.
        """
        if len(self.after) < 2:
            return False
        before, now = self.after[-2:]
        return (
            now.blocks - before.blocks < self.count * BLOCKS_KEPT
            and now.allocated - before.allocated < self.count * BYTES_KEPT
            and now.rss - before.rss < self.count * RSS_KEPT
        )

    def leftovers(self) -> list[str]:
        """Return what was held at rest that was not before, the pool's pipes aside."""
        return [
            f"left over: {rest}, and before it was {self.before}"
            for rest in self.after
            if not 0 <= rest.fds - self.before.fds - 2 * rest.pipes <= RESERVED
            or rest.watchers != self.before.watchers
            or rest.pipes > _IDLE_PIPES
        ]

    def seconds(self) -> float:
        return self.after[-1].seconds


def relays_that_fit(wanted: int) -> int:
    """Return how many relays at once the fds of a process allow, at most *wanted*."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    fds_each = 2 - OBJECTS_PERCENT / 100
    return min(wanted, int((most - SPARE_FDS) / fds_each))


def at_once(relays: int, waves: int = 2, every: float = 1.0, until_flat: bool = False) -> Run:
    """Have *relays* in one process, with traffic on each; then all of it again, in *waves*.

    :param until_flat: end with the first wave that has left nothing behind.
    """
    others = relays * OBJECTS_PERCENT // 100
    stalled = min(relays // 20, 50)
    with contextlib.ExitStack() as stack:
        site = Site(stack)
        run = Run("at once", relays, site.sample())
        answers = []
        with site.sampled(every) as run.samples:
            for first in range(0, waves * relays, relays):
                words = (site.port, others, site.service_port, first, relays, stalled)
                site.clients.ask("until_half", *words, seconds=300)
                run.at_half.append(site.sample())
                answers.append(site.clients.ask("to_the_end", seconds=300))
                run.after.append(site.at_rest())
                if until_flat and run.is_flat():
                    break
        run.finish(site, answers)
    return run


def in_turn(
    connections: int,
    together: int = 64,
    waves: int = 1,
    every: float = 1.0,
    until_flat: bool = False,
) -> Run:
    """Have *connections* one after another, of every kind and ending, *together* at a time.

    Then all of it again, in *waves*; see `at_once`.
    """
    with contextlib.ExitStack() as stack:
        site = Site(stack)
        run = Run("in turn", connections, site.sample())
        answers = []
        with site.sampled(every) as run.samples:
            for first in range(0, waves * connections, connections):
                words = (site.port, first, connections, together)
                answers.append(site.clients.ask("in_turn", *words, seconds=540))
                run.after.append(site.at_rest())
                if until_flat and run.is_flat():
                    break
        run.finish(site, answers)
    return run


# What is shown of it.


def report(run: Run) -> str:
    lines = [f"{run.count} connections {run.name}, in {run.seconds():.0f} s"]
    stats = {name: run.stats[name] for name in ("spliced", "copied", "fallbacks", "cpu")}
    lines.append(f"  clients {run.clients}, backends {run.backend}")
    lines.append(f"  forwarder {stats}")
    moments = [("before", run.before)]
    for number, (half, after) in enumerate(zip(run.at_half, run.after, strict=False), 1):
        moments += [(f"all there, {number}", half), (f"at rest, {number}", after)]
    if not run.at_half:
        moments += [(f"at rest, {number}", after) for number, after in enumerate(run.after, 1)]
    for name, sample in moments:
        lines.append(
            f"  {name:12} {sample.fds:6} fds {sample.watchers:6} watchers {sample.pipes:4} pipes "
            f"{sample.rss / 2**20:7.1f} MiB {sample.allocated / 2**20:7.1f} MiB of malloc "
            f"{sample.blocks:8} blocks "
            f"{sample.connections:6} connections"
        )
    if run.samples and not run.at_half:
        for name in ("fds", "watchers", "pipes", "rss"):
            values = [getattr(sample, name) for sample in run.samples]
            lines.append(f"  {name}: {min(values)} to {max(values)}")
        lines.append(f"  memory grows by {run.rss_per_connection():.1f} bytes a connection")
    lines += [f"  wrong: {complaint}" for complaint in run.complaints + run.leftovers()]
    return "\n".join(lines)


def draw(run: Run, path: Path) -> None:
    """Draw what the forwarder held, over time, as an SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"
    by_time = bool(run.at_half)
    figure, axes = pyplot.subplots(5, 1, sharex=True, figsize=(7, 8), layout="constrained")
    samples = [run.before, *run.samples, run.after[-1]]
    places = [sample.seconds if by_time else sample.accepted for sample in samples]
    series: list[tuple[str, Callable[[Sample], float]]] = [
        ("fds", lambda sample: sample.fds),
        ("watchers", lambda sample: sample.watchers),
        ("pipes", lambda sample: sample.pipes),
        ("RSS, MiB", lambda sample: sample.rss / 2**20),
        ("blocks in use, thousands", lambda sample: sample.blocks / 1000),
    ]
    for plot, (name, value) in zip(axes, series, strict=True):
        values = [value(sample) for sample in samples]
        plot.plot(places, values, linewidth=1)
        plot.set_ylabel(name.replace(", ", ",\n"))
        plot.set_ylim(0, 1.15 * max(values))
        plot.yaxis.get_major_locator().set_params(integer=True)
        plot.grid(alpha=0.3)
    axes[0].set_title(f"{run.count:,} connections {run.name}: the forwarder")
    axes[-1].set_xlabel("seconds" if by_time else "connections so far")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--relays", type=int, default=10_000, help="at once (default: 10000)")
    options.add_argument("--connections", type=int, default=100_000, help="(default: 100000)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    options.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw them there")
    chosen = options.parse_args()
    relays = relays_that_fit(chosen.relays)
    if relays < chosen.relays:
        print(f"the limit of fds allows {relays} relays, not {chosen.relays}")
    runs = []
    for work in (lambda: at_once(relays, waves=3), lambda: in_turn(chosen.connections)):
        runs.append(work())
        print(report(runs[-1]), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    if chosen.pictures:
        for run in runs:
            draw(run, chosen.pictures / f"pressure-{run.name.replace(' ', '-')}.svg")
    return 1 if any(run.complaints or run.leftovers() for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
