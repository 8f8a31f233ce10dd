"""A backend that has answered and gone: what it had sent is delivered, but not for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent import socket
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    MakeLine,
    error_of,
    pattern,
    receive,
    reset,
    wait_until,
    waits_to_write,
)

import gsplice
from gsplice import _hub, _pump

ANSWER = b"413 too large" + pattern(50_000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("begun", [True, False], ids=["running", "not yet begun"])
def test_an_answer_that_came_before_the_backend_went_away_is_not_lost(
    line: MakeLine, spawn: Callable[..., Any], begun: bool, mode: str
) -> None:
    client, source, sink, backend = line()
    relay = gsplice.Relay(source, sink, mode=mode)
    if begun:
        relay.start()
        exchange_both_ways(client, backend)
    received = spawn(receive, client, len(ANSWER))
    client.sendall(b"a request that the backend will not read")
    backend.sendall(ANSWER)
    reset(backend)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        relay.start().get(timeout=5)
    assert received.get() == ANSWER
    assert relay.down.undelivered == b""


def exchange_both_ways(one: socket.socket, other: socket.socket) -> None:
    for here, there in ((one, other), (other, one)):
        here.sendall(b"hello")
        assert receive(there, 5) == b"hello"


def test_what_comes_from_a_backend_that_reads_no_more_does_not_keep_the_relay_for_ever(
    line: MakeLine, spawn: Callable[..., Any]
) -> None:
    client, source, sink, backend = line("unix")
    relay = gsplice.Relay(source, sink).start()
    exchange_both_ways(client, backend)
    backend.shutdown(socket.SHUT_RD)
    backend.sendall(pattern(100_000))
    client.sendall(b"more")
    with pytest.raises(BrokenPipeError):
        relay.get(timeout=5)
    assert receive(client, 100_000) == pattern(100_000)
    assert relay.up.undelivered == b"more"


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_to_a_client_that_does_not_read_is_accounted_for_when_the_backend_goes_away(
    line: MakeLine, spawn: Callable[..., Any], mode: str
) -> None:
    client, source, sink, backend = line()
    data = pattern(MORE_THAN_BUFFERS)
    spawn(error_of, backend.sendall, data)
    relay = gsplice.Relay(source, sink, mode=mode).start()
    wait_until(lambda: waits_to_write(source))
    reset(backend)
    client.sendall(b"more")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        relay.get(timeout=5)
    moved, held = relay.down.moved, relay.down.undelivered
    assert held == data[moved : moved + len(held)] != b""
    assert receive(client, moved) == data[:moved]
    assert relay.up.undelivered == b"more"


def test_an_answer_to_a_client_that_has_gone_as_well_is_accounted_for(line: MakeLine) -> None:
    client, source, sink, backend = line()
    relay = gsplice.Relay(source, sink)
    client.sendall(b"a request")
    backend.sendall(b"an answer")
    reset(backend)
    client.close()
    source.shutdown(socket.SHUT_WR)  # so that nothing can be sent there any more
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        relay.run()
    assert (relay.up.undelivered, relay.down.undelivered) == (b"a request", b"an answer")


def test_what_a_backend_that_has_gone_had_sent_is_not_followed_without_end(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pump, "_LAST_ROUNDS", 0)
    client, source, sink, backend = line()
    relay = gsplice.Relay(source, sink, mode="auto").start()
    client.sendall(b"a request")
    backend.sendall(data := pattern(50_000))
    reset(backend)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        relay.get(timeout=5)
    assert relay.down.moved in (0, _hub.LARGE_READ), (
        "the one read that it may have had its turn for"
    )
    assert receive(client, relay.down.moved) + receive(sink) == data
