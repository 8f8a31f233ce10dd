"""Promise 6, the exception: the source of a stream is looked at by a timer, many writes at a time.

Whether a source is quick enough for a stream depends on the machine. Where that is not what is
tested, any is; where it is, the clock is the test's own.
"""

from __future__ import annotations

import errno
import os
import socket as standard_socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from eagerness import make_eager
from faults import Fault, always, failing, injected
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError
from peers import (
    Line,
    MakeLine,
    Pairs,
    Spawn,
    is_stream,
    pattern,
    peeked,
    receive,
    reset,
    send_and_end,
    wait_until,
)
from races import before_method

import gsplice
from gsplice import _gevent, _moderation
from gsplice._moderation import NEVER, PATIENCE, PERIOD, Moderation
from gsplice._pump import Pump

#: Bytes of a small write, and of one that is not.
SMALL = 512
LARGE = 20_000
#: Seconds, generous, so that what waits for the bound can be told from what does not.
LONG_BOUND = 0.5
#: Seconds that a busy machine may take for what should take no time.
SLACK = 0.25


def mark(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.fixture
def any_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a source taken for a stream however quick or slow this machine is."""
    make_eager(monkeypatch)


class Stream:
    """One write after the other, each in a pass of the hub of its own."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.sent = bytearray()

    def write(self, times: int = 1, size: int = SMALL) -> None:
        for _ in range(times):
            piece = pattern(size, len(self.sent) % 251)
            self.line.client.sendall(piece)
            self.sent += piece
            _gevent.let_loop_pass()

    def write_until_moderated(self, transfer: Any, size: int = SMALL) -> None:
        for _ in range(5000):
            self.write(size=size)
            if is_stream(transfer):
                return
        pytest.fail("a stream of 5,000 writes was not moderated")

    def end(self, transfer: gsplice.Transfer, received: Any) -> None:
        """Come to an end; all of it has to arrive."""
        self.line.client.shutdown(socket.SHUT_WR)
        assert transfer.get(timeout=5) == len(self.sent)
        self.line.sink.shutdown(socket.SHUT_WR)
        assert received.get() == self.sent


@pytest.fixture
def stream(line: MakeLine, any_pace: None) -> Stream:
    return Stream(line())


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


def test_the_source_of_small_writes_is_not_waited_for_and_all_arrives(
    stream: Stream, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    stream.write_until_moderated(transfer)
    assert stream.line.source._read_event.events == 0
    stream.write(2000)
    stream.end(transfer, received)


def test_the_source_of_larger_writes_has_a_mark_and_all_arrives(
    stream: Stream, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    stream.write_until_moderated(transfer, LARGE)
    assert mark(stream.line.source) == 256 * 1024
    assert stream.line.source._read_event.active
    stream.write(500, LARGE)
    stream.end(transfer, received)
    assert mark(stream.line.source) == 1


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_what_has_piled_up_while_the_loop_was_late_goes_on_in_the_next_turns(
    line: MakeLine, spawn: Spawn, mode: str, any_pace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsplice._pump._ROUNDS", 2)
    one = Stream(line())
    received = spawn(receive, one.line.backend)
    transfer = gsplice.Transfer(one.line.source, one.line.sink, mode=mode).start()
    one.write_until_moderated(transfer)
    for _ in range(4):
        one.line.client.sendall(piece := pattern(1_500_000))
        one.sent += piece
    one.write(100)
    one.end(transfer, received)


@pytest.mark.parametrize("mode", ["auto", "copy", "splice"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("rounds", [1, 8])
def test_what_has_piled_up_may_meet_a_full_sink_in_any_turn(
    stream: Stream, spawn: Spawn, mode: str, size: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsplice._pump._ROUNDS", rounds)
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


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("bound", [PERIOD, LONG_BOUND])
def test_the_last_bytes_before_a_pause_do_not_wait_for_more(
    stream: Stream, size: int, bound: float, spawn: Spawn
) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink, moderation=bound).start()
    stream.write_until_moderated(transfer, size)
    stream.write()
    began = time.monotonic()
    wait_until(lambda: transfer.moved == len(stream.sent))
    assert time.monotonic() - began < SLACK
    stream.end(transfer, received)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_after_a_pause_each_message_is_waited_for(stream: Stream, size: int, spawn: Spawn) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer, size)
    wait_until(lambda: not is_stream(transfer))
    assert mark(source) == 1
    for _ in range(8):
        assert source._read_event.active
        assert source._read_event.events & 1
        stream.write()
        wait_until(lambda: transfer.moved == len(stream.sent))
        assert not is_stream(transfer)
    stream.end(transfer, received)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("how", ["end of file", "reset"])
def test_the_end_waits_for_no_tick(
    stream: Stream, size: int, how: str, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source, sink, backend = stream.line
    spawn(receive, backend)
    monkeypatch.setattr(_moderation, "PERIOD", LONG_BOUND)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer, size)
    began = time.monotonic()
    if how == "reset":
        reset(client)
        transfer.wait(5)
        assert isinstance(transfer.exception, ConnectionResetError)
    else:
        send_and_end(client, b"the last")
        assert transfer.get(timeout=5) == len(stream.sent) + len(b"the last")
    assert time.monotonic() - began < SLACK
    assert mark(source) == 1


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_end_of_file_that_the_timer_meets_first_is_an_end_like_any(
    stream: Stream, size: int, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    stream.write_until_moderated(transfer, size)
    stream.line.client.shutdown(socket.SHUT_WR)
    transfer._engine.on_due()  # a hub that was late calls timers before sockets
    stream.end(transfer, received)


def test_a_limit_is_reached_without_waiting_for_more(stream: Stream, spawn: Spawn) -> None:
    _client, source, sink, backend = stream.line
    spawn(receive, backend)
    count = 400 * SMALL
    transfer = gsplice.Transfer(source, sink, count, moderation=LONG_BOUND).start()
    began = time.monotonic()
    stream.write(400)
    assert transfer.get(timeout=5) == count
    assert time.monotonic() - began < LONG_BOUND + SLACK


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


def test_slow_messages(line: MakeLine, spawn: Spawn) -> None:
    stream = Stream(line())
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    for _ in range(200):
        stream.write()
        gevent.sleep(0.001)  # the pause is what is tested
        assert not is_stream(transfer)
    stream.end(transfer, received)


@pytest.mark.parametrize("bound", [0, 0.0005], ids=["off", "a bound that no timer can keep"])
def test_where_it_is_turned_off(stream: Stream, spawn: Spawn, bound: float) -> None:
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=bound).start()
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


# How it decides. The clock stands still but for what is written here.


class Watched:
    """A `Moderation` and its clock."""

    def __init__(
        self, source: socket.socket, sink: socket.socket | None, clock: SimpleNamespace
    ) -> None:
        self.source = source
        self.moderation = Moderation(source, sink, lambda: None)
        self._clock = clock
        self._moved = 0
        self.patience = PATIENCE
        self.look(0, 0)  # the first only sees what the peer had been sent before

    def look(self, average: int, pace: float, remaining: int | None = None) -> bool:
        """Be read as often as it takes for a look; return whether it is a stream by now."""
        self._clock.now += self.patience * pace or PERIOD
        self._moved += self.patience * average
        reads = self.moderation.read(self._moved, remaining)
        return self._is_stream(reads)

    def tick(self, count: int, seconds: float = PERIOD, remaining: int | None = None) -> bool:
        """Let it tick after *seconds*, and find *count* bytes; return whether it is a stream."""
        self._clock.now += seconds
        self._moved += count
        return self._is_stream(self.moderation.found(self._moved, remaining))

    def ticks(self, count: int, most: int = 60) -> int:
        """Let it tick, and find *count* bytes each time; return how often it was still a stream."""
        for number in range(most):
            if not self.tick(count):
                return number
        return most

    def _is_stream(self, reads: int) -> bool:
        assert (reads == NEVER) == self.moderation.is_stream
        if reads != NEVER:
            self.patience = reads
        return self.moderation.is_stream


@pytest.fixture
def watch(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watched]]:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(_moderation, "time", SimpleNamespace(monotonic=lambda: clock.now))
    made: list[Watched] = []

    def watch(sink: str | None = "tcp") -> Watched:
        _, source = pairs("tcp")
        made.append(Watched(source, None if sink is None else pairs(sink)[0], clock))
        return made[-1]

    yield watch
    for watched in made:
        watched.moderation.close()
        assert mark(watched.source) == 1


@pytest.fixture
def watched(watch: Callable[..., Watched]) -> Watched:
    return watch()


#: Seconds from one read to the next, and bytes a read.
POLLED = (0.000_05, 2_000)
MARKED = (0.000_05, 150_000)


@pytest.mark.parametrize(
    ("pace", "average", "has_mark"),
    [
        (*POLLED, False),
        (0.000_11, 2_000, None),  # too slow
        (0.000_02, 40_000, None),  # half joined by the kernel
        (*MARKED, True),
        (0.000_05, 300_000, None),  # it waits for us
        (0.000_4, 150_000, True),  # one of many
        (0.000_4, 40_000, True),
        (0.000_6, 150_000, None),  # too slow
        (0.000_2, 150_000, None),  # much at a time, and not that quick
    ],
)
def test_what_is_polled_and_what_has_a_mark(
    watched: Watched, pace: float, average: int, has_mark: bool | None
) -> None:
    assert watched.look(average, pace) == (has_mark is not None)
    assert (mark(watched.source) > 1) == bool(has_mark)


@pytest.mark.parametrize("sink", ["unix", None])
def test_there_is_no_mark_where_it_does_not_fit_into_the_sink(
    watch: Callable[..., Watched], sink: str | None
) -> None:
    pace, average = MARKED
    assert not watch(sink).look(average, pace)
    pace, average = POLLED
    assert watch(sink).look(average, pace)


@pytest.mark.parametrize(("pace", "average"), [POLLED, MARKED])
def test_an_answer_ends_it(watched: Watched, pace: float, average: int) -> None:
    assert watched.look(average, pace)
    assert watched.tick(100_000_000)
    watched.source.sendall(b"enough")
    assert not watched.tick(100_000_000)
    assert mark(watched.source) == 1


def test_a_tick_that_finds_little_ends_it(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(4096)
    assert not watched.tick(4095)


def test_a_tick_right_behind_a_late_one_is_not_held_against_it(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(200_000, seconds=5 * PERIOD)
    assert watched.tick(0, seconds=PERIOD / 10)


def test_what_is_slower_as_a_stream_is_none_for_a_while(watched: Watched) -> None:
    pace, average = POLLED  # 40,000 bytes in each period
    assert watched.look(average, pace)
    assert watched.ticks(29_000) == 15  # the next is the last
    assert watched.patience == 4 * PATIENCE
    assert watched.look(average, pace)
    assert watched.ticks(31_000) == 60
    assert not watched.tick(0)
    assert watched.patience == PATIENCE


def test_what_is_slower_in_the_long_run_is_none_for_a_while(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.ticks(40_000, 16) == 16  # what had piled up comes as well
    assert watched.ticks(25_000) == 64 - 17
    assert watched.patience == 4 * PATIENCE


def test_it_is_held_against_the_most_that_was_seen_which_fades(watched: Watched) -> None:
    pace, average = POLLED
    for _ in range(3):  # 40,000 bytes in each period; half of it; half of it
        assert watched.look(average, pace)
        assert watched.ticks(21_000) == 15
        average = 1_000
    for _ in range(4):
        assert watched.look(average, pace)
        watched.tick(0)
    assert watched.look(average, pace)
    assert watched.ticks(21_000) == 60


def test_what_ends_at_once_again_and_again_is_tried_ever_less_often(watched: Watched) -> None:
    pace, average = POLLED
    seen = []
    for _ in range(8):
        assert watched.look(average, pace)
        assert not watched.tick(0)
        seen.append(watched.patience // PATIENCE)
    assert seen == [4, 16, 64, 256, 1024, 1024, 1024, 1024]


def test_a_long_stream_is_looked_at_anew_where_ticks_find_much(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.ticks(1_000_000, 100) == 100
    assert not watched.tick(1_300_000)
    average, pace = 150_000, 0.000_05  # it was fast in the end, as it was not in the beginning
    assert watched.look(average, pace)
    assert mark(watched.source) > 1


def test_a_long_stream_with_a_mark_is_looked_at_anew(watched: Watched) -> None:
    pace, average = MARKED
    assert watched.look(average, pace)
    assert watched.ticks(3_000_000, 100) == 63
    assert watched.patience == PATIENCE


def test_the_last_bytes_of_a_limit_are_waited_for(watched: Watched) -> None:
    pace, average = POLLED
    assert not watched.look(average, pace, remaining=39_000)
    assert watched.look(average, pace, remaining=41_000)
    assert watched.tick(40_000, remaining=41_000)
    assert not watched.tick(40_000, remaining=39_000)


# What becomes of the user's own mark.


@pytest.mark.parametrize("own_mark", [1, 700])
@pytest.mark.parametrize("end", ["stop", "pause", "error", "end of file"])
def test_the_mark_of_the_user_is_back(stream: Stream, own_mark: int, end: str) -> None:
    client, source, sink, backend = stream.line
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, own_mark)
    received = gevent.spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer, LARGE)
    assert mark(source) > own_mark
    if end == "stop":
        transfer.stop()
    elif end == "pause":
        wait_until(lambda: not is_stream(transfer))
    elif end == "error":
        reset(client)
        transfer.wait(5)
        assert isinstance(transfer.exception, ConnectionResetError)
    else:
        client.shutdown(socket.SHUT_WR)
        assert transfer.get(timeout=5) == len(stream.sent)
    assert mark(source) == own_mark
    transfer.stop()
    sink.shutdown(socket.SHUT_WR)
    assert stream.sent.startswith(received.get() + transfer.undelivered)


@pytest.mark.parametrize("call", ["getsockopt", "setsockopt"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_kernel_without_the_options_costs_no_transfer(
    stream: Stream, spawn: Spawn, call: str, size: int
) -> None:
    _client, source, sink, backend = stream.line
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 300)
    received = spawn(receive, backend)
    unknown = always(call, failing(errno.ENOPROTOOPT))
    with injected(unknown, sockets=[source]):
        transfer = gsplice.Transfer(source, sink).start()
        stream.write(200, size)
        stream.end(transfer, received)
    assert unknown.calls == (0 if (call, size) == ("setsockopt", SMALL) else 1)
    assert mark(source) == 300


def test_a_kernel_that_does_not_count_what_it_sends_costs_no_transfer(
    stream: Stream, spawn: Spawn
) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    brief = always("getsockopt", lambda *_: bytes(104))  # tcp_info as it was before Linux 4.6
    with injected(brief, sockets=[source]):
        transfer = gsplice.Transfer(source, sink).start()
        stream.write(200)
        assert brief.calls == 1, "it is not asked again"
        stream.end(transfer, received)


def test_where_there_is_no_fd_left_a_stream_is_waited_for_as_ever(
    stream: Stream, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fd() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(_moderation, "_epoll", no_fd)
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    stream.write(200)
    assert not is_stream(transfer)
    stream.end(transfer, received)


def test_a_kernel_that_does_not_count_any_more_ends_the_stream(
    stream: Stream, spawn: Spawn
) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer)
    with injected(Fault("getsockopt", failing(errno.ENOMEM)), sockets=[source]):
        # The engine has the socket from before.
        transfer._engine._moderation._raw = source._sock
        stream.write(100)
        wait_until(lambda: not is_stream(transfer))
    stream.end(transfer, received)


# What happens meanwhile.


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_stop_right_before_a_tick_leaves_what_has_come_in_the_source(
    stream: Stream, size: int, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink).start()
    before_method(monkeypatch, Pump, "on_due", transfer.stop)
    stream.write_until_moderated(transfer, size)
    stream.write(4)
    wait_until(transfer.ready)
    assert mark(source) == 1
    left = peeked(source)
    sink.shutdown(socket.SHUT_WR)
    assert received.get() + transfer.undelivered + left == stream.sent


def test_a_source_that_is_closed_in_between_is_an_error_that_loses_nothing(
    stream: Stream, spawn: Spawn
) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer)
    source.close()
    transfer.wait(5)
    assert isinstance(transfer.exception, socket.cancel_wait_ex)
    sink.shutdown(socket.SHUT_WR)
    assert stream.sent.startswith(received.get() + transfer.undelivered)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_second_reader_is_refused_and_the_stream_goes_on(
    stream: Stream, size: int, spawn: Spawn
) -> None:
    _client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer, size)
    second = gsplice.Transfer(source, sink).start()
    second.wait(5)
    assert isinstance(second.exception, ConcurrentObjectUseError)
    with pytest.raises(ConcurrentObjectUseError):
        socket.wait(source._read_event)
    stream.write(200, size)
    stream.end(transfer, received)
    assert source._read_event.callback is None
    assert source._read_event.events & 1


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_stalled_sink_costs_no_ticks(stream: Stream, size: int, has_ended: bool) -> None:
    client, source, sink, backend = stream.line
    received = gevent.spawn(receive, backend, 2 * PATIENCE * size)
    transfer = gsplice.Transfer(source, sink).start()
    stream.write_until_moderated(transfer, size)
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
    used = time.process_time()
    gevent.sleep(0.2)  # what it costs to wait is what is tested
    assert time.process_time() - used < 0.05
    transfer.stop()
