"""Promise 3: `gevent.Timeout`, ``kill`` and any other exception, at any instant."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from peers import (
    MODES,
    Line,
    MakeLine,
    Spawn,
    receive,
    small_buffers,
    stall,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice import _hub

IDLE, STALLED = "idle", "stalled"


def begin(ends: Line, spawn: Spawn, state: str, move: Callable[[], Any]) -> gevent.Greenlet:
    """Have a greenlet *move* bytes, and wait until it is in the *state*."""
    if state == STALLED:
        stall(ends, spawn)
    moving = spawn(move)
    if state == STALLED:
        wait_until(lambda: waits_to_write(ends.sink))
    else:
        wait_until(lambda: waits_to_read(ends.source))
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
