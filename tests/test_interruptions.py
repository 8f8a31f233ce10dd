"""Promise 3: `gevent.Timeout`, ``kill`` and any other exception, at any instant."""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    Line,
    MakeLine,
    Spawn,
    error_of,
    receive,
    reset,
    small_buffers,
    stall,
    wait_until,
    wait_until_it_waits,
    waits_to_read,
    waits_to_write,
)
from races import before_method, interrupt, wait_until_interrupted

import gsplice
from gsplice import _gevent, _hub
from gsplice._pump import Pump

IDLE, STALLED = "idle", "stalled"


def begin(ends: Line, spawn: Spawn, state: str, move: Callable[[], Any]) -> gevent.Greenlet:
    """Have a greenlet *move* bytes, and wait until it is in the *state*."""
    if state == STALLED:
        stall(ends, spawn)
    moving = spawn(move)
    wait_until_it_waits(ends, has_stalled=state == STALLED)
    return moving


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", [IDLE, STALLED])
def test_kill_of_a_relay(line: MakeLine, spawn: Spawn, state: str, mode: str, kind: str) -> None:
    ends = line(kind)
    moving = begin(ends, spawn, state, lambda: gsplice.relay(ends.source, ends.sink, mode=mode))
    moving.kill(timeout=5)
    assert isinstance(moving.value, gevent.GreenletExit)
    assert gsplice.stats().active == 0
    assert gsplice.stats().pipes == gsplice.stats().idle_pipes
    for sock in (ends.source, ends.sink):
        assert not waits_to_read(sock)
        assert not waits_to_write(sock)


class Interruption(BaseException):
    """Something that only its own sender knows."""


@pytest.mark.parametrize("error", [Interruption, ValueError, gevent.Timeout, KeyboardInterrupt])
@pytest.mark.parametrize("both_ways", [False, True], ids=["copy", "relay"])
def test_any_exception_thrown_at_the_caller_comes_out_and_ends_it(
    line: MakeLine, spawn: Spawn, error: type[BaseException], both_ways: bool
) -> None:
    ends = line()
    caught: list[BaseException] = []

    def move() -> None:
        try:
            (gsplice.relay if both_ways else gsplice.copy)(ends.source, ends.sink)
        except error as caught_error:
            caught.append(caught_error)

    moving = begin(ends, spawn, STALLED, move)
    thrown = error()
    moving.kill(thrown, timeout=5)
    assert caught == [thrown]
    assert gsplice.stats().active == 0


def test_pipe_with_bytes_is_closed_and_never_used_again(line: MakeLine, spawn: Spawn) -> None:
    ends = line("unix")
    small_buffers(ends.sink)
    moving = begin(
        ends, spawn, STALLED, lambda: gsplice.copy(ends.source, ends.sink, mode="splice")
    )
    assert gsplice.stats().pipes == 1
    assert gsplice.stats().idle_pipes == 0
    moving.kill(timeout=5)
    assert gsplice.stats().pipes == 0

    other = line("unix")
    other.client.sendall(b"hello")
    assert gsplice.copy(other.source, other.sink, 5, mode="splice") == 5
    assert receive(other.backend, 5) == b"hello"


def test_pool_holds_nothing_but_empty_pipes(line: MakeLine, spawn: Spawn) -> None:
    for _ in range(10):
        ends = line("unix")
        stall(ends, spawn)
        transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
        spawn(receive, ends.backend, random.Random(2).randrange(1_000_000))
        wait_until(lambda: waits_to_write(ends.sink))  # noqa: B023
        transfer.stop()
    for pipe in _hub.resources().pipes._idle:
        with pytest.raises(BlockingIOError):
            os.read(pipe.read_fd, 1)


# In the middle of a step, and of an end.


def test_what_a_signal_handler_raises_where_a_source_is_read_ends_the_transfer(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch, hub_errors: list[Any]
) -> None:
    """In the middle of a step nobody could say what has been taken."""
    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    before_method(monkeypatch, Pump, "_copy", interrupt)
    ends.client.sendall(b"hello")
    wait_until_interrupted(hub_errors)
    assert isinstance(error_of(transfer.get, 5), gsplice.TransferStopped)
    assert receive(ends.source, 5) == b"hello"
    assert not waits_to_read(ends.source)


