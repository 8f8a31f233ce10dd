"""The end of a `ForwardServer`."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import echoed, exchange, fill, receive, wait_until
from servers import LOOPBACK

import gsplice
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


def test_stop_ends_a_connection_that_is_still_connecting(
    never_accepts: Any, forward: Any, dial: Any
) -> None:
    server = forward(never_accepts("tcp").getsockname())
    client = dial(server)
    wait_until(lambda: server.connections == 1)
    server.stop(0)
    assert server.connections == 0
    assert receive(client) == b""


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


def test_serve_forever_returns_once_it_is_closed(echo: StreamServer) -> None:
    server = ForwardServer(LOOPBACK, echo.address)
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    server.close()
    serving.get(timeout=5)
