"""``client.c`` in Python."""

import itertools
import select
import socket
import sys
import threading
import time

from bench.addresses import Address, connected, parse, set_no_delay
from bench.peers.window import (
    LONGEST_DRAIN_SECONDS,
    LONGEST_START_SECONDS,
    Window,
    answer,
    discard,
    latency_figures,
    prepare_process,
    say,
    send_up_to,
)

CONNECT_AT_ONCE = 512


def run_write(relay: Address, sizes: list[int], connections: int, no_delay: bool) -> None:
    payloads = [bytes(size) for size in sizes]

    def write(connection: socket.socket) -> None:
        for payload in itertools.cycle(payloads):
            connection.sendall(payload)

    opened = [connected(relay) for _ in range(connections)]
    for connection in opened:
        if no_delay:
            set_no_delay(connection)
    say("ready")
    if sys.stdin.readline():  # "greet"
        for connection in opened:
            connection.sendall(payloads[0])
    if sys.stdin.readline():  # "go"
        for connection in opened:
            threading.Thread(target=write, args=(connection,), daemon=True).start()
    sys.stdin.read()


class Pinger:
    """One connection of a ping-pong, with one message in flight."""

    def __init__(self, relay: Address, sizes: list[int]) -> None:
        self._socket = connected(relay)
        set_no_delay(self._socket)
        self._socket.setblocking(False)
        self._payloads = itertools.cycle([bytes(size) for size in sizes])
        self.fileno = self._socket.fileno
        self.started = 0.0

    def begin(self, moment: float) -> None:
        self._to_send = memoryview(next(self._payloads))
        self._to_receive = len(self._to_send)
        self.started = moment
        self._to_send = send_up_to(self._socket, self._to_send)

    def on_event(self) -> bool:
        """Whether the whole message has come back."""
        self._to_send = send_up_to(self._socket, self._to_send)
        try:
            received = discard(self._socket)
        except BlockingIOError:
            return False
        if not received:
            sys.exit("the relay ended a connection")
        self._to_receive -= received
        return self._to_receive == 0


class Ping:
    """All connections of a ping-pong, and the latencies seen on them."""

    def __init__(self, relay: Address, sizes: list[int], connections: int) -> None:
        self._poll = select.epoll()
        self._pingers: dict[int, Pinger] = {}
        for _ in range(connections):
            pinger = Pinger(relay, sizes)
            self._pingers[pinger.fileno()] = pinger
            # Not edge-triggered by input: a unix socket is read piece by piece.
            self._poll.register(pinger, select.EPOLLIN)
            if len(self._pingers) % CONNECT_AT_ONCE == 0:
                self._exchange_once()
        self._exchange_once()

    def measure(self, window: Window) -> list[float]:
        self._begin(self._pingers)
        self._exchange_until(window.begin)
        window.open()
        latencies = self._exchange_until(window.end)
        window.close()
        self._drain(len(self._pingers), LONGEST_DRAIN_SECONDS)
        return latencies

    def _exchange_once(self) -> None:
        """Each of those that are connected: it is through when this returns."""
        self._begin(self._pingers)
        self._drain(len(self._pingers), LONGEST_START_SECONDS)

    def _begin(self, pingers: dict[int, Pinger]) -> None:
        moment = time.monotonic()
        for pinger in pingers.values():
            pinger.begin(moment)

    def _exchange_until(self, end: float) -> list[float]:
        latencies: list[float] = []
        while (moment := time.monotonic()) < end:
            for pinger in self._returned(end - moment):
                moment = time.monotonic()
                latencies.append(moment - pinger.started)
                pinger.begin(moment)
        return latencies

    def _drain(self, in_flight: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while in_flight:
            if time.monotonic() > deadline:
                sys.exit(f"{in_flight} replies never came")
            in_flight -= len(self._returned(seconds))

    def _returned(self, timeout: float) -> list[Pinger]:
        ready = [self._pingers[fd] for fd, _ in self._poll.poll(timeout)]
        return [pinger for pinger in ready if pinger.on_event()]


def run_ping(relay: Address, sizes: list[int], connections: int) -> None:
    ping = Ping(relay, sizes, connections)
    say("ready")
    for line in sys.stdin:
        window = Window(line)
        latencies = ping.measure(window)
        answer(window, latency_figures(latencies))


def main(role: str, address: str, sizes: str, connections: str) -> None:
    prepare_process()
    relay, each = parse(address), [int(size) for size in sizes.split(",")]
    if role == "ping":
        run_ping(relay, each, int(connections))
    else:
        run_write(relay, each, int(connections), role == "write-no-delay")


if __name__ == "__main__":
    main(*sys.argv[1:])
