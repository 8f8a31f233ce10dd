"""The contract, scenario by scenario, on every path that bytes can take: every byte, in order.

The paths are those of `paths`; ends before the end, and errors, have modules beside this one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import gevent
import pytest
from contract import FLOOD, STREAM, Ends, moved_since, on
from paths import LIVE, LIVE_SINKS, PATHS, SINKS, SOURCES, Path
from peers import Line, Pairs, Spawn, pattern, plain_loop, poll, receive, send_script, wait_until

import gsplice
from gsplice._hub import LARGE_MESSAGE, LARGE_READ, SCRATCH_SIZE
from gsplice._pipe import PIPE_CAPACITY

#: Each a border of something: nothing, a byte, a small read, the scratch buffer, many pipes.
SIZES = (
    *(0, 1, LARGE_READ - 1, LARGE_READ, LARGE_READ + 1),
    LARGE_MESSAGE,
    *(SCRATCH_SIZE - 1, SCRATCH_SIZE, SCRATCH_SIZE + 1),
    *(PIPE_CAPACITY - 1, PIPE_CAPACITY, PIPE_CAPACITY + 1, 3_000_017),
)
COUNTS = (1, 5, LARGE_READ, 100_000, 600_010, 600_011, 600_012)


# Every byte, once, in order.


@on(PATHS)
@pytest.mark.parametrize("size", SIZES)
def test_a_stream_of_any_size_arrives_whole(
    ends: Ends, path: Path, spawn: Spawn, size: int
) -> None:
    before = gsplice.stats()
    data = pattern(size)
    ends.source.feed(spawn, data)
    received = ends.draining(spawn, size)

    transfer = ends.transfer().start()
    assert transfer.get() == transfer.moved == size

    assert received() == data
    ends.sink.end()
    assert len(ends.sink.drain_all()) in (0, size), "and nothing else comes"
    assert transfer.undelivered == b""
    assert moved_since(before) == (transfer.spliced, size - transfer.spliced)
    if not path.splices or not size:
        assert transfer.spliced == 0
    elif path.mode == "splice":
        assert transfer.spliced == size - ends.source.ahead
    elif size == SIZES[-1]:
        assert transfer.spliced > size // 2


def _in_pieces(data: bytes, chance: random.Random, largest: int) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.randint(1, largest)
        yield data[at : at + size]
        at += size


@on(LIVE)
@pytest.mark.parametrize("largest", [60, 3_000, 40_000, 400_000])
def test_any_rhythm_of_writes_and_reads_arrives_whole(
    ends: Ends, spawn: Spawn, largest: int
) -> None:
    chance = random.Random(largest)
    data = pattern(min(largest * 60, 1_500_000), key=largest)

    def send() -> None:
        for piece in _in_pieces(data, chance, largest):
            ends.source.peer.sendall(piece)
            if chance.random() < 0.2:
                gevent.sleep(chance.choice([0, 0, 0.001]))

    arrived = bytearray()

    def read() -> None:
        while len(arrived) < len(data):
            size = min(chance.choice([1, 100, 5000, 100_000]), len(data) - len(arrived))
            arrived.extend(receive(ends.sink.peer, size))
            if chance.random() < 0.05:
                gevent.sleep(chance.choice([0, 0, 0.001]))

    spawn(send)
    transfer = ends.transfer(len(data)).start()
    receive(ends.sink.peer, len(ends.sink.before))
    reading = spawn(read)
    assert transfer.get() == len(data)
    reading.get()
    assert bytes(arrived) == data


@on(PATHS)
@pytest.mark.parametrize("count", COUNTS)
def test_count_is_the_most_that_is_moved_and_the_rest_stays(
    ends: Ends, spawn: Spawn, count: int
) -> None:
    expected = min(count, len(STREAM))
    ends.source.feed(spawn, STREAM)
    received = ends.draining(spawn, expected)
    assert ends.transfer(count).start().get() == expected
    assert received() == STREAM[:expected]
    assert ends.source.rest(len(STREAM) - expected) == STREAM[expected:]


@on(LIVE_SINKS)
def test_the_end_of_file_comes_behind_every_byte_though_the_sink_stalled(
    ends: Ends, spawn: Spawn
) -> None:
    transfer = ends.stalled(spawn)
    received = spawn(ends.sink.drain, len(FLOOD))
    assert transfer.get() == len(FLOOD)
    assert received.get() == FLOOD


@on(PATHS)
def test_neither_end_is_shut_down_or_closed(ends: Ends, path: Path, spawn: Spawn) -> None:
    ends.source.feed(spawn, b"hello")
    assert ends.transfer().start().get() == 5
    assert ends.sink.drain(5) == b"hello"
    if SINKS[path.sink].is_live:
        ends.sink.socket.sendall(b" and more")
        assert receive(ends.sink.peer, 9) == b" and more"
        ends.sink.peer.sendall(b"question")
        assert receive(ends.sink.socket, 8) == b"question"
    else:
        ends.sink.thing.write(b" and more")
        ends.sink.thing.flush()
        assert ends.sink.drain_all() == b"hello and more"
    if SOURCES[path.source].is_live:
        ends.source.socket.sendall(b"answer")
        assert receive(ends.source.peer, 6) == b"answer"
    else:
        assert ends.source.thing.read() == b""


# Urgent data.

#: What a client sends: plain bytes, and between them the urgent ones.
SCRIPTS: dict[str, tuple[bytes, ...]] = {
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
URGENT = [
    path
    for path in PATHS
    if path.source in ("TCP", "TCP6", "reader", "own recv") and SINKS[path.sink].is_live
]


@on(URGENT)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_urgent_bytes_are_as_through_a_plain_loop(
    ends: Ends, pairs: Pairs, spawn: Spawn, script: tuple[bytes, ...]
) -> None:
    plain = Line(*pairs(), *pairs())
    for client, source in ((plain.client, plain.source), (ends.source.peer, ends.source.socket)):
        spawn(send_script, client, script)
        wait_until(lambda: poll(source) & 0x2000)  # noqa: B023 # POLLRDHUP: all is there
    moved = plain_loop(plain.source, plain.sink)
    assert ends.transfer().run() == moved
    assert ends.sink.drain(moved) == receive(plain.backend, moved)
