"""``bench/peer.c`` in Python, for a machine without a C compiler.

The roles and the commands are those that ``peer.c`` describes. It may well be slower than the relay
it measures, so that rates come out nearer to each other than they are.
"""

import contextlib
import ctypes
import json
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from bench.machine import process_clock

LONGEST_DRAIN_SECONDS = 5.0
DISCARD_SIZE = 1 << 20
SCRATCH = bytearray(DISCARD_SIZE)
PR_SET_PDEATHSIG = 1


def say(line: str) -> None:
    print(line, flush=True)


class Window:
    """A time to observe in, and what the named processes use of the CPU meanwhile."""

    def __init__(self, command: str) -> None:
        word, warmup, seconds, *pids = command.split()
        assert word == "measure", command
        self.begin = time.monotonic() + float(warmup)
        self.end = self.begin + float(seconds)
        self._clocks = [process_clock(int(pid)) for pid in pids]

    def open(self) -> None:
        self._cpu = [time.clock_gettime(clock) for clock in self._clocks]
        self._opened = time.monotonic()

    def close(self) -> None:
        seconds = time.monotonic() - self._opened
        used = [time.clock_gettime(clock) for clock in self._clocks]
        cpu = [after - before for before, after in zip(self._cpu, used, strict=True)]
        self.answer: dict[str, object] = {"seconds": seconds, "cpu": cpu}


def discard(connection: socket.socket) -> int:
    return connection.recv_into(SCRATCH, DISCARD_SIZE, socket.MSG_TRUNC)


def listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    say(f"ready {listener.getsockname()[1]}")
    return listener


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def connect_without_delay(port: int) -> socket.socket:
    connection = connect(port)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def accept_for_ever(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def run_sink() -> None:
    counts: list[list[int]] = []  # a cell for each thread, so that no update is lost

    def drain(connection: socket.socket) -> None:
        cell = [0]
        counts.append(cell)
        while received := discard(connection):
            cell[0] += received

    threading.Thread(target=accept_for_ever, args=(listen(), drain), daemon=True).start()
    for line in sys.stdin:
        window = Window(line)
        time.sleep(max(0.0, window.begin - time.monotonic()))
        window.open()
        before = sum(cell[0] for cell in counts)
        time.sleep(max(0.0, window.end - time.monotonic()))
        after = sum(cell[0] for cell in counts)
        window.close()
        say(json.dumps({**window.answer, "bytes": after - before}))


def run_echo() -> None:
    payload = bytes(DISCARD_SIZE)

    def echo(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while received := discard(connection):
            connection.sendall(memoryview(payload)[:received])

    threading.Thread(target=accept_for_ever, args=(listen(), echo), daemon=True).start()
    sys.stdin.read()


def run_write(
    port: int, size: int, connections: int, connect: Callable[[int], socket.socket] = connect
) -> None:
    payload = bytes(size)

    def write(connection: socket.socket) -> None:
        while True:
            connection.sendall(payload)

    opened = [connect(port) for _ in range(connections)]
    say("ready")
    if sys.stdin.readline():
        for connection in opened:
            threading.Thread(target=write, args=(connection,), daemon=True).start()
    sys.stdin.read()


class Pinger:
    """One connection of a ping-pong, with one message in flight."""

    def __init__(self, port: int, payload: bytes) -> None:
        self._socket = connect_without_delay(port)
        self._socket.setblocking(False)
        self._payload = payload
        self.fileno = self._socket.fileno
        self.started = 0.0

    def begin(self, moment: float) -> None:
        self._to_send = memoryview(self._payload)
        self._to_receive = len(self._payload)
        self.started = moment
        self._send()

    def on_event(self) -> bool:
        """Whether the whole message has come back."""
        self._send()
        try:
            received = discard(self._socket)
        except BlockingIOError:
            return False
        if not received:
            sys.exit("the relay ended a connection")
        self._to_receive -= received
        return self._to_receive == 0

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._to_send:
                self._to_send = self._to_send[self._socket.send(self._to_send) :]


class Ping:
    """All connections of a ping-pong, and the latencies seen on them."""

    def __init__(self, port: int, size: int, connections: int) -> None:
        payload = bytes(size)
        self._poll = select.epoll()
        self._pingers: dict[int, Pinger] = {}
        for _ in range(connections):
            pinger = Pinger(port, payload)
            self._pingers[pinger.fileno()] = pinger
            self._poll.register(pinger, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def measure(self, window: Window) -> list[float]:
        begun = time.monotonic()
        for pinger in self._pingers.values():
            pinger.begin(begun)
        self._exchange_until(window.begin)
        window.open()
        latencies = self._exchange_until(window.end)
        window.close()
        self._drain()
        return sorted(latencies)

    def _exchange_until(self, end: float) -> list[float]:
        latencies: list[float] = []
        while (moment := time.monotonic()) < end:
            for pinger in self._returned(end - moment):
                moment = time.monotonic()
                latencies.append(moment - pinger.started)
                pinger.begin(moment)
        return latencies

    def _drain(self) -> None:
        deadline = time.monotonic() + LONGEST_DRAIN_SECONDS
        in_flight = len(self._pingers)
        while in_flight:
            if time.monotonic() > deadline:
                sys.exit(f"{in_flight} replies never came")
            in_flight -= len(self._returned(LONGEST_DRAIN_SECONDS))

    def _returned(self, timeout: float) -> list[Pinger]:
        ready = [self._pingers[fd] for fd, _ in self._poll.poll(timeout)]
        return [pinger for pinger in ready if pinger.on_event()]


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def run_ping(port: int, size: int, connections: int) -> None:
    ping = Ping(port, size, connections)
    say("ready")
    for line in sys.stdin:
        window = Window(line)
        latencies = ping.measure(window)
        shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
        figures = {name: percentile(latencies, share) for name, share in shares.items()}
        say(json.dumps({**window.answer, "messages": len(latencies), **figures}))


def main(role: str, *numbers: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    roles: dict[str, Callable[..., None]] = {
        "sink": run_sink,
        "echo": run_echo,
        "write": run_write,
        "write-no-delay": partial(run_write, connect=connect_without_delay),
        "ping": run_ping,
    }
    roles[role](*map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
