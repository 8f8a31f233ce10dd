"""The limits of a `ForwardServer`: time-outs, places and fds, and clients that want all of them."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from peers import (
    MORE_THAN_BUFFERS,
    echoed,
    error_of,
    exchange,
    is_readable,
    open_fds,
    pattern,
    quietly,
    receive,
    reset,
    send_back,
    small_buffers,
    wait_until,
)
from servers import LOOPBACK

import gsplice
from gsplice import _hub, _kernel
from gsplice.server import ForwardServer

# How long, and how many at once.


def test_an_idle_connection_is_ended_after_the_time_out(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, idle_timeout=0.5)
    client = dial(server)
    exchange(client)
    assert receive(client) == b""
    assert server.connections == 0


def test_one_more_than_max_connections_waits_until_another_leaves(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=2)
    first, second, third = dial(server), dial(server), dial(server)
    exchange(first)
    exchange(second)
    third.sendall(b"let me in")
    exchange(first, b"still here")
    assert server.full()
    assert (server.accepted, server.connections) == (2, 2)
    assert not is_readable(third)
    first.close()
    assert receive(third, 9) == b"let me in"
    exchange(second)


def test_with_max_connections_all_of_a_crowd_are_served_in_turn(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=3)
    clients = [dial(server) for _ in range(30)]
    most = 0

    def served(client: socket.socket) -> bytes:
        nonlocal most
        exchange(client)
        most = max(most, server.connections)
        return echoed(client, b"bye")

    greenlets = [gevent.spawn(served, client) for client in clients]
    assert [greenlet.get() for greenlet in greenlets] == [b"bye"] * 30
    assert most == 3


# Clients and backends that are hostile, or broken. `test_exposed` has what a crowd of them costs.


def test_a_client_that_sends_a_byte_now_and_then_is_not_idle_and_a_silent_one_is(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, idle_timeout=1)
    slow, silent = dial(server), dial(server)
    exchange(slow)
    exchange(silent)
    while not is_readable(silent):
        exchange(slow, b"x")
        gevent.sleep(0.05)  # now and then is what is tested
    assert receive(silent) == b""
    exchange(slow)
    assert server.connections == 1


def test_slow_clients_in_every_place_leave_room_when_they_leave(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=3)
    slow = [dial(server) for _ in range(3)]
    waiting = [dial(server) for _ in range(3)]
    for _ in range(20):
        for client in slow:
            exchange(client, b"x")
    assert (server.connections, server.accepted) == (3, 3)
    assert not any(is_readable(client) for client in waiting)
    for leave in (socket.socket.close, reset, socket.socket.close):
        leave(slow.pop())
    for client in waiting:
        exchange(client)
    assert (server.connections, server.accepted) == (3, 6)


def test_clients_that_left_while_they_waited_for_a_place_keep_it_from_nobody(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=1)
    first = dial(server)
    exchange(first)
    for leave in (socket.socket.close, reset, socket.socket.close):
        leave(dial(server))
    last = dial(server)
    first.close()
    exchange(last)
    wait_until(lambda: server.connections == 1)


def test_each_end_has_the_kernel_look_for_a_peer_that_has_vanished(
    forward: Any, serve: Any, dial: Any
) -> None:
    asked = []
    backend = serve(StreamServer(LOOPBACK, send_back))

    def target(_: Any) -> socket.socket:
        asked.append(socket.create_connection(backend.address))
        return asked[-1]

    server = forward(target)
    exchange(dial(server))
    (connection,) = server._connections
    for sock in (connection._client, *asked):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count == 120


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_a_backend_that_never_answers_is_ended_by_the_idle_time_out(
    half_closed: bool, forward: Any, serve: Any, dial: Any
) -> None:
    asked, over = [], Event()

    def listen_only(sock: socket.socket, _: Any) -> None:
        asked.append(receive(sock))
        over.wait()

    server = forward(
        serve(StreamServer(LOOPBACK, listen_only)).address, max_connections=1, idle_timeout=0.3
    )
    clients = [dial(server) for _ in range(2)]
    for client in clients:
        client.sendall(b"is anybody there?")
        if half_closed:
            client.shutdown(socket.SHUT_WR)
    assert [receive(client) for client in clients] == [b"", b""]
    wait_until(lambda: server.connections == 0)
    over.set()
    wait_until(lambda: asked == [b"is anybody there?"] * 2)


def test_a_client_that_takes_its_answer_slowly_is_not_idle(
    forward: Any, serve: Any, keep: Any
) -> None:
    def pour(sock: socket.socket, _: Any) -> None:
        sock.sendall(bytes(MORE_THAN_BUFFERS))

    server = forward(serve(StreamServer(LOOPBACK, quietly(pour))).address, idle_timeout=1)
    client = keep(socket.socket())
    small_buffers(client)
    client.connect(server.address)
    ends = time.monotonic() + 2.5
    while time.monotonic() < ends:
        assert receive(client, 4000)
        gevent.sleep(0.04)  # slow is what is tested
    assert server.connections == 1


def test_a_client_that_never_reads_is_ended_by_the_idle_time_out(
    forward: Any, serve: Any, dial: Any
) -> None:
    def pour(sock: socket.socket, _: Any) -> None:
        poured.append(error_of(sock.sendall, bytes(64 * 1024 * 1024)))

    poured: list[Any] = []
    backend = serve(StreamServer(LOOPBACK, pour))
    server = forward(backend.address, idle_timeout=0.3)
    dial(server)
    wait_until(lambda: poured)
    assert isinstance(poured[0], ConnectionError)
    wait_until(lambda: server.connections == 0)
    assert gsplice.stats().pipes == gsplice.stats().idle_pipes


@pytest.mark.parametrize("answer", [b"", pattern(100_000)], ids=["at once", "after an answer"])
def test_a_backend_that_resets_costs_that_client_its_connection_and_not_the_answer(
    answer: bytes, forward: Any, serve: Any, echo: StreamServer, dial: Any
) -> None:
    def answer_and_reset(sock: socket.socket, _: Any) -> None:
        sock.recv(1)
        sock.sendall(answer)
        reset(sock)

    server = forward(serve(StreamServer(LOOPBACK, answer_and_reset)).address)
    client = dial(server)
    client.sendall(pattern(10_000))
    assert receive(client, len(answer)) == answer
    assert isinstance(error_of(receive, client), (ConnectionResetError, type(None)))
    server.target = echo.address
    exchange(dial(server))


def test_a_client_that_leaves_while_its_backend_cannot_be_reached_makes_room_in_time(
    never_accepts: Any, forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(never_accepts("tcp").getsockname(), max_connections=2, connect_timeout=0.5)
    lost = [dial(server) for _ in range(2)]
    wait_until(lambda: server.full())
    for client in lost:
        reset(client)
    server.target = echo.address
    exchange(dial(server))
    assert server.accepted == 3


# No fds.


def test_without_an_fd_a_client_waits_in_the_backlog_and_one_line_says_so(
    forward: Any, echo: StreamServer, keep: Any, no_fds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = forward(echo.address)
    for times in (1, 2):
        client = keep(socket.socket())
        client.settimeout(10)
        no_fds()
        client.connect(server.address)
        wait_until(lambda: server.delay > 2 * server.min_delay)  # it has tried again
        assert server.accepted == times - 1
        no_fds()
        exchange(client)
        (*_, line) = caplog.messages
        assert line == "clients wait in the backlog: there is no fd (Too many open files)"
        assert len(caplog.messages) == times


def test_without_an_fd_nothing_is_said_where_nobody_waits(
    forward: Any, echo: StreamServer, no_fds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = forward(echo.address)
    no_fds()
    assert server.do_read() is None
    assert not caplog.messages


def test_pipes_that_are_idle_make_room_for_a_client(
    forward: Any, echo: StreamServer, keep: Any, no_fds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = _hub.resources().pipes
    pipes = [pool.lend() for _ in range(4)]  # more fds than both ends and the backend take
    for pipe in pipes:
        pool.give_back(pipe)
    server = forward(echo.address)
    client = keep(socket.socket())
    client.settimeout(10)
    no_fds()
    client.connect(server.address)
    exchange(client)
    assert gsplice.stats().idle_pipes == 0
    assert not caplog.messages


def test_an_error_of_accept_that_is_not_about_fds_is_reported_as_ever(
    forward: Any, echo: StreamServer, dial: Any, hub_errors: list[Any]
) -> None:
    server = forward(echo.address)
    accept, errors = server._accept, [OSError(errno.ENOBUFS, "No buffer space available")]
    server._accept = lambda: raise_next(errors) or accept()
    exchange(dial(server))
    assert [error.errno for _, error in hub_errors] == [errno.ENOBUFS]
    hub_errors.clear()


def raise_next(errors: list[OSError]) -> None:
    """Raise what is left, in turn."""
    if errors:
        raise errors.pop(0)


@pytest.mark.parametrize("why", ["an fd is wanted", "it has been told to"])
def test_a_server_that_accepts_nobody_keeps_no_fd_for_the_next_client(
    why: str, forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address)
    before = len(open_fds())
    dial(server).close()
    wait_until(lambda: server.accepted and not server.connections)
    wait_until(lambda: len(open_fds()) == before + 1)
    if why == "an fd is wanted":
        with server.accepting_nobody():
            assert len(open_fds()) == before
    else:
        server.stop_accepting()
        assert len(open_fds()) == before


def test_a_client_for_whose_other_end_there_is_no_fd_waits_and_nobody_else_is_accepted(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    tries: list[Any] = []
    enough = False

    def target(address: Any) -> socket.socket:
        tries.append(address)
        if not enough:
            raise OSError(errno.EMFILE, "Too many open files")
        return socket.create_connection(echo.address)

    server = forward(target)
    first = dial(server)
    wait_until(lambda: len(tries) > 2)
    second = dial(server)
    second.sendall(b"me too")
    wait_until(lambda: len(tries) > 4)
    assert server.full()
    assert (server.accepted, is_readable(first)) == (1, False)
    enough = True
    exchange(first)
    assert receive(second, 6) == b"me too"
    assert not server.full()


def test_a_client_that_has_waited_for_an_fd_may_find_no_backend_all_the_same(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [OSError(errno.EMFILE, "Too many open files"), ConnectionError("none is healthy")]

    def target(_: Any) -> socket.socket:
        raise errors.pop(0)

    assert receive(dial(forward(target))) == b""
    assert "cannot connect to the target: none is healthy" in caplog.text


def test_a_name_that_could_not_be_looked_up_for_want_of_an_fd_is_looked_up_again(
    forward: Any, echo: StreamServer, dial: Any, no_fds: Any
) -> None:
    tries: list[Any] = []

    def target(address: Any) -> socket.socket:
        tries.append(address)
        no_fds()
        if len(tries) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return socket.create_connection(echo.address)

    exchange(dial(forward(target)))
    assert len(tries) == 2


def test_a_name_is_not_looked_up_again_before_there_are_fds_to_do_it_with(
    serve: Any, echo: StreamServer, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each time that it is, gevent's thread pool would print a traceback."""
    tries: list[Any] = []
    asked: list[int] = []
    fds = 1

    class Counts(ForwardServer):
        def connect(self, address: Any) -> socket.socket:
            tries.append(address)
            if len(tries) == 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().connect(address)

    def has_fds(count: int) -> bool:
        asked.append(count)
        return count <= fds

    monkeypatch.setattr(_kernel, "has_fds", has_fds)
    client = dial(serve(Counts(LOOPBACK, ("localhost", echo.server_port))))
    wait_until(lambda: len(asked) > 3)
    assert len(tries) == 1
    fds = 2
    exchange(client)
    assert len(tries) == 2


def test_a_look_up_that_failed_while_others_were_short_of_fds_is_tried_again(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    tries: list[Any] = []

    def target(address: Any) -> socket.socket:
        tries.append(address)
        if len(tries) == 1:  # and its fds have come back by the time that it is asked why
            server._said_no_fd = True
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.create_connection(echo.address)

    server = forward(target)
    exchange(dial(server))
    assert len(tries) == 2


def test_a_name_that_does_not_exist_is_a_backend_that_is_not_there(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def target(_: Any) -> socket.socket:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert receive(dial(forward(target))) == b""
    assert "Name or service not known" in caplog.text
