"""Promise 7: a transfer that never blocks does not starve the hub.

The peers are in a process of their own, and never let a transfer wait. Beside it a ticker counts.
"""

from __future__ import annotations

import contextlib
import io
import socket as standard_socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from peers import MODES, assert_below, wait_until

import gsplice
from gsplice import _gevent, _sendfile

TICK = 0.005
TICKS = 60
#: The machine's other work may take the processor away for that long as well; no fault of ours.
ATTEMPTS = 12

# A peer that sends for ever, and one that reads for ever; each on the socket that it is given.
SENDER = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
data = bytes(1 << 20)
try:
    while True:
        sock.sendall(data)
except OSError:
    pass
"""
READER = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
buffer = bytearray(1 << 20)
try:
    while sock.recv_into(buffer):
        pass
except OSError:
    pass
"""


@contextlib.contextmanager
def peer(program: str) -> Iterator[socket.socket]:
    """Return a socket whose other end is with *program*, in a process of its own."""
    ours, theirs = standard_socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-c", program, str(fd)], pass_fds=[fd])
    with process, socket.socket(fileno=ours.detach()) as sock:
        try:
            yield sock
        finally:
            process.kill()


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    """Make a socket on which there is always something to read."""
    with peer(SENDER) as sock:
        yield sock


@pytest.fixture
def reader() -> Iterator[socket.socket]:
    """Make a socket that always has room."""
    with peer(READER) as sock:
        yield sock


def tick() -> tuple[float, float]:
    """Run a ticker; return what share of its ticks it got, and the longest that it had to wait."""
    began = last = time.monotonic()
    due, got, gap = began, 0, 0.0
    while due < began + TICK * TICKS:
        due = max(due + TICK, last)  # a tick that was missed is not made up for
        gevent.sleep(max(0.001, due - time.monotonic()))
        now = time.monotonic()
        got, gap, last = got + 1, max(gap, now - last), now
    return got * TICK / (last - began), gap


def assert_ticker_is_on_time(under_way: Callable[[], bool]) -> None:
    """Check that a ticker gets at least 90 % of its ticks, no two further apart than 20 ms."""
    for _ in range(ATTEMPTS):
        share, gap = tick()
        assert under_way()
        if share >= 0.9 and gap <= 0.020:
            return
    pytest.fail(f"{share:.0%} of the ticks, and the largest gap was {gap * 1000:.0f} ms")


@contextlib.contextmanager
def running(task: Any) -> Iterator[Any]:
    """Have a transfer or relay under way."""
    task.start()
    try:
        yield task
    finally:
        task.stop()


def assert_fair(transfer: gsplice.Transfer) -> None:
    """Check a transfer that never has to wait."""
    with running(transfer):
        assert_ticker_is_on_time(lambda: not transfer.ready())
    assert transfer.moved > 10_000_000, "it was hardly at work"


def assert_fair_in_rounds(make: Callable[[], gsplice.Transfer]) -> None:
    """Check transfers of a bounded size, one after the other."""
    rounds = 0

    def go_round() -> None:
        nonlocal rounds
        while True:
            with running(make()) as transfer:
                transfer.get()
            rounds += 1

    going = gevent.spawn(go_round)
    try:
        assert_ticker_is_on_time(lambda: not going.ready())
        assert rounds > 2
    finally:
        going.kill()


@pytest.mark.parametrize("mode", MODES)
def test_socket_to_socket(sender: socket.socket, reader: socket.socket, mode: str) -> None:
    assert_fair(gsplice.Transfer(sender, reader, mode=mode))


ROUND = 16_000_000


def rewound(*files: Any) -> None:
    """Set each of *files* to its beginning."""
    for file in files:
        file.seek(0)


@pytest.mark.parametrize("mode", MODES)
def test_socket_to_file(sender: socket.socket, tmp_path: Path, mode: str) -> None:
    with open(tmp_path / "file", "wb", 0) as file:

        def make() -> gsplice.Transfer:
            rewound(file)
            return gsplice.Transfer(sender, file, ROUND, mode=mode)

        assert_fair_in_rounds(make)


@pytest.mark.parametrize("mode", MODES)
def test_file_to_socket(reader: socket.socket, tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_bytes(bytes(ROUND))  # in the page cache: no disk is waited for
    with open(tmp_path / "file", "rb") as file:

        def make() -> gsplice.Transfer:
            rewound(file)
            return gsplice.Transfer(file, reader, mode=mode)

        assert_fair_in_rounds(make)


def test_a_file_that_there_is_room_for_goes_out_in_many_turns_of_the_loop(
    reader: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sendfile, "_ROUND", 4096)  # which the socket mostly has room for
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    most = before = 0
    with open(tmp_path / "file", "rb") as file, running(gsplice.Transfer(file, reader)) as transfer:
        while not transfer.ready():
            _gevent.let_loop_pass()
            most, before = max(most, transfer.moved - before), transfer.moved
    assert before == 1_000_000
    assert most <= 4 * 4096, "the loop's turns are not seen exactly"


class Endless(io.RawIOBase):
    """Gives zeros without end, and takes anything; never waits."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return bytes(size)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def test_object_to_socket(reader: socket.socket) -> None:
    assert_fair(gsplice.Transfer(Endless(), reader))


def test_socket_to_object(sender: socket.socket) -> None:
    assert_fair(gsplice.Transfer(sender, Endless()))


def test_object_to_object() -> None:
    assert_fair(gsplice.Transfer(Endless(), Endless()))


@pytest.mark.parametrize("to", ["socket", "object"])
def test_bytes_io(reader: socket.socket, to: str) -> None:
    source = io.BytesIO(bytes(ROUND))

    def make() -> gsplice.Transfer:
        rewound(source)
        return gsplice.Transfer(source, reader if to == "socket" else Endless())

    assert_fair_in_rounds(make)


def test_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(ROUND))
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "sink", "wb") as sink:

        def make() -> gsplice.Transfer:
            rewound(source, sink)
            return gsplice.Transfer(source, sink)

        assert_fair_in_rounds(make)


# A peer that sends and reads for ever, at once.
SENDER_AND_READER = f"""
import threading
threading.Thread(target=exec, args=({READER!r}, {{}}), daemon=True).start()
exec({SENDER!r}, {{}})
"""


@pytest.mark.parametrize("mode", MODES)
def test_relay_of_two_streams(mode: str) -> None:
    with (
        peer(SENDER_AND_READER) as a,
        peer(SENDER_AND_READER) as b,
        running(gsplice.Relay(a, b, mode=mode)) as relay,
    ):
        assert_ticker_is_on_time(lambda: not relay.ready())
        assert min(relay.up.moved, relay.down.moved) > 1_000_000


@pytest.mark.parametrize("mode", MODES)
def test_transfers_side_by_side_get_equal_shares(mode: str) -> None:
    with contextlib.ExitStack() as stack:
        transfers = []
        for _ in range(4):
            source, sink = stack.enter_context(peer(SENDER)), stack.enter_context(peer(READER))
            transfers.append(gsplice.Transfer(source, sink, mode=mode))
        for transfer in transfers:
            stack.enter_context(running(transfer))
        wait_until(lambda: all(transfer.moved for transfer in transfers))  # all peers are up

        def most_for_the_least() -> float:
            before = [transfer.moved for transfer in transfers]
            gevent.sleep(0.5)  # the time in which they share
            moved = [each.moved - then for each, then in zip(transfers, before, strict=True)]
            return max(moved) / (min(moved) or 1)

        assert_below(10, most_for_the_least)
