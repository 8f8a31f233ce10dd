"""Promise 1: the sink gets the source's bytes, all, once, in order, and no other's."""

from __future__ import annotations

import random

import gevent
import pytest
from gevent import socket
from peers import (
    KINDS,
    MODES,
    MakeLine,
    Spawn,
    pattern,
    receive,
    send_and_end,
    small_buffers,
)

import gsplice


@pytest.mark.parametrize("sink_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_between_any_two_kinds_of_stream_socket(
    line: MakeLine, spawn: Spawn, mode: str, source_kind: str, sink_kind: str
) -> None:
    client, source, sink, backend = line(source_kind, sink_kind)
    data = pattern(1_000_003)
    spawn(send_and_end, client, data)
    received = spawn(receive, backend, len(data))

    assert gsplice.copy(source, sink, mode=mode) == len(data)

    assert received.get() == data


def send_in_pieces(sock: socket.socket, data: bytes, largest: int, seed: int) -> None:
    """Send *data* in pieces of random sizes, some with a pause behind them, and the end."""
    chance = random.Random(seed)
    at = 0
    while at < len(data):
        size = chance.randint(1, largest)
        sock.sendall(data[at : at + size])
        at += size
        if chance.random() < 0.2:
            gevent.sleep(chance.choice([0, 0, 0.001]))
    sock.shutdown(socket.SHUT_WR)


def receive_in_pieces(sock: socket.socket, seed: int) -> bytes:
    """Receive in pieces of random sizes, some with a pause behind them, to the end."""
    chance = random.Random(seed)
    data = bytearray()
    while piece := sock.recv(chance.choice([1, 100, 5000, 100_000])):
        data += piece
        if chance.random() < 0.05:
            gevent.sleep(chance.choice([0, 0, 0.001]))
    return bytes(data)


@pytest.mark.parametrize("largest", [60, 3_000, 40_000, 400_000])
@pytest.mark.parametrize("mode", MODES)
def test_any_rhythm_arrives_whole_through_small_buffers(
    line: MakeLine, spawn: Spawn, mode: str, largest: int
) -> None:
    # TCP with tiny windows spends its time in timers.
    client, source, sink, backend = line("unix")
    for sock in (client, source, sink, backend):
        small_buffers(sock)
    data = pattern(min(largest * 60, 1_500_000), key=largest)
    spawn(send_in_pieces, client, data, largest, seed=largest)
    received = spawn(receive_in_pieces, backend, seed=largest)

    assert gsplice.copy(source, sink, mode=mode) == len(data)

    sink.shutdown(socket.SHUT_WR)
    assert received.get() == data


def test_a_stream_turns_to_messages_and_back(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink).start()
    for round_number in range(6):
        stream = pattern(700_001, key=round_number)
        spawn(client.sendall, stream)
        assert receive(backend, len(stream)) == stream
        for number in range(20):
            message = pattern(200, key=1000 + number)
            client.sendall(message)
            assert receive(backend, len(message)) == message
    client.shutdown(socket.SHUT_WR)
    assert transfer.get() == 6 * (700_001 + 20 * 200)
    assert 0 < transfer.spliced < transfer.moved, "a stream is spliced, messages are copied"


def test_after_a_stream_that_was_none_one_large_message_is_copied_and_two_in_a_row_are_a_stream(
    line: MakeLine,
) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink).start()

    def spliced(*sizes: int) -> int:
        """Return how much is spliced of messages that are sent one after the other."""
        before = transfer.spliced
        for size in sizes:
            client.sendall(message := pattern(size, key=size % 251))
            assert receive(backend, size) == message
        return transfer.spliced - before

    assert spliced(20_000, 200, 200), "the sign of a stream, at first"
    assert spliced(200, 40_000, 200, 40_000, 200) == 0
    assert spliced(40_000, 40_000, 40_000) == 40_000
    assert spliced(200, 200, 200) == 400
    assert spliced(200_000) > 100_000, "it fills the buffer"
    transfer.stop()


def test_streams_side_by_side_never_mix(line: MakeLine, spawn: Spawn) -> None:
    results = []
    for key in range(30):
        kinds = ("unix" if key % 3 else "tcp", "tcp" if key % 2 else "unix")
        client, source, sink, backend = line(*kinds)
        data = pattern(200_000 + key, key=100 + key)
        spawn(send_in_pieces, client, data, 30_000, seed=key)
        transfer = gsplice.Transfer(source, sink, len(data)).start()
        results.append((transfer, spawn(receive, backend, len(data)), data))
    for transfer, received, data in results:
        assert transfer.get() == len(data)
        assert received.get() == data


def test_a_pipe_used_by_one_stream_brings_nothing_of_it_to_the_next(
    line: MakeLine, spawn: Spawn
) -> None:
    for key in range(20):
        client, source, sink, backend = line()
        stalled = gsplice.Transfer(source, sink, mode="splice").start()
        sender = spawn(client.sendall, pattern(2_000_000, key=200 + key))
        if key % 2:  # left with a pipe full of bytes
            gevent.sleep(0)
            stalled.stop()
            sender.kill()
        else:
            received = spawn(receive, backend, 2_000_000)
            assert received.get() == pattern(2_000_000, key=200 + key)
            stalled.stop()
    client, source, sink, backend = line()
    spawn(send_and_end, client, pattern(2_000_000, key=1))
    received = spawn(receive, backend, 2_000_000)
    assert gsplice.copy(source, sink, mode="splice") == 2_000_000
    assert received.get() == pattern(2_000_000, key=1)
