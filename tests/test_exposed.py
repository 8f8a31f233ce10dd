"""A forwarder that anybody can reach: what a crowd of hostile clients costs it, and its end.

It is a process of its own (``python -m gsplice forward``), so that what it holds is what it costs.
"""

from __future__ import annotations

import errno
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import gevent
import pytest
from forwarder import Forwarder, dial, refuses
from gevent import socket
from gevent.server import StreamServer
from peers import (
    assert_below,
    error_of,
    exchange,
    fill,
    pattern,
    quietly,
    receive,
    send_back,
    small_buffers,
    wait_until,
)
from programs import PATIENCE

KIB = 1024
#: As many as a test has fds for, two for each here and four in the forwarder.
CROWD = 2000
FEW = 100
#: The socket to the target that a server has before there is a client for it. It has none where it
#: has accepted as many at once as it does, and nobody else was left.
RESERVED = 1
#: What the backend pours out until nobody takes any more.
PIECE = bytes(256 * KIB)

#: Of user memory, kernel buffers aside: what a connection may cost the forwarder. It was 4 KiB for
#: one that is slow, 6 to 10 for one that is stalled, and 17 to 353 where nothing is spliced and
#: what was read waits in user space, 512 KiB at the most.
SLOW_COSTS = 16 * KIB
STALLED_COSTS = {"auto": 24 * KIB, "copy": (512 + 24) * KIB}

#: What a client is told whom nobody accepted, by whichever call is the first to hear of it.
GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)

Start: TypeAlias = Callable[..., Forwarder]


class Pour:
    """A backend that answers without an end, to whoever takes it."""

    def __init__(self) -> None:
        self._poured = 0
        self._seen = (0, 0.0)

    def __call__(self, sock: socket.socket, _: object) -> None:
        while True:
            self._poured += sock.send(PIECE)

    def has_stalled(self) -> bool:
        """Whether nobody has taken anything for a while."""
        before, since = self._seen
        if self._poured != before:
            self._seen = self._poured, time.monotonic()
            return False
        return time.monotonic() - since > 0.3


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a backend that does *handle*, and a forwarder to it."""
    forwarders: list[Forwarder] = []
    backends: list[StreamServer] = []

    def begin(handle: Callable[..., None], *options: str) -> Forwarder:
        backends.append(StreamServer(("127.0.0.1", 0), quietly(handle), backlog=1024))
        backends[-1].start()
        target = f"127.0.0.1:{backends[-1].server_port}"
        options = options if "--grace" in options else (*options, "--grace", "0")
        forwarders.append(Forwarder("127.0.0.1:0", target, *options))
        forwarders[-1].wait_until_ready()
        return forwarders[-1]

    with many_fds():
        yield begin
        for forwarder in forwarders:
            forwarder.__exit__()
        for backend in backends:
            backend.stop(0)


class many_fds:  # noqa: N801
    """Have as many fds as the system allows, meanwhile; a process that starts has them as well."""

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._before[1], self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


def crowd(most: int) -> int:
    """Return how many clients there are fds for, *most* at the most."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if limit == resource.RLIM_INFINITY else min(most, (limit - 200) // 4)


def memory(forwarder: Forwarder) -> int:
    """Return the bytes that the forwarder has in memory."""
    rollup = Path(f"/proc/{forwarder.process.pid}/smaps_rollup").read_text()
    (line,) = (line for line in rollup.splitlines() if line.startswith("Rss:"))
    return int(line.split()[1]) * KIB


# What a crowd costs.


def test_thousands_of_clients_that_send_a_byte_now_and_then(start: Start) -> None:
    forwarder = start(send_back)
    served = forwarder.dial()
    exchange(served)
    fds, size, count = forwarder.open_files(), memory(forwarder), crowd(CROWD)
    slow = [forwarder.dial() for _ in range(count)]
    for byte in (b"s", b"l"):
        for client in slow:
            client.sendall(byte)
        for client in slow:
            assert client.recv(1) == byte
        exchange(served)
    assert (memory(forwarder) - size) / count < SLOW_COSTS
    assert 2 * count - RESERVED <= forwarder.open_files() - fds <= 2 * count
    for client in slow:
        client.close()
    wait_until(lambda: fds - RESERVED <= forwarder.open_files() <= fds)
    exchange(served)


def test_thousands_of_clients_that_never_say_a_word(start: Start) -> None:
    forwarder = start(send_back, "--idle-timeout", "60")
    served = forwarder.dial()
    exchange(served)
    fds, size, count = forwarder.open_files(), memory(forwarder), crowd(CROWD)
    silent = [forwarder.dial() for _ in range(count)]
    wait_until(lambda: forwarder.open_files() - fds >= 2 * count - RESERVED)
    exchange(served)
    assert (memory(forwarder) - size) / count < SLOW_COSTS
    for client in silent:
        client.close()
    wait_until(lambda: fds - RESERVED <= forwarder.open_files() <= fds)
    exchange(served)


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_clients_that_never_read_the_answer(start: Start, mode: str) -> None:
    pour = Pour()
    forwarder = start(pour, "--mode", mode)
    with dial(forwarder.address) as served:
        receive(served, 1_000_000)
    wait_until(lambda: forwarder.open_files() < 20)
    fds = forwarder.open_files()
    stalled: list[socket.socket] = []

    def cost_of_a_few_more() -> float:
        before = memory(forwarder)
        for _ in range(FEW):
            stalled.append(forwarder.dial())
            small_buffers(stalled[-1])
        wait_until(pour.has_stalled)
        return (memory(forwarder) - before) / FEW

    # Once in a while Python gets memory for many more than these.
    assert_below(STALLED_COSTS[mode], cost_of_a_few_more)
    assert forwarder.open_files() - fds <= 4 * len(stalled)  # two sockets, and a pipe for one way
    receive(forwarder.dial(), 10_000_000)  # others are served as ever
    for client in stalled:
        client.close()
    wait_until(lambda: forwarder.open_files() <= fds + 2 + 2 * 16)  # the pool keeps a few pipes


