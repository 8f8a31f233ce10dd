"""Another greenlet closes or uses a socket of a transfer, and its fd number is used again.

What lands between the readiness of a socket and the system call for it is in `test_races`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from fd_reuse import assert_untouched, close_and_reuse
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    Line,
    MakeLine,
    Pairs,
    Spawn,
    error_of,
    receive,
    wait_until,
    wait_until_it_waits,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice import _kernel

IDLE, STALLED = "idle", "stalled"


def begin(ends: Line, spawn: Spawn, state: str, move: Callable[[], Any]) -> gevent.Greenlet:
    """Have a greenlet *move* bytes, and wait until it is in the *state*; it returns the error."""
    if state == STALLED:
        spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    moving = spawn(error_of, move)
    wait_until_it_waits(ends, has_stalled=state == STALLED)
    return moving


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", [IDLE, STALLED])
@pytest.mark.parametrize("which", ["source", "sink"])
def test_closing_a_side_of_a_relay_never_touches_the_next_connection_of_that_number(
    line: MakeLine,
    spawn: Spawn,
    which: str,
    state: str,
    mode: str,
    kind: str,
) -> None:
    ends = line(kind)
    moving = begin(ends, spawn, state, lambda: gsplice.relay(ends.source, ends.sink, mode=mode))
    closed = getattr(ends, which)
    waited_for = which == "sink" or state == IDLE  # a relay reads from both

    other = close_and_reuse(closed)
    try:
        if not waited_for:  # it finds out when it needs it
            if state == IDLE:
                ends.client.sendall(b"hello")
            else:
                spawn(error_of, receive, ends.backend)
        error = moving.get(timeout=5)
    finally:
        assert_untouched(*other)

    assert isinstance(error, OSError | ValueError)
    if kind != "tls":
        assert error.errno == errno.EBADF
    if waited_for and kind != "tls":
        assert type(error) is socket.cancel_wait_ex
    assert gsplice.stats().pipes == gsplice.stats().idle_pipes


@pytest.mark.parametrize("state", [IDLE, STALLED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("both_ways", [False, True], ids=["copy", "relay"])
def test_closing_both_sides_at_once(
    line: MakeLine, spawn: Spawn, both_ways: bool, mode: str, state: str
) -> None:
    ends = line()
    function = gsplice.relay if both_ways else gsplice.copy
    moving = begin(ends, spawn, state, lambda: function(ends.source, ends.sink, mode=mode))
    ends.source.close()
    ends.sink.close()
    assert moving.get(timeout=5).errno == errno.EBADF


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("which", ["source", "sink"])
@pytest.mark.parametrize("state", [IDLE, STALLED])
def test_shutdown_by_another_greenlet_ends_what_waits_for_it(
    line: MakeLine, spawn: Spawn, state: str, which: str, how: int
) -> None:
    ends = line()
    moving = begin(ends, spawn, state, lambda: gsplice.copy(ends.source, ends.sink))
    getattr(ends, which).shutdown(how)
    stops_reading = state == IDLE and which == "source" and how != socket.SHUT_WR
    stops_writing = state == STALLED and which == "sink" and how != socket.SHUT_RD
    if stops_reading or stops_writing:
        assert type(moving.get(timeout=5)) is socket.cancel_wait_ex
    else:
        gevent.sleep(0)
        gevent.sleep(0)
        assert not moving.ready()


@pytest.mark.parametrize("mode", MODES)
def test_end_of_a_relay_that_another_greenlet_reads(
    line: MakeLine, spawn: Spawn, mode: str
) -> None:
    ends = line()
    reading = spawn(receive, ends.source, 5)
    wait_until(lambda: waits_to_read(ends.source))
    with pytest.raises(ConcurrentObjectUseError):
        gsplice.relay(ends.source, ends.sink, mode=mode)
    ends.client.sendall(b"hello")
    assert reading.get() == b"hello"


@pytest.mark.parametrize("mode", MODES)
def test_sink_that_another_greenlet_writes_to(line: MakeLine, spawn: Spawn, mode: str) -> None:
    ends = line()
    theirs = bytes(MORE_THAN_BUFFERS)
    writing = spawn(ends.sink.sendall, theirs)
    wait_until(lambda: waits_to_write(ends.sink))
    ends.client.sendall(b"hello")
    transfer = gsplice.Transfer(ends.source, ends.sink, mode=mode).start()
    with pytest.raises(ConcurrentObjectUseError):
        transfer.get(timeout=5)
    assert (transfer.moved, transfer.undelivered) == (0, b"hello")
    assert receive(ends.backend, len(theirs)) == theirs
    writing.get()


def test_two_transfers_from_one_source(line: MakeLine) -> None:
    ends = line()
    first = gsplice.Transfer(ends.source, ends.sink, 5).start()
    second = gsplice.Transfer(ends.source, ends.sink, 5).start()
    with pytest.raises(ConcurrentObjectUseError):
        second.get()
    ends.client.sendall(b"hello")
    assert first.get() == 5


def test_two_transfers_into_one_sink_that_has_room(pairs: Pairs, line: MakeLine) -> None:
    ends = line()
    other_client, other_source = pairs()
    first = gsplice.Transfer(ends.source, ends.sink, 5).start()
    second = gsplice.Transfer(other_source, ends.sink, 5).start()
    ends.client.sendall(b"first")
    assert receive(ends.backend, 5) == b"first"
    other_client.sendall(b"other")
    assert receive(ends.backend, 5) == b"other"
    assert (first.get(), second.get()) == (5, 5)


def test_reader_that_another_greenlet_reads(line: MakeLine, spawn: Spawn) -> None:
    ends = line()
    with ends.source.makefile("rb") as reader:
        reading = spawn(reader.read, 5)
        wait_until(lambda: waits_to_read(ends.source))
        error = error_of(gsplice.copy, reader, ends.sink)
        assert isinstance(error, ConcurrentObjectUseError | RuntimeError)
        ends.client.sendall(b"hello")
        assert reading.get() == b"hello"


def test_socket_closed_under_its_reader_goes_on_until_the_reader_is_closed(
    line: MakeLine, spawn: Spawn
) -> None:
    ends = line()
    with ends.source.makefile("rb") as reader:
        ends.source.close()  # `closed` is true now, but the fd is the reader's as well
        spawn(ends.client.sendall, b"hello")
        assert gsplice.copy(reader, ends.sink, 5) == 5
        assert receive(ends.backend, 5) == b"hello"


def test_fd_closed_behind_the_back_of_its_socket(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = _kernel.splice

    def counting(*args: Any) -> int:
        calls.append(args[0])
        return original(*args)

    monkeypatch.setattr(_kernel, "splice", counting)
    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
    wait_until(lambda: waits_to_read(ends.source))
    ends.source.close()
    with pytest.raises(OSError, match="closed in another greenlet"):
        transfer.get(timeout=5)
    assert all(fd >= 0 for fd in calls), "a closed socket was asked"
