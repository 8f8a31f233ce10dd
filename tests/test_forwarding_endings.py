"""What ends an exchange before its time: a stop, a time-out, an error, a step that goes wrong."""

from __future__ import annotations

import errno
from typing import Any

import gevent
import pytest
from forwarded import there_and_back
from gevent import socket
from peers import fill, pattern, receive, reset, wait_until
from races import before_method

import gsplice
from gsplice import _forwarding, _gevent, _hub
from gsplice._direction import TransferStopped
from gsplice._forwarding import Forwarding
from gsplice._forwarding import _Way as Way


def test_a_stopped_exchange_is_a_stopped_relay(forwarded: Any) -> None:
    one = forwarded()
    there_and_back(one)
    assert one.is_exchange
    for _ in range(2):
        one.forwarding.stop()
    assert gsplice.stats().active == 0
    assert isinstance(one.error(), TransferStopped)
    one.forwarding.stop()


def test_an_idle_exchange_is_timed_out_and_one_with_messages_is_not(forwarded: Any) -> None:
    idle, busy = forwarded(idle_timeout=1), forwarded(idle_timeout=1)
    messages = 0
    while not idle.told:
        if messages < _forwarding._MOST_MESSAGES - 1:
            there_and_back(busy, b"x")
            messages += 1
        gevent.sleep(0.2)  # now and then is what is tested
    assert isinstance(idle.error(), TimeoutError)
    assert busy.is_exchange
    assert busy.told == []


@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_is_the_error_of_both_ways(who: str, forwarded: Any) -> None:
    one = forwarded()
    there_and_back(one)
    reset(getattr(one, who))
    assert isinstance(one.error(), ConnectionResetError)
    assert gsplice.stats().active == 0


def test_an_answer_that_came_before_the_backend_was_gone_is_delivered(forwarded: Any) -> None:
    one = forwarded("unix")
    one.backend.sendall(b"no, thank you")
    one.backend.close()
    one.client.sendall(b"would you like")
    assert receive(one.client, 13) == b"no, thank you"
    assert isinstance(one.error(), (BrokenPipeError, type(None)))


def test_a_sink_that_cannot_be_told_of_the_end_is_an_error(
    forwarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sock: Any) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(_forwarding._shutdown, "half_close", fail)
    one = forwarded()
    one.client.shutdown(socket.SHUT_WR)
    assert str(one.error()) == "no such thing"


@pytest.mark.parametrize("end", ["source", "sink"])
def test_an_end_that_is_shut_down_by_another_greenlet_is_an_error(end: str, forwarded: Any) -> None:
    one = forwarded()
    getattr(one.line, end).shutdown(socket.SHUT_RDWR)
    assert type(one.error()) is socket.cancel_wait_ex


@pytest.mark.parametrize("end", ["source", "sink"])
def test_an_end_that_is_closed_by_another_greenlet_is_an_error(end: str, forwarded: Any) -> None:
    one = forwarded()
    there_and_back(one)
    getattr(one.line, end).close()
    assert type(one.error()) is socket.cancel_wait_ex
    assert gsplice.stats().active == 0


def test_an_end_that_is_closed_once_nobody_waits_for_it_is_an_error(forwarded: Any) -> None:
    one = forwarded()
    one.client.shutdown(socket.SHUT_WR)
    assert receive(one.backend) == b""
    one.line.source.close()
    one.backend.sendall(b"for nobody")
    error = one.error()
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF


def test_a_socket_in_non_blocking_mode_is_forwarded_to_its_end(forwarded: Any) -> None:
    one = forwarded()
    one.line.sink.settimeout(0)
    for number in range(2 * _forwarding._MOST_MESSAGES):
        there_and_back(one, b"number %d" % number)
    one.client.close()
    one.backend.close()
    assert one.error() is None


def test_a_bug_in_a_step_ends_it_and_is_reported(
    forwarded: Any, monkeypatch: pytest.MonkeyPatch, hub_errors: list[Any]
) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Forwarding, "moved", bug)
    one = forwarded()
    one.client.sendall(b"hello")
    assert isinstance(one.error(), TransferStopped)
    assert [type(error) for _, error in hub_errors] == [ZeroDivisionError]
    hub_errors.clear()


@pytest.mark.parametrize("step", ["recv_into", "send"])
def test_the_handler_of_a_signal_may_stop_it_within_a_step(
    step: str, forwarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = forwarded()
    way = one.forwarding._up
    name = "_receive" if step == "recv_into" else "_send"
    call = getattr(way, name)

    def stop_then_call(data: Any) -> int:
        one.forwarding.stop()
        return 0 if step == "recv_into" else call(data) - 1

    setattr(way, name, stop_then_call)
    one.client.sendall(b"hello")
    assert isinstance(one.error(), TransferStopped)
    assert gsplice.stats().active == 0


@pytest.mark.parametrize(
    ("of", "name", "number"),
    [(Way, "on_readable", 2), (Way, "stop", 1), (Forwarding, "_end_exchange", 1)],
)
def test_the_handler_of_a_signal_may_stop_it_right_before_a_step(
    of: Any, name: str, number: int, forwarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_method(monkeypatch, of, name, lambda: one.forwarding.stop(), number)
    one = forwarded()  # which has called on_readable once
    one.client.shutdown(socket.SHUT_WR)
    one.backend.shutdown(socket.SHUT_WR)
    error = one.error()
    assert isinstance(error, TransferStopped) == (of is Way)  # else it has come to its end already
    wait_until(lambda: gsplice.stats().active == 0)
    _gevent.let_loop_pass()
    assert len(one.told) == 1


def test_an_error_that_the_loop_reports_for_nothing_is_not_the_end(forwarded: Any) -> None:
    one = forwarded()
    one.forwarding._up.on_readable(-1)  # what libuv says when it stops to poll
    there_and_back(one)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["_receive", "_send"])
@pytest.mark.parametrize("what", ["a message", "maybe a stream", "what the sink does not take"])
def test_stop_by_a_signal_handler_within_a_step_loses_nothing(
    moment: str, call: str, what: str, forwarded: Any
) -> None:
    one = forwarded()
    way = one.forwarding._up
    message = pattern(_hub.LARGE_READ if what == "maybe a stream" else 5)
    is_full = what == "what the sink does not take"
    if is_full:
        fill(one.line.sink)
    system_call = getattr(way, call)

    def interrupted(buffer: Any) -> Any:
        if moment == "before":
            one.forwarding.stop()
        try:
            return system_call(buffer)
        finally:
            one.forwarding.stop()

    setattr(way, call, interrupted)
    one.client.sendall(message)
    assert isinstance(one.error(), TransferStopped)
    (relay,) = one.told
    if is_full:
        assert (way.moved + relay.moved, relay.undelivered) == (0, message)
    else:
        assert (way.moved + relay.moved, relay.undelivered) == (len(message), b"")
        assert receive(one.backend, len(message)) == message
