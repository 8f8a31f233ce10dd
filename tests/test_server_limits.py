"""The limits of a `ForwardServer`: time-outs, places and fds, and clients that want all of them."""

from __future__ import annotations

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

# How long, and how many at once.


def test_an_idle_connection_is_ended_after_the_time_out(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, idle_timeout=0.5)
    client = dial(server)
    exchange(client)
    assert receive(client) == b""
    assert server.connections == 0


def test_a_client_that_never_says_a_word_is_ended_after_the_time_out(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=1, idle_timeout=0.3)
    silent, waiting = dial(server), dial(server)
    waiting.sendall(b"let me in")
    assert receive(silent) == b""
    assert receive(waiting, 9) == b"let me in"


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
