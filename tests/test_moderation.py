"""Promise 6, the exception: a stream of small writes is received many writes at a time.

The mark is the kernel's own ``SO_RCVLOWAT``, which a test can read from the source at any moment.
"""

from __future__ import annotations

import errno
import time

import gevent
import pytest
from faults import Fault, always, failing, injected
from gevent import socket
from peers import Line, MakeLine, Pairs, Spawn, pattern, peeked, receive, send_and_end, wait_until
from races import before_method

import gsplice
from gsplice import _gevent
from gsplice._moderation import _PROVEN, PATIENCE, Moderation
from gsplice._pump import Pump

WRITE = 512
#: Seconds, generous, so that what waits for the bound can be told from what does not.
LONG_BOUND = 0.5
#: Seconds that a busy machine may take for what should take no time.
SLACK = 0.25


def mark(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


class Stream:
    """One small write after the other, each in a pass of the hub of its own."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.sent = bytearray()

    def write(self, times: int = 1) -> None:
        for _ in range(times):
            piece = pattern(WRITE, len(self.sent) // WRITE)
            self.line.client.sendall(piece)
            self.sent += piece
            _gevent.let_loop_pass()

    def write_until_moderated(self, own_mark: int = 1) -> None:
        for _ in range(5000):
            self.write()
            if mark(self.line.source) > own_mark:
                return
        pytest.fail("a stream of 5,000 small writes was not moderated")


@pytest.fixture
def stream(line: MakeLine) -> Stream:
    return Stream(line())


def test_a_stream_of_small_writes_is_moderated_and_arrives_whole(
    stream: Stream, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    stream.write_until_moderated()
    stream.write(2000)
    stream.line.client.shutdown(socket.SHUT_WR)
    assert transfer.get(timeout=5) == len(stream.sent)
    stream.line.sink.shutdown(socket.SHUT_WR)
    assert received.get() == stream.sent


def test_what_is_below_the_mark_arrives_within_the_bound(stream: Stream) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=0.02).start()
    stream.write_until_moderated()
    stream.write()
    began = time.monotonic()
    assert receive(stream.line.backend, len(stream.sent)) == stream.sent
    assert time.monotonic() - began < 0.02 + SLACK
    transfer.stop()


def test_a_pause_ends_it_so_that_the_message_after_it_is_not_delayed(stream: Stream) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=LONG_BOUND).start()
    stream.write_until_moderated()
    wait_until(lambda: mark(stream.line.source) == 1)
    receive(stream.line.backend, len(stream.sent))
    began = time.monotonic()
    stream.line.client.sendall(b"alone")
    assert receive(stream.line.backend, 5) == b"alone"
    assert time.monotonic() - began < SLACK
    transfer.stop()


def test_lone_messages_soon_after_a_stream_are_no_stream(stream: Stream) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=0.1).start()
    stream.write_until_moderated()
    wait_until(lambda: mark(stream.line.source) == 1)
    receive(stream.line.backend, len(stream.sent))
    for _ in range(8):
        stream.line.client.sendall(b"alone")
        assert receive(stream.line.backend, 5) == b"alone"
        assert mark(stream.line.source) == 1
    transfer.stop()


def test_a_loop_that_is_late_is_not_taken_for_a_slow_stream(stream: Stream, spawn: Spawn) -> None:
    client, source, sink, backend = stream.line
    received = spawn(receive, backend)
    transfer = gsplice.Transfer(source, sink, moderation=0.1).start()
    stream.write_until_moderated()
    while (before := mark(source)) < 16 * 1024:
        stream.write()
    for _ in range(3):
        client.sendall(piece := pattern(2 * before))
        stream.sent += piece
        time.sleep(0.06)  # what is tested: the timer is due, and so is the source
        while transfer.moved < len(stream.sent):
            _gevent.let_loop_pass()
        assert mark(source) >= before
    client.shutdown(socket.SHUT_WR)
    assert transfer.get(timeout=5) == len(stream.sent)
    sink.shutdown(socket.SHUT_WR)
    assert received.get() == stream.sent


def test_the_end_of_file_is_not_delayed(stream: Stream) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=LONG_BOUND).start()
    stream.write_until_moderated()
    began = time.monotonic()
    send_and_end(stream.line.client, b"the last")
    assert transfer.get(timeout=5) == len(stream.sent) + len(b"the last")
    assert time.monotonic() - began < SLACK


def test_the_end_of_file_that_the_timer_meets_first_is_an_end_like_any(
    stream: Stream, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=LONG_BOUND).start()
    stream.write_until_moderated()
    stream.line.client.shutdown(socket.SHUT_WR)
    transfer._engine.on_due()  # a hub that was late calls timers before sockets
    assert transfer.get(timeout=5) == len(stream.sent)
    assert mark(stream.line.source) == 1
    stream.line.sink.shutdown(socket.SHUT_WR)
    assert received.get() == stream.sent


def test_an_exchange_of_requests_and_responses_is_never_moderated(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line()
    spawn(gsplice.copy, backend, backend)
    relay = gsplice.Relay(source, sink, moderation=LONG_BOUND).start()
    for number in range(2000):
        client.sendall(request := pattern(64, number))
        assert receive(client, 64) == request
        assert mark(source) == mark(sink) == 1
    relay.stop()


def test_two_copies_that_serve_one_exchange_are_never_moderated(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line()
    spawn(gsplice.copy, backend, backend)
    up = gsplice.Transfer(source, sink, moderation=LONG_BOUND).start()
    down = gsplice.Transfer(sink, source, moderation=LONG_BOUND).start()
    for number in range(2000):
        client.sendall(request := pattern(64, number))
        assert receive(client, 64) == request
        assert mark(source) == mark(sink) == 1
    up.stop()
    down.stop()


def test_slow_messages_are_never_moderated(stream: Stream) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=LONG_BOUND).start()
    for _ in range(200):
        stream.write()
        receive(stream.line.backend, WRITE)
        gevent.sleep(0.001)  # the pause is what is tested
        assert mark(stream.line.source) == 1
    transfer.stop()


@pytest.mark.parametrize("own_mark", [1, 700])
def test_the_mark_of_the_user_is_back_when_a_transfer_is_stopped(
    stream: Stream, own_mark: int
) -> None:
    stream.line.source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, own_mark)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=LONG_BOUND).start()
    stream.write_until_moderated(own_mark)
    transfer.stop()
    assert mark(stream.line.source) == own_mark
    delivered = receive(stream.line.backend, transfer.moved) + transfer.undelivered
    assert stream.sent.startswith(delivered)


@pytest.mark.parametrize("call", ["getsockopt", "setsockopt"])
def test_a_kernel_without_the_options_costs_no_transfer_and_leaves_the_users_mark(
    stream: Stream, spawn: Spawn, call: str
) -> None:
    stream.line.source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 300)
    received = spawn(receive, stream.line.backend)
    unknown = always(call, failing(errno.ENOPROTOOPT))
    with injected(unknown, sockets=[stream.line.source]):
        transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
        for _ in range(50):
            if not unknown.reached:
                stream.write(100)
        stream.line.client.shutdown(socket.SHUT_WR)
        assert transfer.get(timeout=5) == len(stream.sent)
    assert unknown.reached
    assert mark(stream.line.source) == 300
    stream.line.sink.shutdown(socket.SHUT_WR)
    assert received.get() == stream.sent


def test_a_kernel_that_does_not_count_what_it_sends_costs_no_transfer_and_sets_no_mark(
    stream: Stream, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    brief = always("getsockopt", lambda *_: bytes(104))  # tcp_info as it was before Linux 4.6
    with injected(brief, sockets=[stream.line.source]):
        transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
        for _ in range(50):
            if not brief.reached:
                stream.write(100)
        stream.write(200)
        assert brief.calls == 1, "it is not asked again"
        stream.line.client.shutdown(socket.SHUT_WR)
        assert transfer.get(timeout=5) == len(stream.sent)
    assert mark(stream.line.source) == 1
    stream.line.sink.shutdown(socket.SHUT_WR)
    assert received.get() == stream.sent


def test_an_error_of_the_kernel_when_the_bound_has_passed_takes_the_mark_away(
    stream: Stream, spawn: Spawn
) -> None:
    received = spawn(receive, stream.line.backend)
    second = Fault("setsockopt", failing(errno.ENOMEM), first=2)
    with injected(second, sockets=[stream.line.source]):
        transfer = gsplice.Transfer(
            stream.line.source, stream.line.sink, moderation=LONG_BOUND
        ).start()
        stream.write_until_moderated()
        stream.write(4)  # less than the mark, and enough for one of half the size
        wait_until(lambda: second.reached)
    assert mark(stream.line.source) == 1
    stream.write(10)
    stream.line.client.shutdown(socket.SHUT_WR)
    assert transfer.get(timeout=5) == len(stream.sent)
    stream.line.sink.shutdown(socket.SHUT_WR)
    assert received.get() == stream.sent


def test_a_stop_right_before_the_bound_has_passed_leaves_what_is_below_the_mark(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=LONG_BOUND).start()
    before_method(monkeypatch, Pump, "on_due", transfer.stop)
    stream.write_until_moderated()
    stream.write(4)
    wait_until(transfer.ready)
    assert mark(stream.line.source) == 1
    delivered = receive(stream.line.backend, transfer.moved)
    assert delivered + transfer.undelivered + peeked(stream.line.source) == stream.sent


def test_a_mark_that_was_too_much_is_tried_again_once_a_smaller_one_has_served(
    pairs: Pairs,
) -> None:
    _, source = pairs("tcp")
    moderation = Moderation(source, 20.0, lambda: None)
    moved = 0

    def read(times: int) -> None:
        nonlocal moved
        for _ in range(times):
            moved += PATIENCE * WRITE
            moderation.read(moved, None)

    read(20)  # in a hurry: the mark doubles each time, as far as it goes
    most = mark(source)
    assert most > 2 * WRITE
    moved += most // 2
    moderation.found(moved)  # but now its timer came first
    assert mark(source) == most // 2
    read(_PROVEN - 1)
    assert mark(source) == most // 2
    read(1)
    assert mark(source) == most
    moderation.close()
    assert mark(source) == 1


def test_zero_turns_it_off(stream: Stream, spawn: Spawn) -> None:
    spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink, moderation=0).start()
    for _ in range(500):
        stream.write()
        assert mark(stream.line.source) == 1
    transfer.stop()


def test_a_limit_is_reached_without_waiting_for_the_bound(stream: Stream, spawn: Spawn) -> None:
    count = 400 * WRITE
    spawn(receive, stream.line.backend)
    transfer = gsplice.Transfer(
        stream.line.source, stream.line.sink, count, moderation=LONG_BOUND
    ).start()
    began = time.monotonic()
    stream.write(400)
    assert transfer.get(timeout=5) == count
    assert time.monotonic() - began < LONG_BOUND + SLACK


def test_a_moderated_source_whose_sink_is_stalled_costs_no_wake_ups(stream: Stream) -> None:
    transfer = gsplice.Transfer(stream.line.source, stream.line.sink).start()
    stream.write_until_moderated()
    stalled = transfer.moved
    while True:  # the backend does not read: at last nothing moves
        stream.line.client.setblocking(False)
        try:
            stream.line.client.send(pattern(1 << 16))
        except BlockingIOError:
            if transfer.moved == stalled:
                break
            stalled = transfer.moved
            gevent.sleep(0.01)
    used = time.process_time()
    gevent.sleep(0.2)  # what it costs to wait is what is tested
    assert time.process_time() - used < 0.05
    transfer.stop()


def test_unix_sockets_have_no_mark_and_pass_as_they_come(pairs: Pairs) -> None:
    client, source = pairs("unix")
    sink, backend = pairs("unix")
    transfer = gsplice.Transfer(source, sink).start()
    for number in range(500):
        client.sendall(message := pattern(WRITE, number))
        assert receive(backend, WRITE) == message
    transfer.stop()
