"""The end of a `ForwardServer`."""

from __future__ import annotations

import os
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from peers import echoed, exchange, fill, receive, wait_until
from servers import LOOPBACK

import gsplice
from gsplice import _accepting
from gsplice.server import ForwardServer

# The end.


def test_stop_lets_what_is_being_served_finish(forward: Any, echo: StreamServer, dial: Any) -> None:
    server = forward(echo.address)
    client = dial(server)
    exchange(client)
    address = server.address
    stopping = gevent.spawn(server.stop, 10)
    wait_until(lambda: server.closed)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert echoed(client, b"the rest") == b"the rest"
    stopping.get()
    assert server.connections == 0


def test_stop_ends_what_has_not_finished_in_time(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address)
    client = dial(server)
    exchange(client)
    server.stop(0.05)
    assert server.connections == 0
    assert receive(client) == b""


def test_stop_ends_a_relay_whose_sink_has_stalled(forward: Any, listen: Any, dial: Any) -> None:
    server = forward(listen().getsockname())  # in whose backlog connections stay
    client = dial(server)
    wait_until(lambda: gsplice.stats().active == 2)
    wait_until(lambda: fill(client) == 0)
    server.stop(0)
    assert server.connections == 0


@pytest.mark.parametrize("still", ["connecting", "asking for the target"])
def test_stop_ends_a_connection_that_is_not_relayed_yet(
    still: str, never_accepts: Any, forward: Any, dial: Any
) -> None:
    asked = still == "asking for the target"
    server = forward((lambda _: Event().wait()) if asked else never_accepts("tcp").getsockname())
    client = dial(server)
    wait_until(lambda: server.connections == 1)
    server.stop(0)
    assert server.connections == 0
    assert receive(client) == b""


def test_a_connection_that_is_ended_before_the_target_has_been_asked_is_closed(
    forward: Any, dial: Any
) -> None:
    """As at the end of a server with so many of them that its time is over sooner."""
    asked: list[Any] = []
    server = forward(asked.append)
    (client,) = queued(server, dial, 1)
    server.do_handle(*server.do_read())
    (connection,) = server._connections
    connection.stop()
    assert server.connections == 0
    with pytest.raises(ConnectionResetError):  # what it has said was not read
        receive(client)
    assert asked == []


def test_a_connection_that_is_still_connecting_keeps_no_port_open_after_the_end(
    never_accepts: Any, forward: Any, dial: Any
) -> None:
    server = forward(never_accepts("tcp").getsockname())
    dial(server)
    wait_until(lambda: server.connections == 1)
    address = server.address
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    server.stop(0)


def test_stop_without_connections_returns_at_once_and_may_be_repeated(
    forward: Any, echo: StreamServer
) -> None:
    server = forward(echo.address)
    for _ in range(2):
        with gevent.Timeout(1):
            server.stop(30)


# Those who wait in the backlog: the kernel has accepted them, and would reset them.


def queued(server: ForwardServer, dial: Any, count: int) -> list[socket.socket]:
    """Return clients whom the kernel has accepted, and the server has not."""
    server.stop_accepting()
    clients = [dial(server) for _ in range(count)]
    for client in clients:
        client.sendall(b"hello")
    assert server.accepted == 0
    return clients


def test_stop_serves_those_who_wait_in_the_backlog(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address)
    clients = queued(server, dial, 20)
    stopping = gevent.spawn(server.stop, 10)
    for client in clients:
        assert receive(client, 5) == b"hello"
        assert echoed(client, b" and goodbye") == b" and goodbye"
    stopping.get()
    assert (server.accepted, server.connections) == (20, 0)


def test_close_accepts_no_more_of_them_than_there_may_be(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=2)
    first, second, third = queued(server, dial, 3)
    server.close()
    assert receive(first, 5) == receive(second, 5) == b"hello"
    with pytest.raises(ConnectionResetError):
        receive(third)
    assert (server.accepted, server.connections) == (2, 2)


def test_close_does_not_go_on_for_ever_where_clients_go_on_coming(
    forward: Any, echo: StreamServer, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_accepting, "_MOST_AT_THE_END", 2)
    server = forward(echo.address)
    queued(server, dial, 3)
    server.close()
    assert server.accepted == 2


def test_close_without_an_fd_for_those_who_wait_closes_all_the_same(
    forward: Any, echo: StreamServer, dial: Any, no_fds: Any
) -> None:
    server = forward(echo.address)
    (client,) = queued(server, dial, 1)
    no_fds()
    server.close()
    no_fds()
    assert server.closed
    with pytest.raises(ConnectionResetError):
        receive(client)


def test_those_who_wait_at_a_socket_that_others_share_are_left_to_the_others(
    serve: Any, listen: Any, echo: StreamServer, dial: Any
) -> None:
    listener = listen()
    other = socket.socket(fileno=os.dup(listener.fileno()))
    server = serve(ForwardServer(listener, echo.address))
    server.shares_listener = True
    clients = queued(server, dial, 3)
    server.close()
    assert server.accepted == 0
    serve(ForwardServer(other, echo.address))
    for client in clients:
        assert receive(client, 5) == b"hello"


def test_a_forked_child_that_closes_its_copy_leaves_those_who_wait_to_its_parent(
    forward: Any, echo: StreamServer, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = forward(echo.address)
    queued(server, dial, 1)
    monkeypatch.setattr(os, "getpid", lambda: -2)  # as if
    server.close()
    assert server.accepted == 0


def test_serve_forever_returns_once_it_is_closed(echo: StreamServer) -> None:
    server = ForwardServer(LOOPBACK, echo.address)
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    server.close()
    serving.get(timeout=5)
