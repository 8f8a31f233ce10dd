"""What holds for every test: a deadline, no fd left behind, and no error that nobody saw."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from across import across, net
from contract import ends, files
from example_programs import beside
from forwarded import forwarded
from gevent import socket
from gevent.server import StreamServer
from moderated import any_pace, stream
from peers import (
    Line,
    MakeLine,
    Pair,
    Pairs,
    Spawn,
    connected,
    connected_tls,
    errors_of_hub,
    leaked_fds,
    open_fds,
    send_back,
)
from servers import dial, echo, forward, keep, listen, never_accepts, no_fds, serve
from wrapped import with_wrapper

import gsplice
from gsplice import _hub

#: Fixtures that stand where what they make does.
__all__ = [
    "across",
    "any_pace",
    "beside",
    "dial",
    "echo",
    "ends",
    "files",
    "forward",
    "forwarded",
    "keep",
    "listen",
    "net",
    "never_accepts",
    "no_fds",
    "serve",
    "stream",
    "with_wrapper",
]

#: Seconds that a test may wait in the hub, and that it may take at all.
HUB_DEADLINE = 20.0
DEADLINE = 60.0
TAKEOVERS = ("socket", "shutil", "http", "pywsgi", "gunicorn")


def pytest_configure(config: pytest.Config) -> None:
    """Take every warning for an error, and Ctrl-C for what it is.

    What runs in the background of a script ignores SIGINT, and so would the programs under test.
    """
    config.addinivalue_line("filterwarnings", "error")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound every test that has no bound of its own."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(DEADLINE))


@pytest.fixture(scope="session", autouse=True)
def _running_hub() -> None:
    """Open what the hub and its threads keep open, before the first test counts fds."""
    gevent.get_hub().threadpool.apply(int)
    gevent.sleep(0)


@pytest.fixture(scope="module", autouse=True)
def _what_other_modules_left() -> None:
    """Collect what became garbage while it was frozen: the fixtures of the last module, say."""
    gc.unfreeze()
    gc.collect()


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """Fail a test that leaves an fd, a transfer or a takeover behind."""
    gc.freeze()  # what is there already need not be looked at after the test
    _hub.resources().pipes.close()
    before = open_fds()
    yield
    gc.collect()
    leaked = leaked_fds(before)
    active = gsplice.stats().active
    patched = [name for name in TAKEOVERS if gsplice.is_patched(name)]
    gsplice.unpatch_all()
    assert not leaked, f"left open: {leaked}"
    assert not active, f"{active} transfers are still active"
    assert not patched, f"takeovers are still on: {patched}"


@pytest.fixture(autouse=True)
def hub_errors() -> Iterator[list[Any]]:
    """Fail a test in which an error went to the hub; one that expects it clears the list."""
    with errors_of_hub() as errors:
        yield errors
    assert not errors, f"errors that nobody saw: {errors}"


@pytest.fixture(autouse=True)
def _hub_deadline() -> Iterator[None]:
    """End a test that waits for ever for something that does not come."""
    with gevent.Timeout(HUB_DEADLINE):
        yield


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """Make connections, of a kind from `peers.KINDS` or "tls"; all are closed at the end."""
    made: list[socket.socket] = []

    def make(kind: str = "tcp") -> Pair:
        pair = connected_tls() if kind == "tls" else connected(kind)
        made.extend(pair)
        return pair

    yield make
    for sock in made:
        sock.close()


@pytest.fixture
def line(pairs: Pairs) -> MakeLine:
    """Make two connections with room for a transfer between them."""

    def make(source_kind: str = "tcp", sink_kind: str | None = None) -> Line:
        client, source = pairs(source_kind)
        sink, backend = pairs(sink_kind or source_kind)
        return Line(client, source, sink, backend)

    return make


@pytest.fixture
def backend() -> Iterator[str]:
    """Run an echo server; this is its address as the command line takes it."""
    server = StreamServer(("127.0.0.1", 0), send_back)
    server.start()
    yield f"127.0.0.1:{server.server_port}"
    server.stop(0)


@pytest.fixture
def no_fd_left() -> Iterator[Callable[[], None]]:
    """Have the process at its limit of fds, from a call to the end of the test."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower_the_limit() -> None:
        with open(os.devnull) as probe:
            lowest_free = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))

    yield lower_the_limit
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start greenlets, which are peers or callers; none survives the test."""
    started: list[gevent.Greenlet[..., Any]] = []

    def start(*args: Any, **kwargs: Any) -> gevent.Greenlet[..., Any]:
        greenlet = gevent.spawn(*args, **kwargs)
        started.append(greenlet)
        return greenlet

    yield start
    gevent.killall(started, timeout=5)
