"""Promise 5: one byte of urgent data neither stalls, spins nor truncates a transfer.

What comes out on each path is `test_contract`'s affair.
"""

from __future__ import annotations

import pytest
from gevent import socket
from peers import (
    MakeLine,
    Spawn,
    assert_below,
    cpu_time_of_waiting,
    pattern,
    receive,
    send_script,
    wait_until,
    waits_to_read,
)

import gsplice

MODES = ("auto", "splice", "copy")


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
    assert_below(0.03, lambda: cpu_time_of_waiting(0.1))
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
