"""Another greenlet closes or uses a socket of a transfer, and its fd number is used again."""

from __future__ import annotations

import errno
import os
import socket as standard_socket
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    Line,
    MakeLine,
    Pair,
    Pairs,
    Spawn,
    connected,
    error_of,
    fill,
    pattern,
    peeked,
    receive,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice import _gevent, _kernel
from gsplice._pump import Pump

IDLE, STALLED = "idle", "stalled"
OTHERS_BYTES = b"of another connection"


def begin(ends: Line, spawn: Spawn, state: str, move: Callable[[], Any]) -> gevent.Greenlet:
    """Have a greenlet *move* bytes, and wait until it is in the *state*; it returns the error."""
    if state == STALLED:
        spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    moving = spawn(error_of, move)
    if state == STALLED:
        wait_until(lambda: waits_to_write(ends.sink))
    else:
        wait_until(lambda: waits_to_read(ends.source))
    return moving


def close_and_reuse(sock: socket.socket) -> Pair:
    """Close *sock*, and use its number for a connection that has bytes to read."""
    near, far = connected("tcp")  # made before: its own numbers have to be others
    far.sendall(OTHERS_BYTES)
    fd = sock.fileno()
    sock.close()
    wait_until(lambda: is_free(fd))
    os.dup2(near.fileno(), fd)
    near.close()
    return socket.socket(far.family, far.type, far.proto, fileno=fd), far


def is_free(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def assert_untouched(near: socket.socket, far: socket.socket) -> None:
    """Check that nobody has read from the connection or written to it; close it."""
    try:
        wait_until(lambda: peeked(near) == OTHERS_BYTES)
        gevent.sleep(0)
        assert receive(near, len(OTHERS_BYTES)) == OTHERS_BYTES
        near.shutdown(socket.SHUT_WR)
        assert receive(far) == b"", "bytes of a transfer went to another's connection"
    finally:
        near.close()
        far.close()


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", [IDLE, STALLED])
@pytest.mark.parametrize("which", ["source", "sink"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["copy", "relay"])
def test_closing_a_side_never_touches_the_next_connection_of_that_number(
    line: MakeLine,
    spawn: Spawn,
    both_ways: bool,
    which: str,
    state: str,
    mode: str,
    kind: str,
) -> None:
    ends = line(kind)
    function = gsplice.relay if both_ways else gsplice.copy
    moving = begin(ends, spawn, state, lambda: function(ends.source, ends.sink, mode=mode))
    closed = getattr(ends, which)
    reads_from_sink = both_ways and which == "sink"
    waited_for = reads_from_sink or which == {IDLE: "source", STALLED: "sink"}[state]

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


class AtReadiness:
    """Has *strike* run in the hub between the readiness of a socket and the system call for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, strike: Callable[[], Any]) -> None:
        self._strike: Callable[[], Any] | None = strike
        self._monkeypatch = monkeypatch

    def arm(self, name: str) -> None:
        """Strike at the next call of `Pump`'s callback *name*."""
        original = getattr(Pump, name)

        def struck(pump: Pump, *events: int) -> None:
            strike, self._strike = self._strike, None
            if strike is not None:
                strike()
            original(pump, *events)

        self._monkeypatch.setattr(Pump, name, struck)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["source", "sink"])
def test_closed_between_readiness_and_the_read(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, which: str, mode: str
) -> None:
    ends = line()
    others: list[Pair] = []
    strike = lambda: others.append(closed_in_hub(getattr(ends, which)))  # noqa: E731
    AtReadiness(monkeypatch, strike).arm("on_readable")
    transfer = gsplice.Transfer(ends.source, ends.sink, mode=mode).start()
    ends.client.sendall(b"hello")
    with pytest.raises(OSError, match="descriptor") as caught:
        transfer.get(timeout=5)
    assert caught.value.errno == errno.EBADF
    assert_untouched(*others[0])
    assert transfer.moved == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["source", "sink"])
def test_closed_between_readiness_and_the_write(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, which: str, mode: str
) -> None:
    ends = line("unix")
    others: list[Pair] = []
    strike = lambda: others.append(closed_in_hub(getattr(ends, which)))  # noqa: E731
    AtReadiness(monkeypatch, strike).arm("on_writable")
    data = pattern(MORE_THAN_BUFFERS)
    spawn(error_of, ends.client.sendall, data)
    transfer = gsplice.Transfer(ends.source, ends.sink, mode=mode).start()
    wait_until(lambda: waits_to_write(ends.sink))
    received = spawn(receive, ends.backend)
    with pytest.raises(OSError, match="descriptor") as caught:
        transfer.get(timeout=5)
    assert caught.value.errno == errno.EBADF
    assert_untouched(*others[0])
    ends.sink.close()
    arrived = received.get()
    assert len(arrived) == transfer.moved
    assert (arrived + transfer.undelivered) == data[: len(arrived) + len(transfer.undelivered)]


def closed_in_hub(sock: socket.socket) -> Pair:
    """Close *sock* for good, in the hub, and use its number again at once.

    That is what a callback does which runs just before ours in the same turn of the loop.
    """
    near, far = standard_socket.socketpair()
    far.sendall(OTHERS_BYTES)
    fd = sock.fileno()
    raw = _gevent.raw_socket(sock)
    sock.close()
    raw.close()  # gevent puts it off while the socket is waited for
    os.dup2(near.fileno(), fd)
    near.close()
    return socket.socket(fileno=fd), socket.socket(fileno=far.detach())


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
def test_second_reader_of_the_source_is_told(line: MakeLine, spawn: Spawn, mode: str) -> None:
    ends = line()
    moving = begin(ends, spawn, IDLE, lambda: gsplice.copy(ends.source, ends.sink, 5, mode=mode))
    with pytest.raises(ConcurrentObjectUseError):
        ends.source.recv(1)
    ends.client.sendall(b"hello")
    assert moving.get() is None
    assert receive(ends.backend, 5) == b"hello"


@pytest.mark.parametrize("mode", MODES)
def test_second_writer_to_a_stalled_sink_is_told(line: MakeLine, spawn: Spawn, mode: str) -> None:
    ends = line()
    begin(ends, spawn, STALLED, lambda: gsplice.copy(ends.source, ends.sink, mode=mode))
    fill(ends.sink)
    with pytest.raises(ConcurrentObjectUseError):
        ends.sink.sendall(b"mine")


@pytest.mark.parametrize("mode", MODES)
def test_source_that_another_greenlet_reads(line: MakeLine, spawn: Spawn, mode: str) -> None:
    ends = line()
    reading = spawn(receive, ends.source, 5)
    wait_until(lambda: waits_to_read(ends.source))
    with pytest.raises(ConcurrentObjectUseError):
        gsplice.copy(ends.source, ends.sink, mode=mode)
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
