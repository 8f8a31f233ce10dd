"""A `ForwardServer` in the process of the test, and what stands before and behind it: fixtures."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import quietly, send_back

from gsplice.server import ForwardServer

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def keep() -> Iterator[Callable[[socket.socket], socket.socket]]:
    """Keep sockets until all servers have been stopped, then close them."""
    kept: list[socket.socket] = []

    def keep_one(sock: socket.socket) -> socket.socket:
        kept.append(sock)
        return sock

    yield keep_one
    for sock in kept:
        sock.close()


@pytest.fixture
def listen(keep: Any) -> Callable[..., socket.socket]:
    """Listen at an address, or the path of a unix socket."""

    def bind(address: Any = LOOPBACK, backlog: int = 8) -> socket.socket:
        listener = keep(socket.socket(family_of(address)))
        listener.bind(address)
        listener.listen(backlog)
        return listener

    return bind


def family_of(address: Any) -> socket.AddressFamily:
    return socket.AF_UNIX if isinstance(address, str) else socket.AF_INET


@pytest.fixture
def serve(keep: Any) -> Iterator[Callable[..., Any]]:
    """Start servers; at the end all are stopped, with what they serve."""
    started: list[StreamServer] = []

    def start(server: StreamServer) -> StreamServer:
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop(0)


@pytest.fixture
def forward(serve: Callable[..., Any]) -> Callable[..., ForwardServer]:
    """Start a forwarder to a target."""

    def start(target: Any, **options: Any) -> ForwardServer:
        return serve(ForwardServer(LOOPBACK, target, **options))

    return start


@pytest.fixture
def echo(serve: Callable[..., Any]) -> StreamServer:
    """Run a backend that sends back what it gets, until the end of file."""
    return serve(StreamServer(LOOPBACK, quietly(send_back)))


@pytest.fixture
def dial() -> Iterator[Callable[[StreamServer], socket.socket]]:
    """Connect to servers; all connections are closed at the end."""
    made: list[socket.socket] = []

    def connect(server: StreamServer) -> socket.socket:
        made.append(socket.create_connection(server.address[:2], timeout=10))
        return made[-1]

    yield connect
    for sock in made:
        sock.close()


@pytest.fixture
def never_accepts(keep: Any, listen: Any, tmp_path: Path) -> Callable[[str], socket.socket]:
    """Return a listener whose backlog is full."""

    def fill_backlog(kind: str) -> socket.socket:
        listener = listen(str(tmp_path / "full") if kind == "unix" else LOOPBACK, 0)
        for _ in range(4):
            client = keep(socket.socket(listener.family))
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        return listener

    return fill_backlog


@pytest.fixture
def no_fds() -> Iterator[Callable[[], None]]:
    """Allow the process no further fd, until it is called again or the test is over."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def toggle() -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE) != limits:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        else:
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))

    yield toggle
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