def test_what_a_signal_handler_raises_right_before_a_source_is_read_leaves_nobody_waiting(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch, hub_errors: list[Any]
) -> None:
    """Gevent stops the watcher of a source whose callback raises; in a turn that is another's."""
    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    before_method(monkeypatch, Pump, "on_readable", interrupt)
    ends.client.sendall(b"hello")
    wait_until_interrupted(hub_errors)
    if _gevent.calls_backwards(gevent.get_hub().loop):
        assert receive(ends.backend, 5) == b"hello"
        transfer.stop()
    else:
        assert isinstance(error_of(transfer.get, 5), gsplice.TransferStopped)
        assert receive(ends.source, 5) == b"hello"
    assert not waits_to_read(ends.source)


def test_a_stop_by_a_signal_handler_while_a_socket_is_polled_again_stops_that_as_well(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libuv stops to poll for a socket that it has reported an error of."""
    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    original = _gevent.restart

    def restart(*args: Any) -> None:
        transfer.stop()
        original(*args)

    monkeypatch.setattr(_gevent, "restart", restart)
    ends.source._read_event.callback.__self__.on_event(-errno.ECONNRESET)
    assert transfer.ready()
    assert not waits_to_read(ends.source)


def test_what_a_signal_handler_raises_in_the_middle_of_an_end_leaves_no_socket_waited_for(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch, hub_errors: list[Any]
) -> None:
    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    gevent.sleep(0.001)
    before_method(monkeypatch, Pump, "_release", interrupt)
    ends.client.shutdown(socket.SHUT_WR)
    wait_until_interrupted(hub_errors)
    assert transfer.ready()
    assert gsplice.stats().active == 0
    assert not waits_to_read(ends.source)


def test_what_a_signal_handler_raises_right_before_held_bytes_are_taken_back_leaks_no_pipe(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = line("unix")
    spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
    wait_until(lambda: waits_to_write(ends.sink))
    assert gsplice.stats().pipes > gsplice.stats().idle_pipes
    before_method(monkeypatch, Pump, "_take_back", interrupt)
    with pytest.raises(KeyboardInterrupt):
        transfer.stop()
    assert transfer.ready()
    now = gsplice.stats()
    assert (now.active, now.pipes) == (0, now.idle_pipes)
    assert not waits_to_write(ends.sink)


def test_a_stop_by_a_signal_handler_in_the_middle_of_the_end_of_a_relay_changes_nothing(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = line()
    relay = gsplice.Relay(ends.source, ends.sink, idle_timeout=0.02).start()
    ending = before_method(monkeypatch, Pump, "_take_back", relay.stop)
    with pytest.raises(TimeoutError, match="timed out"):
        relay.get(timeout=5)
    assert ending
    assert not waits_to_read(ends.source)
    assert not waits_to_read(ends.sink)
    assert gsplice.stats().active == 0


def test_a_copy_by_methods_that_has_come_out_by_itself_is_not_interrupted_any_more(
    spawn: Spawn,
) -> None:
    class Source:
        def recv(self, limit: int) -> bytes:
            there.wait()
            return b""

    there, sink = Event(), io.BytesIO()
    transfer = gsplice.Transfer(Source(), sink)
    caller = spawn(error_of, transfer.run)
    wait_until(lambda: gsplice.stats().active)
    there.set()  # in the next turn of the loop it goes on, just before it would be interrupted
    transfer.stop()
    assert isinstance(caller.get(timeout=5), gsplice.TransferStopped)
    assert (sink.getvalue(), transfer.undelivered) == (b"", b"")


def test_an_error_on_top_of_the_one_that_ended_a_transfer_is_told_to_the_hub(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch, hub_errors: list[Any]
) -> None:
    def fail_as_well(_: Pump) -> bytes:
        raise RuntimeError("on top")

    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    monkeypatch.setattr(Pump, "_take_back", fail_as_well)
    reset(ends.client)
    assert isinstance(error_of(transfer.get, timeout=5), ConnectionResetError)
    assert [str(error) for _, error in hub_errors] == ["on top"]
    hub_errors.clear()
