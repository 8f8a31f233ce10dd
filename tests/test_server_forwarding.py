"""How a `ForwardServer` forwards: without a greenlet, and promptly, wherever a client came from."""

from __future__ import annotations

from typing import Any

import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import connected, exchange, leaked_fds, listening, open_fds, wait_until

from gsplice.server import ForwardServer


def test_a_short_connection_needs_no_greenlet(
    serve: Any, echo: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(ForwardServer(("127.0.0.1", 0), echo.address))
    monkeypatch.delattr("gevent.spawn")
    with socket.create_connection(server.address) as client:
        exchange(client)


class AsksItself(ForwardServer):
    """A server that finds its target by a method of its own."""

    def connect(self, address: Any) -> socket.socket:
        self.asked = address
        return super().connect(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_connect_of_a_subclass_is_asked(host: str, serve: Any, echo: StreamServer) -> None:
    server = serve(AsksItself(("127.0.0.1", 0), (host, echo.server_port)))
    with socket.create_connection(server.address) as client:
        exchange(client)
        assert server.asked == client.getsockname()


def test_a_client_that_is_handed_over_is_served_as_well(serve: Any, echo: StreamServer) -> None:
    server = serve(ForwardServer(("127.0.0.1", 0), echo.address))
    client, accepted = connected()
    server.do_handle(accepted, client.getsockname())
    exchange(client)
    client.close()
    wait_until(lambda: not server.connections)


def test_a_client_that_is_handed_over_goes_to_the_target_of_now(
    serve: Any, echo: StreamServer
) -> None:
    with listening() as before:
        server = serve(ForwardServer(("127.0.0.1", 0), before.getsockname()))
        with socket.create_connection(server.address), before.accept()[0]:
            server.target = echo.address
            client, accepted = connected()
            server.do_handle(accepted, client.getsockname())
            exchange(client)
            client.close()
    wait_until(lambda: not server.connections)


def options_of(connection: Any) -> list[tuple[int, int]]:
    """Return what is set on the two sockets of a connection of a server's."""
    return [
        (
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        )
        for sock in (connection._client, connection._backend)
    ]


def test_all_sockets_are_prompt_those_that_came_before_the_server_as_well(
    serve: Any, echo: StreamServer
) -> None:
    listener = listening()
    address = listener.getsockname()
    with socket.create_connection(address) as early:
        server = serve(ForwardServer(listener, echo.address))
        exchange(early)
        with socket.create_connection(address) as late:
            exchange(late)
            assert server.clients_are_prompt
            handed_over, accepted = connected()
            with handed_over:
                server.do_handle(accepted, handed_over.getsockname())
                exchange(handed_over)
                assert [options_of(one) for one in server._connections] == [[(1, 1)] * 2] * 3


def test_a_server_without_clients_holds_one_socket_in_reserve(
    serve: Any, echo: StreamServer
) -> None:
    server = serve(ForwardServer(("127.0.0.1", 0), echo.address))
    before = open_fds()
    for _ in range(3):
        with socket.create_connection(server.address) as client:
            exchange(client)
        wait_until(lambda: len(open_fds().items() - before.items()) == 1)
    server.stop(0)
    assert not leaked_fds(before)
