"""What a scenario of the contract has to hand: both ends of its path, made for it alone."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterator
from pathlib import Path as Directory
from typing import Any, TypeAlias

import pytest
from paths import SINKS, SOURCES, FileSinkEnd, Path, SinkEnd, SourceEnd
from peers import (
    Line,
    Pairs,
    Spawn,
    pattern,
    poll,
    set_buffers,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice

STREAM = pattern(600_011, 6)
#: What each end of a connection may keep in each direction in a flood; the kernel doubles it.
BUFFER = 1 << 17
#: More than four such ends and a pipe hold: whoever sends it to nobody who reads stalls.
FLOOD = pattern(3 << 20, 7)


def on(paths: list[Path]) -> Any:
    """Run a scenario on each of the *paths*."""
    return pytest.mark.parametrize("path", paths, ids=str)


class Ends:
    """Both ends of a path, made for one test."""

    def __init__(self, path: Path, source: SourceEnd, sink: SinkEnd) -> None:
        self.source = source
        self.sink = sink
        self._mode = path.mode

    @property
    def line(self) -> Line:
        """What the path is where it has a peer at both ends."""
        return Line(self.source.peer, self.source.socket, self.sink.socket, self.sink.peer)

    def transfer(self, count: int | None = None, **options: Any) -> gsplice.Transfer:
        """Return a transfer between them."""
        return gsplice.Transfer(
            self.source.thing, self.sink.thing, count, mode=self._mode, **options
        )

    def flood(self, spawn: Spawn) -> None:
        """Have more come than all on the way to a sink that nobody drains may keep."""
        socks = (getattr(end, "socket", None) for end in (self.source, self.sink))
        peers = (getattr(end, "peer", None) for end in (self.source, self.sink))
        for sock in filter(None, (*socks, *peers)):
            set_buffers(sock, BUFFER)
        self.source.feed(spawn, FLOOD)

    def stalled(self, spawn: Spawn, **options: Any) -> gsplice.Transfer:
        """Return a transfer that is under way, and waits for a sink that nobody drains."""
        self.flood(spawn)
        transfer = self.transfer(**options).start()
        wait_until(lambda: self._is_full() or transfer.ready())
        return transfer

    def _is_full(self) -> bool:
        sock = self.sink.socket
        return waits_to_write(sock) and not poll(sock) & select.POLLOUT

    def idle(self, **options: Any) -> gsplice.Transfer:
        """Return a transfer that is under way, and waits for a source that nobody feeds."""
        transfer = self.transfer(**options).start()
        wait_until(lambda: waits_to_read(self.source.socket) or transfer.ready())
        return transfer

    def draining(self, spawn: Spawn, count: int) -> Callable[[], bytes]:
        """Have the sink drained meanwhile, where it has a peer; return what gives what came."""
        if isinstance(self.sink, FileSinkEnd):
            return lambda: self.sink.drain(count)
        get: Callable[[], bytes] = spawn(self.sink.drain, count).get
        return get

    def assert_free(self) -> None:
        """Check that nothing waits for the ends any more."""
        for end in (self.source, self.sink):
            sock = getattr(end, "socket", None)
            assert sock is None or not (waits_to_read(sock) or waits_to_write(sock))
        now = gsplice.stats()
        assert (now.active, now.pipes) == (0, now.idle_pipes)

    def assert_accounted(self, data: bytes, transfer: gsplice.Transfer) -> None:
        """Check that every byte of *data* is somewhere, once, after *transfer* was ended."""
        taken = transfer.moved + len(transfer.undelivered)
        rest = self.source.rest(len(data) - taken)
        arrived = self.sink.cut_and_drain()
        assert len(arrived) == transfer.moved, "other bytes have gone out than those that count"
        assert arrived + transfer.undelivered + rest == data


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    """Make a directory for the files of all scenarios, each of which writes its own anew."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture
def ends(path: Path, pairs: Pairs, files: Directory) -> Iterator[Ends]:
    """Make both ends of the path; every byte that goes through them has to be in the figures."""
    make_source = contextlib.contextmanager(SOURCES[path.source].make)
    make_sink = contextlib.contextmanager(SINKS[path.sink].make)
    with make_sink(pairs, files) as sink, make_source(pairs, files) as source:
        yield Ends(path, source, sink)


Before: TypeAlias = gsplice.Stats


def moved_since(before: Before) -> tuple[int, int]:
    """Return how many bytes have been spliced and copied since *before*."""
    now = gsplice.stats()
    return now.spliced - before.spliced, now.copied - before.copied
