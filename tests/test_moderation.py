"""Promise 6, the exception: the source of a stream is looked at by a timer, many writes at a time.

Whether a source is quick enough for a stream depends on the machine: here any is (see `moderated`).
"""

from __future__ import annotations

import socket as standard_socket
import threading
import time

import gevent
import pytest
from gevent import socket
from moderated import SMALL, SPLICED, Stream
from peers import (
    MakeLine,
    Pairs,
    Spawn,
    is_stream,
    pattern,
    receive,
    reset,
    send_and_end,
    wait_until,
)
from races import before_method

import gsplice
from gsplice import _moderation
from gsplice._moderation import PERIOD
from gsplice._pump import Pump
from gsplice._ticks import Ticks

#: Seconds, generous, so that what waits for the bound can be told from what does not.
LONG_BOUND = 4.0
#: Seconds that a busy machine may take for what should take no time.
SLACK = 2.0


# What it is for.


def test_many_small_writes_cost_few_wake_ups(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, any_pace: None
) -> None:
    client, source, sink, backend = line()
    received = spawn(receive, backend)
    wake_ups = before_method(monkeypatch, Pump, "on_readable", lambda: None)
    ticks = before_method(monkeypatch, Pump, "on_due", lambda: None)
    data = pattern(2_000_000)

    def write() -> None:
        for start in range(0, len(data), SMALL):
            sock.sendall(data[start : start + SMALL])

    with standard_socket.socket(fileno=client.detach()) as sock:
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transfer = gsplice.Transfer(source, sink).start()
        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: transfer.moved == len(data))
        writer.join()
    assert transfer.get(timeout=5) == len(data)
    sink.shutdown(socket.SHUT_WR)
    assert received.get() == data
    assert len(wake_ups) + len(ticks) < len(data) // SMALL // 4


