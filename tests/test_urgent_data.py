"""Promise 5: one byte of urgent data neither stalls, spins nor truncates a transfer."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import pytest
from gevent import socket
from peers import (
    MakeLine,
    Spawn,
    pattern,
    plain_loop,
    poll,
    receive,
    wait_until,
    waits_to_read,
)

import gsplice

Script = tuple[bytes, ...]
MODES = ("auto", "splice", "copy")

#: What a client sends: plain bytes, and between them the urgent ones.
SCRIPTS: dict[str, Script] = {
    "at the start": (b"", b"hello, world"),
    "in the middle": (b"hello", b"world"),
    "right before the end": (b"hello, world", b""),
    "nothing else": (b"", b""),
    "twice": (b"one", b"two", b"three"),
    "twice in a row": (b"one", b"", b"two"),
    "three, first and last": (b"", b"one", b"two", b""),
    "in a stream": (pattern(50_000, 1), pattern(50_000, 2)),
    "at the end of a stream": (pattern(100_000, 3), b""),
}


def send_script(client: socket.socket, script: Script) -> None:
    """Send the parts of *script* with an urgent byte between each two, and the end."""
    for number, part in enumerate(script):
        if number:
            client.send(b"!", socket.MSG_OOB)
        if part:
            client.sendall(part)
    client.shutdown(socket.SHUT_WR)


def delivered(line: MakeLine, spawn: Spawn, kind: str, script: Script, move: Callable) -> bytes:
    """Return what *move* makes of *script*, all of which is there when it begins."""
    client, source, sink, backend = line(kind)
    spawn(send_script, client, script)
    wait_until(lambda: poll(source) & 0x2000)  # POLLRDHUP: the end has come, so all has
    received = spawn(receive, backend)
    move(source, sink)
    sink.shutdown(socket.SHUT_WR)
    return received.get()


@pytest.mark.parametrize("kind", ["tcp", "tcp6"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_all_there_is_the_same_as_through_a_plain_loop(
    line: MakeLine, spawn: Spawn, kind: str, mode: str, name: str
) -> None:
    script = SCRIPTS[name]
    expected = delivered(line, spawn, kind, script, plain_loop)

    def move(source: socket.socket, sink: socket.socket) -> int:
        return gsplice.copy(source, sink, mode=mode)

    assert delivered(line, spawn, kind, script, move) == expected


@pytest.mark.parametrize("mode", MODES)
def test_messages_around_each_urgent_byte_go_through_at_once(
    line: MakeLine, spawn: Spawn, mode: str
) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink, mode=mode).start()
    for number in range(20):
        message = pattern(100, number)
        client.sendall(message)
        client.send(b"!", socket.MSG_OOB)
        assert receive(backend, 100) == message
    client.sendall(b"last")
    assert receive(backend, 4) == b"last"
    client.shutdown(socket.SHUT_WR)
    assert transfer.get() == 20 * 100 + 4


def test_urgent_bytes_while_streaming(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink).start()
    for number in range(5):
        before, after = pattern(600_000, number), pattern(300_000, 50 + number)
        sender = spawn(client.sendall, before)
        assert receive(backend, len(before)) == before
        sender.get()
        client.send(b"!", socket.MSG_OOB)
        spawn(client.sendall, after)
        assert receive(backend, len(after)) == after
    assert transfer.spliced > transfer.moved // 2, "one urgent byte is no reason to copy for ever"
    client.shutdown(socket.SHUT_WR)
    assert transfer.get() == 5 * 900_000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [b"", b"hello", pattern(60_000, 4)], ids=len)
@pytest.mark.parametrize("end", [False, True], ids=["then silence", "then the end"])
def test_waiting_at_the_urgent_mark_costs_no_cpu(
    line: MakeLine, spawn: Spawn, mode: str, before: bytes, end: bool
) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink, mode=mode).start()
    client.sendall(before)
    client.send(b"!", socket.MSG_OOB)
    assert receive(backend, len(before)) == before
    if end:
        client.shutdown(socket.SHUT_WR)
        assert transfer.get(timeout=5) == len(before)
        return
    wait_until(lambda: waits_to_read(source))
    began = time.process_time()
    gevent.sleep(0.1)  # in which nothing may happen
    assert time.process_time() - began < 0.03
    client.sendall(b"world")
    assert receive(backend, 5) == b"world"
    transfer.stop()


def test_urgent_data_that_is_to_be_kept_in_line_is_kept(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    spawn(send_script, client, (b"hello", b"world"))
    assert gsplice.copy(source, sink, mode="splice") == 11
    assert receive(backend, 11) == b"hello!world"


@pytest.mark.parametrize("mode", MODES)
def test_urgent_byte_through_a_relay_in_both_directions(line: MakeLine, mode: str) -> None:
    client, a, b, backend = line()
    relay = gsplice.Relay(a, b, mode=mode).start()
    for here, there in ((client, backend), (backend, client)):
        here.sendall(b"hello")
        here.send(b"!", socket.MSG_OOB)
        here.sendall(b"world")
        assert receive(there, 10) == b"helloworld"
        here.shutdown(socket.SHUT_WR)
    assert relay.get(timeout=5) == (10, 10)
