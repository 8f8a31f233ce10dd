"""Promise 6: a message goes through in one pass of the hub; nothing waits for more."""

from __future__ import annotations

import math
import random
import time

import gevent
import pytest
from gevent import socket
from peers import (
    MODES,
    MakeLine,
    Pairs,
    Spawn,
    assert_below,
    fill,
    is_readable,
    pattern,
    receive,
    send_and_end,
    wait_until,
    waits_to_read,
)
from races import behind_method

import gsplice
from gsplice._moderation import PERIOD
from gsplice._pump import Pump

MESSAGES = 40_000
CONNECTIONS = 20
#: What the kernel holds a part of a segment back for, where it was told that more will come.
HELD_BACK = 0.200


def exchange(client: socket.socket, messages: int, seed: int) -> float:
    """Have *messages* echoed, one after the other; return the longest that one took."""
    chance = random.Random(seed)
    text = pattern(4096, key=seed)
    slowest = 0.0
    for _ in range(messages):
        start = chance.randrange(3840)
        message = text[start : start + chance.randint(1, 256)]
        began = time.monotonic()
        client.sendall(message)
        echo = client.recv(256)
        while len(echo) < len(message):
            echo += client.recv(256)
        assert echo == message
        slowest = max(slowest, time.monotonic() - began)
    client.shutdown(socket.SHUT_WR)
    return slowest


def echo(sock: socket.socket) -> None:
    """Send everything back."""
    while data := sock.recv(256):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("kind", "mode", "messages"),
    [
        ("tcp", "auto", MESSAGES),
        ("tcp", "splice", MESSAGES // 10),
        ("tcp", "copy", MESSAGES // 10),
        ("unix", "auto", MESSAGES // 10),
        ("tls", "auto", MESSAGES // 20),
    ],
)
def test_small_messages_echoed_through_a_relay(
    line: MakeLine, spawn: Spawn, kind: str, mode: str, messages: int
) -> None:
    def slowest() -> float:
        clients, relays = [], []
        for seed in range(CONNECTIONS):
            client, a, b, backend = line("tcp" if kind == "tls" else kind, kind)
            spawn(echo, backend)
            relays.append(gsplice.Relay(a, b, mode=mode).start())
            clients.append(spawn(exchange, client, messages // CONNECTIONS, seed))
        found = max(client.get() for client in clients)
        for relay in relays:
            sent, received = relay.get(timeout=5)
            assert sent == received > messages // CONNECTIONS
        return found

    assert_below(HELD_BACK, slowest, attempts=3)


@pytest.mark.parametrize("moderation", [0, 0.001, 0.1])
def test_moderation_does_not_delay_an_exchange(
    line: MakeLine, spawn: Spawn, moderation: float
) -> None:
    def seconds() -> float:
        client, a, b, backend = line()
        spawn(echo, backend)
        relay = gsplice.Relay(a, b, moderation=moderation).start()
        began = time.monotonic()
        slowest = exchange(client, 3000, seed=1)
        taken = time.monotonic() - began
        relay.get(timeout=5)
        return taken if slowest < HELD_BACK / 2 else math.inf

    assert_below(3000 * PERIOD, seconds)  # a tick for each would be moderation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 256, 5000, 60_000])
def test_lone_message_is_forwarded_in_one_callback(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch, mode: str, size: int
) -> None:
    client, source, sink, backend = line()
    seen = behind_method(monkeypatch, Pump, "on_readable", lambda _: is_readable(backend))
    transfer = gsplice.Transfer(source, sink, mode=mode).start()
    for number in range(3):
        wait_until(lambda: waits_to_read(source))
        client.sendall(pattern(size, number))
        assert receive(backend, size) == pattern(size, number)
        assert seen[0], "the first callback leaves nothing for a later one"
        seen.clear()
    transfer.stop()


@pytest.mark.parametrize("mode", MODES)
def test_end_of_file_is_passed_on_in_one_callback(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    client, a, b, backend = line()
    seen = behind_method(monkeypatch, Pump, "on_readable", lambda _: is_readable(backend))
    relay = gsplice.Relay(a, b, mode=mode).start()
    client.shutdown(socket.SHUT_WR)
    assert receive(backend) == b""
    assert seen == [True]
    relay.stop()


@pytest.mark.parametrize("moderation", [0, 0.001, 0.05])
@pytest.mark.parametrize("size", [1, 200, 1024, 4096])
def test_last_message_of_a_flowing_stream_is_not_left_behind(
    line: MakeLine, spawn: Spawn, size: int, moderation: float
) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink, moderation=moderation).start()
    number = 3000

    def stream() -> None:
        for _ in range(number):
            client.sendall(b"x" * size)
            gevent.sleep(0)

    moved = 0

    def delay() -> float:
        nonlocal moved
        spawn(stream)
        assert len(receive(backend, number * size)) == number * size
        began = time.monotonic()
        client.sendall(b"last")
        assert receive(backend, 4) == b"last"
        moved += number * size + 4
        return time.monotonic() - began

    for _ in range(2):
        assert_below(moderation + 0.02, delay)
    client.shutdown(socket.SHUT_WR)
    assert transfer.get(timeout=5) == moved


@pytest.mark.parametrize("mode", MODES)
def test_message_behind_a_stalled_sink_goes_as_soon_as_there_is_room(
    pairs: Pairs, spawn: Spawn, mode: str
) -> None:
    client, source = pairs()
    sink, backend = pairs()
    filled = fill(sink)
    transfer = gsplice.Transfer(source, sink, mode=mode).start()
    client.sendall(b"hello")
    wait_until(lambda: sink._write_event.active)
    assert receive(backend, filled + 5).endswith(b"hello")
    transfer.stop()


def test_answer_in_both_directions_while_the_other_streams(line: MakeLine, spawn: Spawn) -> None:
    client, a, b, backend = line()
    relay = gsplice.Relay(a, b).start()
    spawn(send_and_end, backend, bytes(20_000_000))
    spawn(receive, client)

    def slowest() -> float:
        found = 0.0
        for number in range(100):
            began = time.monotonic()
            client.sendall(pattern(100, number))
            assert receive(backend, 100) == pattern(100, number)
            found = max(found, time.monotonic() - began)
        return found

    assert_below(HELD_BACK / 2, slowest)
    client.shutdown(socket.SHUT_WR)
    relay.get(timeout=20)
