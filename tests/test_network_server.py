"""Across a network: a server on the router, whose clients or backends are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from across import KEEPALIVE, listen_on, socket_on
from gevent import socket
from gevent.server import StreamServer
from network import Network
from peers import echoed, exchange, pattern, quietly, receive, send_back, wait_until
from programs import python

from gsplice import _connecting
from gsplice.server import ForwardServer


@pytest.fixture
def echo(net: Network) -> Iterator[StreamServer]:
    """Send back what comes, on the server's host."""
    server = StreamServer(listen_on(net.server), quietly(send_back))
    server.start()
    yield server
    server.stop(0)


@pytest.fixture
def serve(net: Network, echo: StreamServer) -> Iterator[Callable[..., ForwardServer]]:
    """Start forwarders on the router."""
    started: list[ForwardServer] = []

    def start(target: Any = None, **options: Any) -> ForwardServer:
        def connect(_: Any) -> socket.socket:
            sock = socket_on(net.router)
            try:
                sock.connect(target or echo.address)
            except BaseException:
                sock.close()
                raise
            return sock

        started.append(ForwardServer(listen_on(net.router_to_client), connect, **options))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.stop(0)


@pytest.fixture
def dial(net: Network, keep: Any) -> Callable[[Any], socket.socket]:
    """Connect to an address from the client's host."""

    def connect(address: Any) -> socket.socket:
        sock = keep(socket_on(net.client.host))
        sock.settimeout(15)
        sock.connect(address)
        return sock

    return connect


@pytest.mark.parametrize("means", ["idle_timeout", "keepalive"])
def test_a_client_that_has_vanished_is_given_up_and_makes_room_for_another(
    net: Network, serve: Any, dial: Any, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if means == "keepalive":  # the server turns it on, and says when it counts
        options = [(getattr(socket, name), 1) for name in KEEPALIVE]
        monkeypatch.setattr(_connecting, "_KEEPALIVE", options)
    server = serve(max_connections=1, idle_timeout=1 if means == "idle_timeout" else None)
    exchange(dial(server.address))
    net.client.down()
    wait_until(lambda: server.connections == 0)
    net.client.up()
    exchange(dial(server.address))


def test_a_backend_in_a_black_hole_costs_its_client_the_connect_time_out_and_no_other(
    net: Network, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = "198.51.100.99"
    net.router_to_server.black_hole(nowhere)
    lost, found = serve((nowhere, 80), connect_timeout=0.5), serve()
    client, other = dial(lost.address), dial(found.address)
    wait_until(lambda: lost.connections == 1)
    exchange(other)
    assert receive(client) == b""
    assert "cannot connect to the target: timed out" in caplog.text
    assert lost.connections == 0
    exchange(other)


def test_the_command_on_the_router_finishes_what_it_carries(
    net: Network, echo: StreamServer, dial: Any
) -> None:
    listen, target = f"{net.router_to_client.address}:0", ":".join(map(str, echo.address))
    with net.router.entered():
        program = python("-m", "gsplice", "forward", listen, target, "--grace", "20")
    with program:
        host, port = program.expect(r"listening on (\S+):(\d+),").groups()
        client = dial((host, int(port)))
        exchange(client)
        program.process.terminate()
        assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)
        wait_until(lambda: program.process.poll() is not None)
        assert program.stop() == 0
