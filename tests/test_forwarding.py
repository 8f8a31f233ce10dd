"""A connection that is forwarded: an exchange of a few small messages, then a relay."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent
import pytest
from forwarded import OPTIONS, Forwarded, lean, there_and_back
from gevent import socket
from peers import connected, fill, is_readable, pattern, receive, small_buffers, wait_until

import gsplice
from gsplice import _forwarding, _hub
from gsplice._forwarding import Forwarding


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def any_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Short ones.


def test_a_short_connection_is_an_exchange_to_its_end(any_kind: str, forwarded: Any) -> None:
    before = gsplice.stats()
    one = forwarded(any_kind)
    assert gsplice.stats().active == 2
    there_and_back(one)
    one.client.close()
    assert receive(one.backend) == b""
    assert (one.is_exchange, one.told) == (True, [])
    one.backend.close()
    assert one.error() is None
    assert one.is_exchange
    after = gsplice.stats()
    assert (after.copied - before.copied, after.spliced - before.spliced) == (10, 0)
    assert after.active == 0


def test_what_the_client_has_sent_already_goes_at_once(forwarded: Any) -> None:
    client, source = connected()
    sink, backend = connected()
    client.sendall(b"hello")
    wait_until(lambda: is_readable(source))
    ends, told = (lean(source), lean(sink)), []
    forwarding = Forwarding(*ends, OPTIONS, told.append)
    forwarding.start(True)
    wait_until(lambda: is_readable(backend))  # and the hub's loop has not run
    assert receive(backend, 5) == b"hello"
    forwarding.stop()
    wait_until(lambda: told)
    for sock in (client, backend, *ends):
        sock.close()


@pytest.mark.parametrize("first", ["client", "backend"])
def test_either_may_be_the_first_to_end(first: str, any_kind: str, forwarded: Any) -> None:
    one = forwarded(any_kind)
    near, far = (one.client, one.backend)[:: 1 if first == "client" else -1]
    near.sendall(b"the last of mine")
    near.shutdown(socket.SHUT_WR)
    assert receive(far) == b"the last of mine"
    far.sendall(b"and the last of mine")
    far.shutdown(socket.SHUT_WR)
    assert receive(near, 20) == b"and the last of mine"
    assert one.error() is None
    assert one.is_exchange


@pytest.mark.parametrize("idle_timeout", [None, 60])
def test_an_exchange_that_is_over_is_no_cycle(idle_timeout: float | None) -> None:
    one = Forwarded(idle_timeout=idle_timeout)
    there_and_back(one)
    one.client.close()
    one.backend.close()
    assert one.error() is None
    one.close()
    kept = weakref.ref(one.line.source)
    gc.disable()  # it would find a cycle
    try:
        del one
        assert kept() is None
    finally:
        gc.enable()


# Those that last.


def test_after_a_few_messages_it_is_a_relay(forwarded: Any) -> None:
    one = forwarded()
    for number in range(2 * _forwarding._MOST_MESSAGES):
        assert one.is_exchange == (number < _forwarding._MOST_MESSAGES)
        there_and_back(one, b"number %d" % number)
    assert gsplice.stats().active == 2


@pytest.mark.parametrize("size", [_hub.LARGE_READ - 1, _hub.LARGE_READ, 1_000_000])
def test_what_fills_the_buffer_comes_whole(size: int, any_kind: str, forwarded: Any) -> None:
    one = forwarded(any_kind)
    data = pattern(size)
    for near, far in ((one.client, one.backend), (one.backend, one.client)):
        sending = gevent.spawn(near.sendall, data)
        assert receive(far, size) == data
        sending.get()
    assert one.is_exchange == (size < _hub.LARGE_READ)


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_a_sink_does_not_take_is_the_first_that_the_relay_sends(
    way: str, forwarded: Any
) -> None:
    one = forwarded("unix")
    near, sink, far = (
        (one.client, one.line.sink, one.backend)
        if way == "up"
        else (one.backend, one.line.source, one.client)
    )
    small_buffers(sink)
    small_buffers(far)
    there = fill(sink)
    message = pattern(_hub.LARGE_READ - 1)
    near.sendall(message)
    wait_until(lambda: not one.is_exchange)
    near.shutdown(socket.SHUT_WR)
    received = receive(far)
    assert received[there:] == message


def test_an_end_that_was_passed_on_is_no_news_to_the_relay(any_kind: str, forwarded: Any) -> None:
    one = forwarded(any_kind)
    one.client.sendall(b"a question")
    one.client.shutdown(socket.SHUT_WR)
    assert receive(one.backend) == b"a question"
    answer = pattern(3_000_000)
    sending = gevent.spawn(one.backend.sendall, answer)
    assert receive(one.client, len(answer)) == answer
    sending.get()
    assert not one.is_exchange
    one.backend.close()
    assert one.error() is None


@pytest.mark.parametrize(
    ("wanted", "options"), [(True, {"mode": "splice"}), (False, {}), (True, {"mode": "copy"})]
)
def test_where_all_is_to_be_spliced_there_is_no_exchange(
    wanted: bool, options: Any, forwarded: Any
) -> None:
    with socket.socket() as listener:
        raw = listener._sock
        may = wanted and _forwarding.may_exchange(raw, OPTIONS | options)
    one = forwarded(exchange=may, **options)
    assert one.is_exchange == may == (options.get("mode") == "copy")
    before = gsplice.stats().spliced
    there_and_back(one)
    one.client.close()
    one.backend.close()
    assert one.error() is None
    assert gsplice.stats().spliced - before == (10 if options.get("mode") == "splice" else 0)


def test_sockets_that_somebody_else_made_are_relayed(forwarded: Any) -> None:
    (client, source), (sink, backend) = connected(), connected()
    told: list[Any] = []
    Forwarding(source, lean_sink := lean(sink), OPTIONS, told.append).start(True)
    client.sendall(b"hello")
    assert receive(backend, 5) == b"hello"
    assert gsplice.stats().active == 2
    client.close()
    backend.close()
    wait_until(lambda: told)
    assert told[0].get() == (5, 0)
    source.close()
    lean_sink.close()


@pytest.mark.parametrize("kind", ["SOCK_SEQPACKET", "SOCK_DGRAM"])
def test_only_streams_are_exchanged(kind: str) -> None:
    with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as listener:
        assert not _forwarding.may_exchange(listener._sock, OPTIONS)
