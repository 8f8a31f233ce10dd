"""Connections across a network of two hosts and a router, whose ends are all in this process."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from gevent import socket
from network import Host, Interface, Network, missing, network
from peers import MODES, Line

KEEPALIVE = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
EACH_MODE = pytest.mark.parametrize("mode", MODES)

# struct tcp_info (linux/tcp.h): tcpi_retransmits, tcpi_probes and tcpi_backoff, each a byte.
IN_VAIN = struct.Struct("2xBBB")

Across: TypeAlias = Callable[[], Line]


def allowed() -> None:
    """Skip the test where there can be no network; but fail it where CI is true."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def net() -> Iterator[Network]:
    """Build the hosts and the cables."""
    allowed()
    with network() as built:
        for host in (built.client.host, built.router, built.server.host):
            bound_buffers(host)
        yield built


def bound_buffers(host: Host) -> None:
    """Have a connection keep a MiB at the most; `MORE_THAN_BUFFERS` is more than that, then."""
    for name in ("ipv4/tcp_rmem", "ipv4/tcp_wmem"):
        host.set(name, f"4096 131072 {1 << 20}")


def socket_on(host: Host) -> socket.socket:
    with host.entered():
        return socket.socket()


def listen_on(end: Interface) -> socket.socket:
    listener = socket_on(end.host)
    listener.bind((end.address, 0))
    listener.listen()
    return listener


def connected(near: Interface, far: Interface) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new connection between two hosts."""
    client = socket_on(near.host)
    with listen_on(far) as listener:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    for sock in (client, server):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def line_across(net: Network, keep: Callable[..., Any]) -> Line:
    """Return what a transfer on the router stands between."""
    client, source = map(keep, connected(net.client, net.router_to_client))
    sink, backend = map(keep, connected(net.router_to_server, net.server))
    return Line(client, source, sink, backend)


@pytest.fixture
def across(net: Network, keep: Any) -> Across:
    """Make a connection from the client to the router, and one from there to the server."""
    return lambda: line_across(net, keep)


def tries_in_vain(sock: socket.socket) -> int:
    """Return how often *sock* has sent what is due, or asked for room, and got no answer."""
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, IN_VAIN.size)
    return sum(IN_VAIN.unpack(information))
