"""The contract on every path: errors are those of recv and sendall, and nothing is lost by them."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path as Directory
from typing import Any

import pytest
from contract import FLOOD, STREAM, Ends, on
from fd_reuse import assert_untouched, close_and_reuse
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from mishaps import MISHAPS, described, source_was_shut_down
from paths import BETWEEN_SOCKETS, LIVE, LIVE_SINKS, LIVE_SOURCES, PATHS, SINKS, SOURCES, Path
from peers import (
    Pairs,
    Spawn,
    error_of,
    fill,
    is_readable,
    plain_loop,
    receive,
    wait_until,
    waits_to_read,
)


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


@on([path for path in BETWEEN_SOCKETS if SOURCES[path.source].is_fd and SINKS[path.sink].is_fd])
def test_bytes_that_have_come_for_another_greenlet_are_left_to_it(ends: Ends, spawn: Spawn) -> None:
    reading = spawn(receive, ends.source.socket, 5)
    wait_until(lambda: waits_to_read(ends.source.socket))
    ends.source.peer.sendall(b"hello")  # and it has not been woken yet
    with pytest.raises(ConcurrentObjectUseError):
        ends.transfer().run()
    assert reading.get() == b"hello"