def test_stalled_clients_are_ended_by_the_idle_time_out_and_slow_ones_are_not(
    start: Start,
) -> None:
    def pour_if_asked(sock: socket.socket, address: object) -> None:
        asked = sock.recv(5)
        sock.sendall(asked)
        (Pour() if asked == b"pour!" else send_back)(sock, address)

    forwarder = start(pour_if_asked, "--idle-timeout", "1", "--mode", "copy")
    slow = forwarder.dial()
    exchange(slow)
    fds = forwarder.open_files()
    stalled = [forwarder.dial() for _ in range(3)]
    for client in stalled:
        exchange(client, b"pour!")
    assert forwarder.open_files() == fds + 2 * len(stalled)
    while forwarder.open_files() > fds:
        exchange(slow)
        gevent.sleep(0.1)  # now and then is what is tested
    exchange(slow)


# The end, under load.


class Load:
    """Streams that are half sent, and half received again, when the signal comes."""

    SIZE = 1_000_000

    def __init__(self, forwarder: Forwarder, streams: int = 20) -> None:
        self.clients = [forwarder.dial() for _ in range(streams)]
        self.data = [pattern(2 * self.SIZE, key) for key in range(streams)]
        self.received = [b""] * streams

    def begin(self) -> None:
        self._each(self._first_half)

    def finish(self) -> None:
        self._each(self._second_half)

    def cut(self) -> None:
        """Go on until there is an end, whatever it is."""
        self._each(self._until_cut)

    def _each(self, do: Callable[[int], None]) -> None:
        working = [gevent.spawn(do, number) for number in range(len(self.clients))]
        gevent.joinall(working, timeout=PATIENCE, raise_error=True)
        assert all(one.ready() for one in working)

    def _first_half(self, number: int) -> None:
        sending = gevent.spawn(self.clients[number].sendall, self.data[number][: self.SIZE])
        self.received[number] = receive(self.clients[number], self.SIZE)
        sending.get()

    def _second_half(self, number: int) -> None:
        client = self.clients[number]
        sending = gevent.spawn(client.sendall, self.data[number][self.SIZE :])
        self.received[number] += receive(client, self.SIZE)
        sending.get()
        client.shutdown(socket.SHUT_WR)
        assert receive(client) == b""

    def _until_cut(self, number: int) -> None:
        try:
            while piece := self.clients[number].recv(65536):
                self.received[number] += piece
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("mode", ["auto", "splice", "copy"])
def test_sigterm_under_load_lets_every_stream_finish(start: Start, mode: str) -> None:
    forwarder = start(send_back, "--grace", "60", "--mode", mode)
    load = Load(forwarder)
    load.begin()
    forwarder.process.terminate()
    wait_until(lambda: refuses(forwarder.address))
    load.finish()
    assert load.received == load.data
    assert forwarder.ended() == 0
    assert len(forwarder.output.splitlines()) == 1


@pytest.mark.parametrize("how", ["a second signal", "the end of the grace"])
def test_what_is_cut_under_load_has_got_its_own_bytes_and_no_others(start: Start, how: str) -> None:
    second = how == "a second signal"
    forwarder = start(send_back, "--grace", "60" if second else "0.2")
    load = Load(forwarder)
    load.begin()
    flooding = [gevent.spawn(error_of, fill, client) for client in load.clients]
    forwarder.process.terminate()
    wait_until(lambda: refuses(forwarder.address))
    if second:
        forwarder.process.send_signal(signal.SIGTERM)
    load.cut()
    gevent.joinall(flooding, timeout=PATIENCE)
    assert forwarder.ended() == 0
    for data, received in zip(load.data, load.received, strict=True):
        assert received[: load.SIZE] == data[: load.SIZE]
        assert not received[load.SIZE :].strip(b"\0")  # what `fill` sends


def test_a_client_that_comes_while_it_ends_is_served_whole_or_not_at_all(start: Start) -> None:
    forwarder = start(send_back, "--grace", "60")
    message = pattern(1000)
    served = 0

    def come() -> bool:
        """Whether it was served; the forwarder has ended, for whoever comes now, if it was not."""
        try:
            with dial(forwarder.address) as client:
                client.sendall(message)
                client.shutdown(socket.SHUT_WR)
                answer = receive(client)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False
        assert answer == message
        return True

    def keep_coming() -> None:
        nonlocal served
        while come():
            served += 1

    coming = [gevent.spawn(keep_coming) for _ in range(10)]
    wait_until(lambda: served > 200)
    forwarder.process.terminate()
    gevent.joinall(coming, raise_error=True)
    assert forwarder.ended() == 0


def test_sigterm_serves_those_who_wait_in_the_backlog(start: Start) -> None:
    forwarder = start(send_back, "--grace", "60")
    exchange(forwarder.dial())
    forwarder.process.send_signal(signal.SIGSTOP)
    clients = [forwarder.dial() for _ in range(FEW)]
    for number, client in enumerate(clients):
        client.sendall(pattern(1000, number))
    forwarder.process.terminate()
    forwarder.process.send_signal(signal.SIGCONT)
    for number, client in enumerate(clients):
        assert receive(client, 1000) == pattern(1000, number)
        client.close()
