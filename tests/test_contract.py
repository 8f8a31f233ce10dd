"""The contract, scenario by scenario, on every path that bytes can take (see `paths`)."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path as Directory
from typing import Any, TypeAlias

import gevent
import pytest
from fd_reuse import assert_untouched, close_and_reuse
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from mishaps import MISHAPS, described, source_was_shut_down
from paths import (
    BETWEEN_SOCKETS,
    LIVE,
    LIVE_SINKS,
    LIVE_SOURCES,
    PATHS,
    SINKS,
    SOURCES,
    FileSinkEnd,
    Path,
    SinkEnd,
    SourceEnd,
)
from peers import (
    MORE_THAN_BUFFERS,
    Line,
    Pairs,
    Spawn,
    error_of,
    fill,
    is_readable,
    pattern,
    plain_loop,
    poll,
    receive,
    send_script,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice._hub import SCRATCH_SIZE, SMALL_READ
from gsplice._pipe import PIPE_CAPACITY

#: Seconds of a time-out that is to come; and many times as many, for what is not.
SHORT = 0.02
#: Each a border of something: nothing, a byte, a small read, the scratch buffer, many pipes.
SIZES = (
    *(0, 1, SMALL_READ - 1, SMALL_READ, SMALL_READ + 1),
    *(SCRATCH_SIZE - 1, SCRATCH_SIZE, SCRATCH_SIZE + 1),
    *(PIPE_CAPACITY - 1, PIPE_CAPACITY, PIPE_CAPACITY + 1, 3_000_017),
)
COUNTS = (1, 5, SMALL_READ, 100_000, 600_010, 600_011, 600_012)
STREAM = pattern(600_011, 6)
#: More than all buffers on the way and a pipe hold: whoever sends it to nobody who reads stalls.
FLOOD = pattern(MORE_THAN_BUFFERS, 7)


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

    def stalled(self, spawn: Spawn, **options: Any) -> gsplice.Transfer:
        """Return a transfer that is under way, and waits for a sink that nobody drains."""
        self.source.feed(spawn, FLOOD)
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
        assert self.sink.drain(transfer.moved) + transfer.undelivered + rest == data


@pytest.fixture
def ends(path: Path, pairs: Pairs, tmp_path: Directory) -> Iterator[Ends]:
    """Make both ends of the path; every byte that goes through them has to be in the figures."""
    make_source = contextlib.contextmanager(SOURCES[path.source].make)
    make_sink = contextlib.contextmanager(SINKS[path.sink].make)
    with make_sink(pairs, tmp_path) as sink, make_source(pairs, tmp_path) as source:
        yield Ends(path, source, sink)


Before: TypeAlias = gsplice.Stats


def moved_since(before: Before) -> tuple[int, int]:
    """Return how many bytes have been spliced and copied since *before*."""
    now = gsplice.stats()
    return now.spliced - before.spliced, now.copied - before.copied


# Every byte, once, in order.


@on(PATHS)
@pytest.mark.parametrize("size", SIZES)
def test_a_stream_of_any_size_arrives_whole(
    ends: Ends, path: Path, spawn: Spawn, size: int
) -> None:
    before = gsplice.stats()
    data = pattern(size)
    ends.source.feed(spawn, data)
    received = ends.draining(spawn, size)

    transfer = ends.transfer().start()
    assert transfer.get() == transfer.moved == size

    assert received() == data
    ends.sink.end()
    assert len(ends.sink.drain_all()) in (0, size), "and nothing else comes"
    assert transfer.undelivered == b""
    assert moved_since(before) == (transfer.spliced, size - transfer.spliced)
    if not path.splices or not size:
        assert transfer.spliced == 0
    elif path.mode == "splice":
        assert transfer.spliced == size - ends.source.ahead
    elif size == SIZES[-1]:
        assert transfer.spliced > size // 2


def _in_pieces(data: bytes, chance: random.Random, largest: int) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.randint(1, largest)
        yield data[at : at + size]
        at += size


@on(LIVE)
@pytest.mark.parametrize("largest", [60, 3_000, 40_000, 400_000])
def test_any_rhythm_of_writes_and_reads_arrives_whole(
    ends: Ends, spawn: Spawn, largest: int
) -> None:
    chance = random.Random(largest)
    data = pattern(min(largest * 60, 1_500_000), key=largest)

    def send() -> None:
        for piece in _in_pieces(data, chance, largest):
            ends.source.peer.sendall(piece)
            if chance.random() < 0.2:
                gevent.sleep(chance.choice([0, 0, 0.001]))

    arrived = bytearray()

    def read() -> None:
        while len(arrived) < len(data):
            size = min(chance.choice([1, 100, 5000, 100_000]), len(data) - len(arrived))
            arrived.extend(receive(ends.sink.peer, size))
            if chance.random() < 0.05:
                gevent.sleep(chance.choice([0, 0, 0.001]))

    spawn(send)
    transfer = ends.transfer(len(data)).start()
    receive(ends.sink.peer, len(ends.sink.before))
    reading = spawn(read)
    assert transfer.get() == len(data)
    reading.get()
    assert bytes(arrived) == data


@on(PATHS)
@pytest.mark.parametrize("count", COUNTS)
def test_count_is_the_most_that_is_moved_and_the_rest_stays(
    ends: Ends, spawn: Spawn, count: int
) -> None:
    expected = min(count, len(STREAM))
    ends.source.feed(spawn, STREAM)
    received = ends.draining(spawn, expected)
    assert ends.transfer(count).start().get() == expected
    assert received() == STREAM[:expected]
    assert ends.source.rest(len(STREAM) - expected) == STREAM[expected:]


@on(LIVE_SINKS)
def test_the_end_of_file_comes_behind_every_byte_though_the_sink_stalled(
    ends: Ends, spawn: Spawn
) -> None:
    transfer = ends.stalled(spawn)
    received = spawn(ends.sink.drain, len(FLOOD))
    assert transfer.get() == len(FLOOD)
    assert received.get() == FLOOD


@on(PATHS)
def test_neither_end_is_shut_down_or_closed(ends: Ends, path: Path, spawn: Spawn) -> None:
    ends.source.feed(spawn, b"hello")
    assert ends.transfer().start().get() == 5
    assert ends.sink.drain(5) == b"hello"
    if SINKS[path.sink].is_live:
        ends.sink.socket.sendall(b" and more")
        assert receive(ends.sink.peer, 9) == b" and more"
        ends.sink.peer.sendall(b"question")
        assert receive(ends.sink.socket, 8) == b"question"
    else:
        ends.sink.thing.write(b" and more")
        ends.sink.thing.flush()
        assert ends.sink.drain_all() == b"hello and more"
    if SOURCES[path.source].is_live:
        ends.source.socket.sendall(b"answer")
        assert receive(ends.source.peer, 6) == b"answer"
    else:
        assert ends.source.thing.read() == b""


# Ended before its end: what was taken is moved or undelivered, and the ends are free.


@on(LIVE_SINKS)
def test_stop_while_the_sink_is_stalled_loses_nothing(ends: Ends, spawn: Spawn) -> None:
    before = gsplice.stats()
    transfer = ends.stalled(spawn)
    transfer.stop()
    ends.assert_free()
    with pytest.raises(gsplice.TransferStopped):
        transfer.get()
    assert sum(moved_since(before)) == transfer.moved > 0
    ends.assert_accounted(FLOOD, transfer)


@on(LIVE_SOURCES)
def test_stop_while_the_source_is_silent_leaves_it_to_others_at_once(
    ends: Ends, spawn: Spawn
) -> None:
    transfer = ends.idle()
    transfer.stop()
    ends.assert_free()
    assert (transfer.moved, transfer.undelivered) == (0, b"")
    ends.source.feed(spawn, b"hello")
    assert ends.source.rest(5) == b"hello"


@on(PATHS)
def test_stop_before_the_start_takes_nothing(ends: Ends, spawn: Spawn) -> None:
    ends.source.feed(spawn, b"hello")
    transfer = ends.transfer()
    transfer.stop()
    for end in (transfer.start().get, transfer.run):
        with pytest.raises(gsplice.TransferStopped):
            end()
    ends.assert_free()
    assert ends.source.rest(5) == b"hello"


@on(LIVE_SINKS)
@pytest.mark.parametrize("how", ["kill", "gevent.Timeout", "any exception"])
def test_an_exception_thrown_at_a_caller_whose_sink_is_stalled_loses_nothing(
    ends: Ends, spawn: Spawn, how: str
) -> None:
    ends.source.feed(spawn, FLOOD)
    transfer = ends.transfer()
    errors = {"kill": gevent.GreenletExit, "gevent.Timeout": gevent.Timeout}
    error = errors.get(how, Interruption)()
    caller = spawn(_caught, transfer, error)
    wait_until(lambda: waits_to_write(ends.sink.socket))
    caller.kill(error, timeout=5)
    assert caller.value is error, "it comes out as it was"
    ends.assert_free()
    ends.assert_accounted(FLOOD, transfer)


@on(LIVE_SOURCES)
def test_kill_of_a_caller_whose_source_is_silent(ends: Ends, spawn: Spawn) -> None:
    transfer = ends.transfer()
    caller = spawn(transfer.run)
    wait_until(lambda: waits_to_read(ends.source.socket))
    caller.kill(timeout=5)
    assert isinstance(caller.value, gevent.GreenletExit)
    ends.assert_free()
    ends.source.feed(spawn, b"hello")
    assert ends.source.rest(5) == b"hello"


class Interruption(BaseException):
    """Something that only its own sender knows."""


def _caught(transfer: gsplice.Transfer, error: BaseException) -> BaseException | None:
    try:
        transfer.run()
    except type(error) as caught:
        return caught
    return None


@on(LIVE)
def test_what_is_left_after_each_of_many_stops_goes_on_to_the_next_transfer(
    ends: Ends, path: Path, spawn: Spawn
) -> None:
    chance = random.Random(str(path))
    data = pattern(4_000_000)
    ends.source.feed(spawn, data)
    received = spawn(ends.sink.drain, len(data))
    undelivered, moved = b"", 0
    while moved < len(data):
        if undelivered:  # what the last one had taken: by hand
            ends.sink.socket.sendall(undelivered)
            moved += len(undelivered)
        transfer = ends.transfer(len(data) - moved)
        with gevent.Timeout(chance.randrange(4) / 1000, False):
            transfer.run() if chance.random() < 0.5 else transfer.start().get()
        transfer.stop()
        moved += transfer.moved
        undelivered = transfer.undelivered
    assert received.get() == data


# Time-outs.


@on(LIVE_SOURCES)
def test_a_source_that_is_silent_for_its_own_timeout(ends: Ends) -> None:
    ends.source.socket.settimeout(SHORT)
    began = time.monotonic()
    error = error_of(ends.transfer().run)
    assert time.monotonic() - began >= SHORT * 0.9
    assert isinstance(error, socket.timeout)
    assert "timed out" in str(error)
    assert ends.source.socket.gettimeout() == SHORT
    ends.assert_free()


@on(LIVE_SINKS)
def test_a_sink_that_is_stalled_for_its_own_timeout_loses_nothing(ends: Ends, spawn: Spawn) -> None:
    ends.sink.socket.settimeout(SHORT)
    ends.source.feed(spawn, FLOOD)
    transfer = ends.transfer()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.run()
    ends.assert_free()
    ends.assert_accounted(FLOOD, transfer)


@on(LIVE_SOURCES)
def test_an_idle_transfer_ends_by_its_idle_timeout(ends: Ends, spawn: Spawn) -> None:
    began = time.monotonic()
    transfer = ends.transfer(idle_timeout=SHORT).start()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.get(timeout=5)
    assert time.monotonic() - began >= SHORT * 0.9
    ends.assert_free()
    assert (transfer.moved, transfer.undelivered) == (0, b"")


@on(LIVE_SINKS)
def test_a_stalled_transfer_ends_by_its_idle_timeout_and_loses_nothing(
    ends: Ends, spawn: Spawn
) -> None:
    ends.source.feed(spawn, FLOOD)
    transfer = ends.transfer(idle_timeout=2 * SHORT).start()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.get(timeout=5)
    ends.assert_free()
    ends.assert_accounted(FLOOD, transfer)


# Errors: those of recv and sendall.


@on(BETWEEN_SOCKETS)
@pytest.mark.parametrize("mishap", MISHAPS.values(), ids=MISHAPS)
def test_the_error_is_the_one_of_a_plain_loop(
    path: Path, pairs: Pairs, tmp_path: Directory, spawn: Spawn, mishap: Any
) -> None:
    found = []
    for is_plain in (True, False):
        make_source = contextlib.contextmanager(SOURCES[path.source].make)
        make_sink = contextlib.contextmanager(SINKS[path.sink].make)
        with make_source(pairs, tmp_path) as source, make_sink(pairs, tmp_path) as sink:
            ends = Ends(path, source, sink)
            mishap(ends.line, spawn)
            if is_plain:
                error = error_of(plain_loop, source.thing, sink.thing)
            else:
                error = error_of(ends.transfer().run)
            found.append(described(error))
    assert found[0] == found[1]
    if path.source.startswith("TCP") and path.sink.startswith("TCP"):
        assert issubclass(found[1][0], ConnectionError) or mishap is source_was_shut_down


@on(BETWEEN_SOCKETS)
@pytest.mark.parametrize("size", [5, len(STREAM)])
def test_what_a_broken_sink_has_not_accepted_is_kept(ends: Ends, spawn: Spawn, size: int) -> None:
    data = STREAM[:size]
    ends.source.feed(spawn, data)
    socket.socket.shutdown(ends.sink.socket, socket.SHUT_WR)
    transfer = ends.transfer().start()
    with pytest.raises(OSError, match=r"Broken pipe|EOF occurred"):
        transfer.get()
    assert transfer.moved == 0
    assert transfer.undelivered
    assert transfer.undelivered + ends.source.rest(size - len(transfer.undelivered)) == data


@on(PATHS)
@pytest.mark.parametrize("which", ["source", "sink"])
def test_an_end_that_was_closed_before_the_start(
    ends: Ends, path: Path, spawn: Spawn, which: str
) -> None:
    ends.source.feed(spawn, b"hello", ends=False)
    if SOURCES[path.source].is_live:
        wait_until(lambda: ends.source.ahead or is_readable(ends.source.socket))
    transfer = ends.transfer()
    with contextlib.suppress(BrokenPipeError):
        getattr(ends, which).close()
    error = error_of(transfer.start().get)
    assert isinstance(error, OSError | ValueError)
    kind = (SOURCES if which == "source" else SINKS)[getattr(path, which)]
    if kind.is_socket and kind.is_fd:
        assert error.errno == errno.EBADF
    assert transfer.moved == 0
    if which == "sink":
        taken = transfer.undelivered
        assert taken + ends.source.rest(5 - len(taken)) == b"hello"


@on([path for path in LIVE_SOURCES if SOURCES[path.source].is_socket])
def test_closing_the_source_of_a_silent_transfer_never_touches_the_next_of_that_number(
    ends: Ends, path: Path
) -> None:
    transfer = ends.idle()
    other = close_and_reuse(ends.source.socket)
    error = error_of(transfer.get, timeout=5)
    assert_untouched(*other)
    assert isinstance(error, OSError | ValueError)
    if SOURCES[path.source].is_fd:
        assert type(error) is socket.cancel_wait_ex
    assert (transfer.moved, transfer.undelivered) == (0, b"")


@on([path for path in LIVE_SINKS if SINKS[path.sink].is_socket])
def test_closing_the_sink_of_a_stalled_transfer_never_touches_the_next_of_that_number(
    ends: Ends, path: Path, spawn: Spawn
) -> None:
    transfer = ends.stalled(spawn)
    other = close_and_reuse(ends.sink.socket)
    error = error_of(transfer.get, timeout=5)
    assert_untouched(*other)
    assert isinstance(error, OSError | ValueError)
    if SINKS[path.sink].is_fd:
        assert type(error) is socket.cancel_wait_ex
    taken = transfer.moved + len(transfer.undelivered)
    rest = ends.source.rest(len(FLOOD) - taken)
    assert FLOOD[transfer.moved :] == transfer.undelivered + rest
    if SINKS[path.sink].is_fd:  # tickets of TLS that nobody reads make the kernel send a RST
        assert ends.sink.drain_all() == FLOOD[: transfer.moved]


@on(BETWEEN_SOCKETS)
def test_a_sink_that_is_closed_while_the_source_is_silent_is_found_out_by_the_next_byte(
    ends: Ends, spawn: Spawn
) -> None:
    transfer = ends.idle()
    other = close_and_reuse(ends.sink.socket)
    ends.source.feed(spawn, b"hello")
    error = error_of(transfer.get, timeout=5)
    assert_untouched(*other)
    assert isinstance(error, OSError | ValueError)
    assert (transfer.moved, transfer.undelivered) == (0, b"hello")


@on([path for path in LIVE if SOURCES[path.source].is_socket])
def test_a_source_that_is_closed_while_the_sink_is_stalled_is_found_out_by_the_next_byte(
    ends: Ends, spawn: Spawn
) -> None:
    transfer = ends.stalled(spawn)
    other = close_and_reuse(ends.source.socket)
    received = spawn(error_of, ends.sink.drain, len(FLOOD))
    error = error_of(transfer.get, timeout=5)
    assert_untouched(*other)
    assert isinstance(error, OSError | ValueError)
    assert transfer.undelivered == b"", "the sink has taken all that was there"
    received.kill()


@on([path for path in LIVE_SOURCES if SOURCES[path.source].is_socket])
def test_a_second_reader_of_the_source_is_told(ends: Ends, spawn: Spawn) -> None:
    transfer = ends.idle(count=5)
    with pytest.raises(ConcurrentObjectUseError):
        ends.source.socket.recv(1)
    ends.source.feed(spawn, b"hello")
    assert transfer.get() == 5
    assert ends.sink.drain(5) == b"hello"


@on([path for path in LIVE_SINKS if SINKS[path.sink].is_socket])
def test_a_second_writer_to_a_stalled_sink_is_told(ends: Ends, path: Path, spawn: Spawn) -> None:
    transfer = ends.stalled(spawn)
    if SINKS[path.sink].is_fd:
        fill(ends.sink.socket)
    with pytest.raises(ConcurrentObjectUseError):
        ends.sink.socket.sendall(FLOOD)
    transfer.stop()


@on([path for path in LIVE_SOURCES if SOURCES[path.source].is_socket])
def test_a_source_that_another_greenlet_reads(ends: Ends, spawn: Spawn) -> None:
    reading = spawn(receive, ends.source.socket, 5)
    wait_until(lambda: waits_to_read(ends.source.socket))
    with pytest.raises(ConcurrentObjectUseError):
        ends.transfer().run()
    ends.source.feed(spawn, b"hello")
    assert reading.get() == b"hello"


# Urgent data.

#: What a client sends: plain bytes, and between them the urgent ones.
SCRIPTS: dict[str, tuple[bytes, ...]] = {
    "at the start": (b"", b"hello, world"),
    "in the middle": (b"hello", b"world"),
    "right before the end": (b"hello, world", b""),
    "nothing else": (b"", b""),
    "twice": (b"one", b"two", b"three"),
    "twice in a row": (b"one", b"", b"two"),
    "three, first and last": (b"", b"one", b"two", b""),
    "in a stream": (pattern(50_000, 1), pattern(50_000, 2)),
    "at the end of a stream": (pattern(100_000, 3), b""),
}
URGENT = [
    path
    for path in PATHS
    if path.source in ("TCP", "TCP6", "reader", "own recv") and SINKS[path.sink].is_live
]


@on(URGENT)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_urgent_bytes_are_as_through_a_plain_loop(
    ends: Ends, pairs: Pairs, spawn: Spawn, script: tuple[bytes, ...]
) -> None:
    plain = Line(*pairs(), *pairs())
    for client, source in ((plain.client, plain.source), (ends.source.peer, ends.source.socket)):
        spawn(send_script, client, script)
        wait_until(lambda: poll(source) & 0x2000)  # noqa: B023 # POLLRDHUP: all is there
    moved = plain_loop(plain.source, plain.sink)
    assert ends.transfer().run() == moved
    assert ends.sink.drain(moved) == receive(plain.backend, moved)