@pytest.mark.parametrize("size", [SMALL, SPLICED])
def test_the_source_of_small_writes_is_not_waited_for_and_all_arrives(
    stream: Stream, size: int
) -> None:
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer, size)
    assert stream.line.source._read_event.events == 0
    stream.write(1000, size)
    stream.end(transfer, received)


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_what_has_piled_up_while_the_loop_was_late_goes_on_in_the_next_turns(
    stream: Stream, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsplice._reading._ROUNDS", 2)
    transfer, received = stream.begin(mode=mode)
    stream.write_until_moderated(transfer)
    for _ in range(4):
        stream.pile_up(1_500_000)
    stream.write(100)
    stream.end(transfer, received)


@pytest.mark.parametrize("mode", ["auto", "copy", "splice"])
@pytest.mark.parametrize("size", [SMALL, SPLICED])
@pytest.mark.parametrize("rounds", [1, 8])
def test_what_has_piled_up_may_meet_a_full_sink_in_any_turn(
    stream: Stream, spawn: Spawn, mode: str, size: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsplice._reading._ROUNDS", rounds)
    one = stream
    transfer = gsplice.Transfer(one.line.source, one.line.sink, mode=mode).start()
    one.write_until_moderated(transfer, size)
    data = pattern(20_000_000)
    one.sent += data
    sending = spawn(one.line.client.sendall, data)
    wait_until(lambda: one.line.sink._write_event.active)
    received = spawn(receive, one.line.backend)
    sending.get(timeout=20)
    wait_until(lambda: transfer.moved == len(one.sent))  # without an end to be woken by
    one.end(transfer, received)


# What no byte has to wait for.


@pytest.mark.parametrize("bound", [PERIOD, LONG_BOUND])
def test_the_last_bytes_before_a_pause_do_not_wait_for_more(stream: Stream, bound: float) -> None:
    transfer, received = stream.begin(moderation=bound)
    stream.write_until_moderated(transfer)
    stream.write()
    began = time.monotonic()
    wait_until(lambda: transfer.moved == len(stream.sent))
    assert time.monotonic() - began < SLACK
    stream.end(transfer, received)


def test_after_a_pause_each_message_is_waited_for(stream: Stream) -> None:
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer)
    wait_until(lambda: not is_stream(transfer))
    for _ in range(8):
        assert stream.line.source._read_event.active
        assert stream.line.source._read_event.events & 1
        stream.write()
        wait_until(lambda: transfer.moved == len(stream.sent))
        assert not is_stream(transfer)
    stream.end(transfer, received)


@pytest.mark.parametrize("how", ["end of file", "reset"])
def test_the_end_waits_for_no_tick(
    stream: Stream, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = stream.line.client
    monkeypatch.setattr(_moderation, "Ticks", lambda fd, _period: Ticks(fd, LONG_BOUND))
    transfer, _received = stream.begin()
    stream.write_until_moderated(transfer)
    began = time.monotonic()
    if how == "reset":
        reset(client)
        transfer.wait(5)
        assert isinstance(transfer.exception, ConnectionResetError)
    else:
        send_and_end(client, b"the last")
        assert transfer.get(timeout=5) == len(stream.sent) + len(b"the last")
    assert time.monotonic() - began < SLACK


def test_the_end_of_file_that_the_timer_meets_first_is_an_end_like_any(stream: Stream) -> None:
    transfer, received = stream.begin()
    stream.write_until_moderated(transfer)
    stream.line.client.shutdown(socket.SHUT_WR)
    transfer._engine.on_due()  # a hub that was late calls timers before sockets
    stream.end(transfer, received)


def test_a_limit_is_reached_without_waiting_for_more(stream: Stream) -> None:
    count = 400 * SMALL
    transfer, _received = stream.begin(count=count, moderation=LONG_BOUND)
    began = time.monotonic()
    stream.write(400)
    assert transfer.get(timeout=5) == count
    assert time.monotonic() - began < SLACK


# What is no stream.


def test_an_exchange_of_requests_and_responses(
    line: MakeLine, spawn: Spawn, any_pace: None
) -> None:
    client, source, sink, backend = line()
    spawn(gsplice.copy, backend, backend)
    relay = gsplice.Relay(source, sink).start()
    for number in range(2000):
        client.sendall(request := pattern(64, number))
        assert receive(client, 64) == request
        assert not is_stream(relay.up)
        assert not is_stream(relay.down)
    relay.stop()


def test_an_exchange_that_two_copies_serve(line: MakeLine, spawn: Spawn, any_pace: None) -> None:
    client, source, sink, backend = line()
    spawn(gsplice.copy, backend, backend)
    up = gsplice.Transfer(source, sink).start()
    down = gsplice.Transfer(sink, source).start()
    for number in range(2000):
        client.sendall(request := pattern(64, number))
        assert receive(client, 64) == request
        assert not is_stream(up)
        assert not is_stream(down)
    up.stop()
    down.stop()


@pytest.mark.parametrize("size", [64, 4096, 12_000])
def test_an_exchange_whose_answers_take_another_way_is_tried_ever_less_often(
    line: MakeLine, size: int, monkeypatch: pytest.MonkeyPatch, any_pace: None
) -> None:
    """Nothing tells it from a stream but that a tick finds one message, and so few are delayed."""
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink).start()
    ticks = before_method(monkeypatch, Pump, "on_due", lambda: None)
    for number in range(1000):
        client.sendall(request := pattern(size, number))
        assert receive(backend, size) == request
    assert len(ticks) < 10
    transfer.stop()


def test_slow_messages(line: MakeLine, spawn: Spawn) -> None:
    stream = Stream(line(), spawn)
    transfer, received = stream.begin()
    for _ in range(200):
        stream.write()
        gevent.sleep(0.001)  # the pause is what is tested
        assert not is_stream(transfer)
    stream.end(transfer, received)


def test_large_writes(stream: Stream) -> None:
    """What comes in a millisecond would be more than fits into the caches, and into a window."""
    transfer, received = stream.begin()
    for _ in range(500):
        stream.write(size=100_000)
        assert not is_stream(transfer)
    stream.end(transfer, received)


@pytest.mark.parametrize("bound", [0, 0.0005], ids=["off", "a bound that no timer can keep"])
def test_where_it_is_turned_off(stream: Stream, bound: float) -> None:
    transfer, received = stream.begin(moderation=bound)
    for _ in range(500):
        stream.write()
        assert transfer._engine._moderation is None
    stream.end(transfer, received)


def test_a_unix_socket_of_which_nobody_knows_what_its_peer_was_sent(
    pairs: Pairs, any_pace: None
) -> None:
    client, source = pairs("unix")
    sink, backend = pairs("unix")
    transfer = gsplice.Transfer(source, sink).start()
    for number in range(500):
        client.sendall(message := pattern(SMALL, number))
        assert receive(backend, SMALL) == message
        assert not is_stream(transfer)
    transfer.stop()
