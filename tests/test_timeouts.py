"""Promise 3: time-outs, of the sockets' own in copy, and of silence."""

from __future__ import annotations

import time
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
    fill,
    receive,
    send_and_end,
    stall,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice import _kernel, _watchdog

SHORT = 0.05
#: In one a busy machine may take longer over nothing than a limit allows.
ATTEMPTS = 5
KINDS = ("tcp", "unix", "tls")


class Elapsed:
    """How many seconds a block took."""

    def __enter__(self) -> Elapsed:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


# The sockets' own time-outs, in copy.


def test_timeout_of_the_source_does_not_bound_a_wait_for_the_sink(
    line: MakeLine, spawn: Spawn
) -> None:
    ends = line()
    ends.source.settimeout(SHORT)
    spawn(ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    copying = spawn(gsplice.copy, ends.source, ends.sink, MORE_THAN_BUFFERS)
    wait_until(lambda: waits_to_write(ends.sink))
    copying.join(4 * SHORT)
    assert not copying.ready()
    assert len(receive(ends.backend, MORE_THAN_BUFFERS)) == MORE_THAN_BUFFERS
    assert copying.get() == MORE_THAN_BUFFERS


def test_timeout_of_the_sink_does_not_bound_a_wait_for_the_source(
    line: MakeLine, spawn: Spawn
) -> None:
    ends = line()
    ends.sink.settimeout(SHORT)
    copying = spawn(gsplice.copy, ends.source, ends.sink, 5)
    copying.join(4 * SHORT)
    assert not copying.ready()
    ends.client.sendall(b"hello")
    assert copying.get() == 5


@pytest.mark.parametrize("mode", MODES)
def test_timeout_is_for_each_wait_not_for_all_of_them(
    line: MakeLine, spawn: Spawn, mode: str
) -> None:
    def drip(client: socket.socket) -> None:
        for _ in range(10):
            gevent.sleep(SHORT)
            client.sendall(b"x")

    def ends_in_time() -> bool:
        ends = line()
        ends.source.settimeout(4 * SHORT)
        spawn(drip, ends.client)
        try:
            with Elapsed() as elapsed:
                assert gsplice.copy(ends.source, ends.sink, 10, mode=mode) == 10
        except socket.timeout:
            return False
        assert elapsed.seconds > 2 * 4 * SHORT
        return True

    assert any(ends_in_time() for _ in range(ATTEMPTS))


def test_timeout_that_is_set_while_it_runs_counts_from_the_next_wait(
    line: MakeLine, spawn: Spawn
) -> None:
    ends = line()
    ends.source.settimeout(30)
    fill(ends.sink)
    copying = spawn(error_of, gsplice.copy, ends.source, ends.sink)
    wait_until(lambda: waits_to_read(ends.source))
    ends.client.sendall(b"x")
    wait_until(lambda: waits_to_write(ends.sink))
    ends.source.settimeout(SHORT)
    spawn(receive, ends.backend)
    assert isinstance(copying.get(timeout=5), socket.timeout)


def test_a_reader_that_has_timed_out_says_so_itself(line: MakeLine) -> None:
    client, source, sink, _ = line()
    reader = source.makefile("rb")
    source.settimeout(SHORT)
    with pytest.raises(socket.timeout):
        reader.read(1)
    source.settimeout(None)
    client.sendall(b"too late")
    assert not gsplice.can_splice(reader, sink)
    with pytest.raises(OSError, match="cannot read from timed out object"):
        gsplice.copy(reader, sink)
    reader.close()


# The idle time-out.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_idle_relay(line: MakeLine, kind: str, mode: str) -> None:
    _, a, b, _ = line(kind)
    with Elapsed() as elapsed, pytest.raises(socket.timeout, match="timed out"):
        gsplice.relay(a, b, idle_timeout=SHORT, mode=mode)
    assert SHORT * 0.9 <= elapsed.seconds < 100 * SHORT
    assert a.fileno() >= 0
    assert b.fileno() >= 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("talker", ["client", "backend"])
def test_a_byte_in_either_direction_keeps_a_relay_alive(
    line: MakeLine, kind: str, talker: str
) -> None:
    def stays_alive() -> bool:
        client, a, b, backend = line(kind)
        relay = gsplice.Relay(a, b, idle_timeout=4 * SHORT).start()
        here, there = (client, backend) if talker == "client" else (backend, client)
        for _ in range(6):
            here.sendall(b"x")
            assert not relay.wait(SHORT)
        stayed = not relay.ready()
        assert receive(there, 6) == 6 * b"x"
        with pytest.raises(socket.timeout):
            relay.get(timeout=5)
        return stayed

    assert any(stays_alive() for _ in range(ATTEMPTS)), "six bytes, each well within the limit"


# A slow peer: bytes reach it, and the sink becomes writable much later than that.

SLOW_LIMIT = 1.0
PIECE = 8000


def take_slowly(sock: socket.socket, over: Event) -> None:
    """Receive so little at a time that the sink does not become writable within `SLOW_LIMIT`."""
    while not over.wait(0.04):
        sock.recv(PIECE)


def begin_slowly(ends: Line, spawn: Spawn) -> Event:
    """Have the sink hold as much as it may, and its peer take that slowly, until the event."""
    ends.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ends.backend.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stall(ends, spawn)
    over = Event()
    spawn(take_slowly, ends.backend, over)
    return over


def test_a_peer_that_takes_its_bytes_slowly_is_not_idle_and_one_that_takes_none_is(
    line: MakeLine, spawn: Spawn
) -> None:
    """Of each kind, by itself and in a relay: side by side, as each takes more than two seconds."""

    def check(kind: str, make: type[gsplice.Transfer | gsplice.Relay]) -> None:
        ends = line(kind)
        over = begin_slowly(ends, spawn)
        transfer = make(ends.source, ends.sink, idle_timeout=SLOW_LIMIT).start()
        wait_until(lambda: transfer.moved and waits_to_write(ends.sink))
        silence = longest_silence(transfer)
        assert not transfer.ready()
        assert silence > SLOW_LIMIT, "the sink was writable too soon to test anything"
        over.set()
        with Elapsed() as elapsed, pytest.raises(socket.timeout, match="timed out"):
            transfer.get(timeout=10)
        assert elapsed.seconds > SLOW_LIMIT / 2

    cases = [(kind, make) for kind in KINDS for make in (gsplice.Transfer, gsplice.Relay)]
    checks = {case: spawn(error_of, check, *case) for case in cases}
    assert {case: check.get() for case, check in checks.items()} == dict.fromkeys(cases)


def longest_silence(transfer: Any, seconds: float = 1.5 * SLOW_LIMIT) -> float:
    """Return the longest time for which nothing was moved, within *seconds*."""
    moved, since, longest = transfer.moved, time.monotonic(), 0.0
    ends = since + seconds
    while time.monotonic() < ends and not transfer.wait(0.01) and not transfer.ready():
        if transfer.moved != moved:
            moved, since = transfer.moved, time.monotonic()
        longest = max(longest, time.monotonic() - since)
    return longest


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["transfer", "relay"])
def test_a_peer_that_takes_nothing_is_idle_for_a_quarter_longer_at_the_most(
    line: MakeLine, spawn: Spawn, kind: str, both_ways: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = line(kind)
    stall(ends, spawn)
    looks: list[float] = []
    look = _watchdog.Watchdog._look
    monkeypatch.setattr(
        _watchdog.Watchdog, "_look", lambda self: (looks.append(time.monotonic()), look(self))
    )
    make = gsplice.Relay if both_ways else gsplice.Transfer
    transfer = make(ends.source, ends.sink, idle_timeout=0.4).start()
    with pytest.raises(socket.timeout):
        transfer.get(timeout=10)
    assert len(looks) <= 1 + 2 * _watchdog._LOOKS  # the rest is how long a busy machine takes


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_sinks_own_time_out_counts_what_it_accepts_as_in_sendall(
    line: MakeLine, spawn: Spawn, kind: str
) -> None:
    ends = line(kind)
    over = begin_slowly(ends, spawn)
    ends.sink.settimeout(2 * SHORT)
    transfer = gsplice.Transfer(ends.source, ends.sink, idle_timeout=60).start()
    with pytest.raises(socket.timeout):
        transfer.get(timeout=10)
    over.set()


def test_send_queues_are_not_looked_at_while_bytes_flow(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: int) -> int:
        raise AssertionError("it is")

    monkeypatch.setattr(_kernel, "unacknowledged", look)
    ends = line()
    spawn(send_and_end, ends.client, bytes(MORE_THAN_BUFFERS))
    ends.backend.shutdown(socket.SHUT_WR)
    received = spawn(receive, ends.backend)
    result = gsplice.relay(ends.source, ends.sink, idle_timeout=60)
    assert result == (MORE_THAN_BUFFERS, 0)
    assert len(received.get()) == MORE_THAN_BUFFERS


def test_where_the_kernel_does_not_tell_of_its_queues_moved_bytes_count_alone(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernel, "_HAVE_OUTQ", False)
    ends = line()
    over = begin_slowly(ends, spawn)
    with pytest.raises(socket.timeout):
        gsplice.relay(ends.source, ends.sink, idle_timeout=SHORT)
    over.set()


def test_a_socket_that_is_closed_while_it_is_silent_is_no_trouble_for_the_watchdog(
    line: MakeLine,
) -> None:
    ends = line()
    relay = gsplice.Relay(ends.source, ends.sink, idle_timeout=SHORT).start()
    ends.sink.close()
    with pytest.raises(OSError, match=r"timed out|closed"):
        relay.get(timeout=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_own_timeouts_do_not_count_in_a_relay(line: MakeLine, kind: str, mode: str) -> None:
    client, a, b, backend = line(kind)
    for sock in (a, b):
        sock.settimeout(SHORT)
    relay = gsplice.Relay(a, b, mode=mode).start()
    assert not relay.wait(2 * SHORT)
    assert not relay.ready()
    client.sendall(b"hello")
    assert receive(backend, 5) == b"hello"
    for sock in (client, backend):
        sock.shutdown(socket.SHUT_WR)
    assert relay.get(timeout=5) == (5, 0)
    assert [a.gettimeout(), b.gettimeout()] == [SHORT, SHORT]


@pytest.mark.parametrize("end", ["stop", "error", "timeout"])
def test_own_timeouts_are_as_before_after_a_relay_that_failed(line: MakeLine, end: str) -> None:
    _, a, b, _ = line()
    a.settimeout(7)
    b.settimeout(8)
    relay = gsplice.Relay(a, b, idle_timeout=SHORT if end == "timeout" else None).start()
    if end == "stop":
        relay.stop()
    elif end == "error":
        a.shutdown(socket.SHUT_RDWR)
        b.shutdown(socket.SHUT_RDWR)
    relay.wait(5)
    assert relay.ready()
    assert [a.gettimeout(), b.gettimeout()] == [7, 8]
