"""Connecting in callbacks on the hub, and the sockets that are made for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from peers import error_of, listening, open_fds, receive, wait_until

from gsplice import _connecting, _gevent
from gsplice._connecting import Destination, Reserve, begin, destination
from gsplice._gevent import LeanSocket

ANYWHERE = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture
def new() -> Iterator[Callable[[int], LeanSocket]]:
    """Make sockets; they are closed at the end."""
    made: list[LeanSocket] = []

    def make(family: int = socket.AF_INET) -> LeanSocket:
        made.append(LeanSocket.over(_gevent.new_raw_socket(family)))
        return made[-1]

    yield make
    for sock in made:
        sock.close()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Callable[[str], socket.socket]]:
    """Return a listener whose backlog is full."""
    kept: list[socket.socket] = []

    def fill_backlog(kind: str) -> socket.socket:
        if kind == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(tmp_path / "full"))
        else:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        kept.append(listener)
        for _ in range(4):
            kept.append(socket.socket(listener.family))
            kept[-1].setblocking(False)
            kept[-1].connect_ex(listener.getsockname())
        return listener

    yield fill_backlog
    for sock in kept:
        sock.close()


def has_watchers_at_work(sock: LeanSocket) -> bool:
    watchers = (sock._reading, sock._writing)
    return any(one is not None and one.callback is not None for one in watchers)


# Where to.


def test_a_number_and_a_path_need_no_looking_up_a_name_and_a_callable_do(tmp_path: Path) -> None:
    assert destination(("127.0.0.1", 80)) == (socket.AF_INET, ("127.0.0.1", 80))
    assert destination(("::1", 80)) == (socket.AF_INET6, ("::1", 80))
    assert destination(tmp_path) == destination(str(tmp_path)) == (socket.AF_UNIX, str(tmp_path))
    assert destination(("localhost", 80)) is None
    assert destination(lambda _: None) is None


# What ends at once.


@pytest.mark.parametrize("family", list(ANYWHERE))
def test_on_the_same_host_a_connection_is_there_at_once(family: int, new: Any) -> None:
    told: list[Any] = []
    with listening(ANYWHERE[family], family) as listener, new(family) as sock:
        assert begin(sock, listener.getsockname()[:2], told.append, 5) is None
        assert told == [None]
        peer, _ = listener.accept()
        with peer:
            sock.sendall(b"hello")
            assert receive(peer, 5) == b"hello"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_on_the_same_host_a_refusal_is_there_at_once(kind: str, new: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as nobody:
        nobody.bind(str(tmp_path / "nobody") if kind == "unix" else ("127.0.0.1", 0))
        told: list[Any] = []
        assert begin(new(nobody.family), nobody.getsockname(), told.append, 5) is None
    (error,) = told
    assert isinstance(error, ConnectionRefusedError)
    assert str(error) == "[Errno 111] Connection refused"


# What has to wait.


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_after_the_time_out_it_is_given_up(kind: str, new: Any, full: Any) -> None:
    listener, told = full(kind), []
    sock = new(listener.family)
    assert begin(sock, listener.getsockname(), told.append, 0.05) is not None
    wait_until(lambda: told)
    assert isinstance(told[0], TimeoutError)
    assert not has_watchers_at_work(sock)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_nobody_is_told_of_what_was_stopped(kind: str, new: Any, full: Any) -> None:
    listener, told = full(kind), []
    sock = new(listener.family)
    connecting = begin(sock, listener.getsockname(), told.append, 0.05)
    for _ in range(2):
        connecting.stop()
    assert not has_watchers_at_work(sock)
    gevent.sleep(0.1)  # longer than the time-out
    assert told == []


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_refusal_that_takes_its_time_is_told(kind: str, new: Any, full: Any) -> None:
    listener, told = full(kind), []
    begin(new(listener.family), listener.getsockname(), told.append, None)
    gevent.sleep(0.03)  # longer than between two tries; nothing is there to wait for
    assert told == []
    listener.close()
    wait_until(lambda: told)  # TCP's SYN is sent again after a second
    assert isinstance(told[0], ConnectionError)


def test_a_socket_that_is_closed_meanwhile_ends_it(new: Any, full: Any) -> None:
    listener, told = full("tcp"), []
    sock = new()
    begin(sock, listener.getsockname(), told.append, None)
    sock.close()
    wait_until(lambda: told)
    assert type(told[0]) is socket.cancel_wait_ex


def test_an_error_that_the_loop_reports_for_nothing_is_not_the_end(new: Any, full: Any) -> None:
    listener, told = full("tcp"), []
    sock = new()
    connecting = begin(sock, listener.getsockname(), told.append, None)
    connecting._on_writable(-1)  # what libuv says when it stops to poll
    assert (told, has_watchers_at_work(sock)) == ([], True)
    connecting.stop()


# For a greenlet.


def test_a_greenlet_gets_a_connected_socket(full: Any) -> None:
    with listening() as listener:
        to = destination(listener.getsockname())
        with _connecting.connect(to) as sock, listener.accept()[0] as peer:
            sock.sendall(b"hello")
            assert receive(peer, 5) == b"hello"
    assert isinstance(error_of(_connecting.connect, to), ConnectionRefusedError)


def test_a_greenlet_that_is_killed_while_it_connects_leaves_nothing(full: Any) -> None:
    listener = full("tcp")
    before = open_fds()
    greenlet = gevent.spawn(
        _connecting.connect, Destination(socket.AF_INET, listener.getsockname())
    )
    wait_until(lambda: open_fds() != before)
    greenlet.kill()
    wait_until(lambda: open_fds() == before)


def test_what_cannot_begin_for_a_greenlet_leaves_nothing() -> None:
    before = open_fds()
    to = Destination(socket.AF_UNIX, "x" * 200)
    with pytest.raises(OSError, match="too long"):
        _connecting.connect(to)
    assert open_fds() == before


# The socket that is made before it is needed.


def test_the_reserve_is_kept_as_long_as_the_target_is_the_same() -> None:
    reserve, here, there = Reserve(), ("127.0.0.1", 80), ("::1", 80)
    reserve.fill(here, False)
    first = reserve.take()
    reserve.fill(here, False)
    second = reserve.take()
    assert first is not None
    assert second is not None
    assert first.family == second.family == socket.AF_INET
    first.close()
    second.close()
    reserve.fill(here, False)
    reserve.fill(there, False)
    third = reserve.take()
    assert third is not None
    assert (third.family, reserve.destination) == (socket.AF_INET6, destination(there))
    assert reserve.take() is None
    third.close()
    reserve.fill(here, True)
    assert reserve.destination is None
    for _ in range(2):
        reserve.close()


# The sockets.


@pytest.fixture
def lean() -> Iterator[tuple[LeanSocket, socket.socket]]:
    """Return a lean socket, and its peer."""
    with listening() as listener:
        sock = _connecting.connect(destination(listener.getsockname()))
        peer, _ = listener.accept()
    with sock, peer:
        yield sock, peer


def test_a_lean_socket_is_used_as_any_other(lean: Any) -> None:
    sock, peer = lean
    receiving = gevent.spawn(sock.recv, 10)
    gevent.sleep(0)
    peer.sendall(b"hello")
    assert receiving.get(timeout=5) == b"hello"
    sock.settimeout(0.01)
    assert isinstance(error_of(sock.recv, 1), TimeoutError)
    with sock.dup() as copy:
        copy.sendall(b"from a copy")
        assert receive(peer, 11) == b"from a copy"


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_who_waits_for_a_lean_socket_is_told_of_its_end(lean: Any, end: str) -> None:
    sock, _ = lean
    receiving = gevent.spawn(error_of, sock.recv, 1)
    wait_until(lambda: has_watchers_at_work(sock))
    getattr(sock, end)(*[socket.SHUT_RDWR] * (end == "shutdown"))
    assert type(receiving.get(timeout=5)) is socket.cancel_wait_ex


def test_a_detached_lean_socket_leaves_the_fd_open(lean: Any) -> None:
    sock, peer = lean
    with socket.socket(fileno=sock.detach()) as other:
        other.sendall(b"hello")
        assert receive(peer, 5) == b"hello"


def test_a_closed_lean_socket_is_a_closed_socket(lean: Any) -> None:
    sock, peer = lean
    sock.close()
    sock.close()
    assert (sock.closed, sock.fileno()) == (True, -1)
    for use in (lambda: sock.recv(1), lambda: sock.send(b"x"), sock.getsockname):
        assert isinstance(error_of(use), OSError)
    assert (sock._read_event, sock._write_event) == (None, None)
    assert receive(peer) == b""


def test_a_lean_socket_has_no_watchers_before_it_waits(lean: Any) -> None:
    sock, peer = lean
    sock.sendall(b"hello")
    peer.sendall(b"hello")
    assert receive(peer, 5) == b"hello"
    assert (sock._reading, sock._writing) == (None, None)


def test_accepting_where_nobody_waits_is_nothing() -> None:
    with listening() as listener:
        raw = _gevent.raw_socket(listener)
        assert _gevent.accept(raw) is None
        with socket.create_connection(listener.getsockname()) as peer:
            began = time.monotonic()
            while (accepted := _gevent.accept(raw)) is None:
                assert time.monotonic() - began < 5
            sock, address = accepted
            with sock:
                assert address == peer.getsockname()
                assert (sock.gettimeout(), sock.type) == (None, socket.SOCK_STREAM)
                assert isinstance(error_of(_gevent.raw_socket(sock).recv, 1), BlockingIOError)
