"""Time-outs whose end nobody will see, on each event loop: libuv counts in milliseconds of 64 bits.

Each test runs in an interpreter of its own, as a process has one kind of loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any

import gevent
import pytest
from forwarder import Forwarder, refuses
from gevent import socket
from gevent.server import StreamServer
from peers import (
    connected,
    errors_of_hub,
    exchange,
    pattern,
    quietly,
    receive,
    run_alone,
    send_back,
    wait_until,
    waits_to_read,
)
from servers import LOOPBACK

import gsplice
from gsplice._options import LONGEST
from gsplice.server import ForwardServer

each_loop = pytest.mark.parametrize("loop", ["libev-cext", "libev-cffi", "libuv"])

#: What libuv takes, what it does not take, and what is no float.
LONG = (LONGEST, LONGEST + 1, 1e12, 1e17, 1e30, math.inf, 10**400, Fraction(10**400, 3))


@contextmanager
def a_line() -> Iterator[tuple[socket.socket, ...]]:
    with ExitStack() as stack:
        yield tuple(stack.enter_context(sock) for _ in range(2) for sock in connected())


# What gsplice is given.


def transfers_with_long_idle_timeouts() -> None:
    with errors_of_hub() as errors:
        for seconds in LONG:
            for make in (gsplice.Transfer, gsplice.Relay):
                with a_line() as (client, source, sink, backend):
                    transfer = make(source, sink, idle_timeout=seconds).start()
                    client.sendall(b"hello")
                    assert receive(backend, 5) == b"hello"
                    wait_until(lambda: waits_to_read(source))
                    assert not transfer.ready()
                    transfer.stop()
        assert errors == []


@each_loop
def test_a_long_idle_timeout_of_a_transfer_does_no_harm(loop: str) -> None:
    run_alone(transfers_with_long_idle_timeouts, GEVENT_LOOP=loop)


def servers_with_long_timeouts() -> None:
    backend = StreamServer(LOOPBACK, quietly(send_back))
    backend.start()

    def dial(_: Any) -> socket.socket:
        return socket.create_connection(backend.address)

    with errors_of_hub() as errors:
        for seconds in LONG:
            for target in (backend.address, dial):
                server = ForwardServer(
                    LOOPBACK, target, idle_timeout=seconds, connect_timeout=seconds
                )
                server.start()
                with socket.create_connection(server.address) as client:
                    exchange(client)
                    exchange(client, pattern(100_000))  # which makes a relay of it
                server.stop()
        assert errors == []
    backend.stop()


@each_loop
def test_long_timeouts_of_a_server_do_no_harm(loop: str) -> None:
    run_alone(servers_with_long_timeouts, GEVENT_LOOP=loop)


@each_loop
def test_a_command_with_long_timeouts_forwards_and_ends(backend: str, loop: str) -> None:
    timeouts = ("--idle-timeout", "1e30", "--connect-timeout", "1e30", "--grace", str(LONGEST))
    with Forwarder("127.0.0.1:0", backend, *timeouts, GEVENT_LOOP=loop) as forwarder:
        forwarder.wait_until_ready()
        client = forwarder.dial()
        exchange(client)
        forwarder.process.terminate()
        wait_until(lambda: refuses(forwarder.address))
        exchange(client)
        client.close()
        assert forwarder.ended() == 0
        assert len(forwarder.output.splitlines()) == 1


def longest_moderation() -> None:
    with a_line() as (client, source, sink, backend):
        transfer = gsplice.Transfer(source, sink, moderation=LONGEST).start()
        sending = gevent.spawn(client.sendall, pattern(1_000_000))
        assert receive(backend, 1_000_000) == pattern(1_000_000)
        sending.get()
        transfer.stop()


@each_loop
def test_the_longest_moderation_that_may_be_holds_nothing_back(loop: str) -> None:
    run_alone(longest_moderation, GEVENT_LOOP=loop)


@pytest.mark.parametrize("seconds", LONG[1:], ids=lambda seconds: f"{seconds!r:.8}")
@pytest.mark.parametrize("call", [gsplice.copy, gsplice.relay, gsplice.Transfer, gsplice.Relay])
def test_a_moderation_without_an_end_is_refused(call: Any, seconds: Any) -> None:
    with (
        a_line() as (_, source, sink, _),
        pytest.raises(ValueError, match="moderation must not be longer than a hundred years: "),
    ):
        call(source, sink, moderation=seconds)


def test_a_time_of_less_than_no_float_holds_is_refused_as_any_below_nothing() -> None:
    with a_line() as (_, source, sink, _):
        with pytest.raises(ValueError, match="idle_timeout must be more than 0 seconds: -1000"):
            gsplice.Transfer(source, sink, idle_timeout=-(10**400))
        with pytest.raises(ValueError, match="moderation must not be negative: -1000"):
            gsplice.Transfer(source, sink, moderation=-(10**400))


# What gevent is given: with a socket's own time-out, what it does is what gsplice does.


def outcome(source: socket.socket, receive_from: Any) -> Any:
    """Return what *receive_from* raises where nothing is sent to *source*; None if it waits."""

    def begin() -> Any:
        try:
            return receive_from()
        except OverflowError as error:
            return error

    waiting = gevent.spawn(begin)
    wait_until(lambda: waiting.ready() or waits_to_read(source))
    error = waiting.value
    waiting.kill()
    return error


def own_timeouts() -> None:
    with errors_of_hub() as errors:
        for seconds in (1e30, math.inf):
            for mode in ("auto", "splice", "copy"):
                with a_line() as (client, source, sink, _):
                    source.settimeout(seconds)
                    gevents = outcome(source, lambda: source.recv(1))
                    transfer = gsplice.Transfer(source, sink, mode=mode)
                    client.sendall(b"hello")
                    ours = outcome(source, lambda: transfer.start().get())  # noqa: B023
                    assert (type(ours), str(ours)) == (type(gevents), str(gevents))
                    transfer.stop()
                    taken = transfer.moved + len(transfer.undelivered)
                    source.setblocking(False)
                    left = source.recv(5) if taken == 0 else b""
                    assert taken + len(left) == 5
        assert errors == []


@each_loop
def test_a_long_timeout_of_a_sockets_own_is_what_gevent_makes_of_it(loop: str) -> None:
    run_alone(own_timeouts, GEVENT_LOOP=loop)
