"""What befalls a stream that is moderated costs no byte."""

from __future__ import annotations

import errno
import os
from typing import Any

import gevent
import pytest
from eagerness import make_eager
from faults import Fault, always, failing, injected
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from moderated import SMALL, SPLICED, Stream
from peers import (
    Pairs,
    Spawn,
    assert_below,
    cpu_time_of_waiting,
    error_of,
    is_stream,
    pattern,
    receive,
    wait_until,
    waits_to_read,
)
from races import before_method, interrupt, wait_until_interrupted

import gsplice
from gsplice import _gevent, _moderation, _ticks
from gsplice._moderation import PERIOD
from gsplice._pump import Pump


@pytest.fixture(params=[PERIOD, PERIOD / 2], ids=["whole period", "half period"])
def period(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds from one tick to the next, from the second one on; no pause ends the stream."""
    make_eager(monkeypatch, plenty=-1 if request.param < PERIOD else None)
    monkeypatch.setattr(_moderation, "_LITTLE", 0)  # else a slow machine's writes have pauses
    return request.param


# What the system may refuse.


def test_a_kernel_without_the_option_costs_no_transfer(stream: Stream) -> None:
    unknown = always("getsockopt", failing(errno.ENOPROTOOPT))
    with injected(unknown, sockets=[stream.line.source]):
        transfer, received = stream.begin()
        stream.write(200)
        stream.end(transfer, received)
    assert unknown.calls == 1


def test_a_kernel_that_does_not_count_what_it_sends_costs_no_transfer(stream: Stream) -> None:
    brief = always("getsockopt", lambda *_: bytes(104))  # tcp_info as it was before Linux 4.6
    with injected(brief, sockets=[stream.line.source]):
        transfer, received = stream.begin()
        stream.write(200)
        assert brief.calls == 1, "it is not asked again"
        stream.end(transfer, received)


def test_where_there_is_no_fd_left_a_stream_is_waited_for_as_ever(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fd() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(_ticks, "_epoll", no_fd)
    transfer, received = stream.begin()
    stream.write(200)
    assert not is_stream(transfer)
    stream.end(transfer, received)


def test_a_kernel_that_does_not_count_any_more_ends_the_stream(
    stream: Stream, period: float
) -> None:
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer, period=period)
    source = stream.line.source
    with injected(Fault("getsockopt", failing(errno.ENOMEM)), sockets=[source]):
        # The engine has the socket from before.
        transfer._engine._moderation._raw = source._sock
        stream.write(100)
        wait_until(lambda: not is_stream(transfer))
    stream.end(transfer, received)


# What happens meanwhile.


def test_a_stop_right_before_a_tick_leaves_what_has_come_in_the_source(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, period: float
) -> None:
    transfer, received = stream.begin()
    tick = 1 if period == PERIOD else 2
    before_method(monkeypatch, Pump, "on_due", transfer.stop, tick)
    while not transfer.ready():
        stream.write()
    stream.account(transfer, received)


def test_what_libuv_tells_all_that_wait_for_a_socket_is_no_news_to_one_that_only_ticks(
    stream: Stream, period: float
) -> None:
    """Of an error it tells each watcher of the fd, in negative events, whatever it waits for."""
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer, period=period)
    stream.pile_up(SMALL)
    while not transfer._engine._has_claim:
        stream.write()
    stream.line.source._read_event.callback(-errno.ECONNRESET)
    stream.write(3)
    stream.end(transfer, received)


def test_what_a_signal_handler_raises_at_a_tick_ends_the_transfer(
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    hub_errors: list[Any],
    period: float,
) -> None:
    """Else nothing would end it any more: gevent stops the watcher whose callback raises."""
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer, period=period)
    before_method(monkeypatch, Pump, "_tick", interrupt)
    wait_until_interrupted(hub_errors, lambda: stream.write(5000))
    assert isinstance(error_of(transfer.get, 5), gsplice.TransferStopped)
    stream.account(transfer, received)


def test_a_source_that_is_closed_in_between_is_an_error_that_loses_nothing(
    stream: Stream, period: float
) -> None:
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer, period=period)
    stream.line.source.close()
    transfer.wait(5)
    assert isinstance(transfer.exception, socket.cancel_wait_ex)
    stream.line.sink.shutdown(socket.SHUT_WR)
    assert stream.sent.startswith(received.get() + transfer.undelivered)


@pytest.mark.parametrize("size", [SMALL, SPLICED])
def test_a_second_reader_is_refused_and_the_stream_goes_on(
    stream: Stream, size: int, period: float
) -> None:
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer, size, period)
    source = stream.line.source
    second = gsplice.Transfer(source, stream.line.sink).start()
    second.wait(5)
    assert isinstance(second.exception, ConcurrentObjectUseError)
    with pytest.raises(ConcurrentObjectUseError):
        socket.wait(source._read_event)
    stream.write(200, size)
    stream.end(transfer, received)
    assert source._read_event.callback is None
    assert source._read_event.events & 1


def test_a_source_that_somebody_waits_for_is_not_claimed_and_they_go_on_waiting(
    pairs: Pairs, spawn: Spawn
) -> None:
    client, source = pairs()
    reading = spawn(source.recv, 1)
    wait_until(lambda: waits_to_read(source))
    with pytest.raises(ConcurrentObjectUseError):
        _gevent.claim(source._read_event, lambda: None)
    client.sendall(b"x")
    assert reading.get() == b"x"


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_stalled_sink_costs_no_ticks(stream: Stream, has_ended: bool, period: float) -> None:
    client, source, sink, backend = stream.line
    received = gevent.spawn(receive, backend, 5000 * SMALL)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer, period=period)
    received.kill()
    client.setblocking(False)
    stalled = transfer.moved
    while True:  # the backend does not read: at last nothing moves
        try:
            client.send(pattern(1 << 16))
        except BlockingIOError:
            if transfer.moved == stalled:
                break
            stalled = transfer.moved
            gevent.sleep(0.01)
    if has_ended:
        client.shutdown(socket.SHUT_WR)
    assert_below(0.05, lambda: cpu_time_of_waiting(0.2))
    transfer.stop()
