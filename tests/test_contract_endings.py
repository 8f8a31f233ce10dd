"""The contract on every path: a transfer that is ended early, or timed out, loses nothing."""

from __future__ import annotations

import random
import time

import gevent
import pytest
from contract import FLOOD, Ends, moved_since, on
from gevent import socket
from paths import LIVE, LIVE_SINKS, LIVE_SOURCES, PATHS, Path
from peers import Spawn, error_of, pattern, wait_until, waits_to_read, waits_to_write

import gsplice

#: Seconds of a time-out that is to come; and many times as many, for what is not.
SHORT = 0.02


# Ended before its end: what was taken is moved or undelivered, and the ends are free.


@on(LIVE_SINKS)
def test_stop_while_the_sink_is_stalled_loses_nothing(ends: Ends, spawn: Spawn) -> None:
    before = gsplice.stats()
    transfer = ends.stalled(spawn)
    transfer.stop()
    ends.assert_free()
    with pytest.raises(gsplice.TransferStopped):
        transfer.get()
    assert sum(moved_since(before)) == transfer.moved > 0
    ends.assert_accounted(FLOOD, transfer)


@on(LIVE_SOURCES)
def test_stop_while_the_source_is_silent_leaves_it_to_others_at_once(
    ends: Ends, spawn: Spawn
) -> None:
    transfer = ends.idle()
    transfer.stop()
    ends.assert_free()
    assert (transfer.moved, transfer.undelivered) == (0, b"")
    ends.source.feed(spawn, b"hello")
    assert ends.source.rest(5) == b"hello"


@on(PATHS)
def test_stop_before_the_start_takes_nothing(ends: Ends, spawn: Spawn) -> None:
    ends.source.feed(spawn, b"hello")
    transfer = ends.transfer()
    transfer.stop()
    for end in (transfer.start().get, transfer.run):
        with pytest.raises(gsplice.TransferStopped):
            end()
    ends.assert_free()
    assert ends.source.rest(5) == b"hello"


@on(LIVE_SINKS)
@pytest.mark.parametrize("how", ["kill", "gevent.Timeout", "any exception"])
def test_an_exception_thrown_at_a_caller_whose_sink_is_stalled_loses_nothing(
    ends: Ends, spawn: Spawn, how: str
) -> None:
    ends.flood(spawn)
    transfer = ends.transfer()
    errors = {"kill": gevent.GreenletExit, "gevent.Timeout": gevent.Timeout}
    error = errors.get(how, Interruption)()
    caller = spawn(_caught, transfer, error)
    wait_until(lambda: waits_to_write(ends.sink.socket))
    caller.kill(error, timeout=5)
    assert caller.value is error, "it comes out as it was"
    ends.assert_free()
    ends.assert_accounted(FLOOD, transfer)


@on(LIVE_SOURCES)
def test_kill_of_a_caller_whose_source_is_silent(ends: Ends, spawn: Spawn) -> None:
    transfer = ends.transfer()
    caller = spawn(transfer.run)
    wait_until(lambda: waits_to_read(ends.source.socket))
    caller.kill(timeout=5)
    assert isinstance(caller.value, gevent.GreenletExit)
    ends.assert_free()
    ends.source.feed(spawn, b"hello")
    assert ends.source.rest(5) == b"hello"


class Interruption(BaseException):
    """Something that only its own sender knows."""


def _caught(transfer: gsplice.Transfer, error: BaseException) -> BaseException | None:
    try:
        transfer.run()
    except type(error) as caught:
        return caught
    return None


@on(LIVE)
def test_what_is_left_after_each_of_many_stops_goes_on_to_the_next_transfer(
    ends: Ends, path: Path, spawn: Spawn
) -> None:
    chance = random.Random(str(path))
    data = pattern(4_000_000)
    ends.source.feed(spawn, data)
    received = spawn(ends.sink.drain, len(data))
    undelivered, moved = b"", 0
    while moved < len(data):
        if undelivered:  # what the last one had taken: by hand
            ends.sink.socket.sendall(undelivered)
            moved += len(undelivered)
        transfer = ends.transfer(len(data) - moved)
        with gevent.Timeout(chance.randrange(4) / 1000, False):
            transfer.run() if chance.random() < 0.5 else transfer.start().get()
        transfer.stop()
        moved += transfer.moved
        undelivered = transfer.undelivered
    assert received.get() == data


# Time-outs.


@on(LIVE_SOURCES)
def test_a_source_that_is_silent_for_its_own_timeout(ends: Ends) -> None:
    ends.source.socket.settimeout(SHORT)
    began = time.monotonic()
    error = error_of(ends.transfer().run)
    assert time.monotonic() - began >= SHORT * 0.9
    assert isinstance(error, socket.timeout)
    assert "timed out" in str(error)
    assert ends.source.socket.gettimeout() == SHORT
    ends.assert_free()


@on(LIVE_SINKS)
def test_a_sink_that_is_stalled_for_its_own_timeout_loses_nothing(ends: Ends, spawn: Spawn) -> None:
    ends.sink.socket.settimeout(SHORT)
    ends.flood(spawn)
    transfer = ends.transfer()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.run()
    ends.assert_free()
    ends.assert_accounted(FLOOD, transfer)


@on(LIVE_SOURCES)
def test_an_idle_transfer_ends_by_its_idle_timeout(ends: Ends, spawn: Spawn) -> None:
    began = time.monotonic()
    transfer = ends.transfer(idle_timeout=SHORT).start()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.get(timeout=5)
    assert time.monotonic() - began >= SHORT * 0.9
    ends.assert_free()
    assert (transfer.moved, transfer.undelivered) == (0, b"")


@on(LIVE_SINKS)
def test_a_stalled_transfer_ends_by_its_idle_timeout_and_loses_nothing(
    ends: Ends, spawn: Spawn
) -> None:
    ends.flood(spawn)
    transfer = ends.transfer(idle_timeout=2 * SHORT).start()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.get(timeout=5)
    ends.assert_free()
    ends.assert_accounted(FLOOD, transfer)
