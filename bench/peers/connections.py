"""``connections.c`` in Python."""

import socket
import sys
import threading
import time
from dataclasses import dataclass

from bench.addresses import Address, connected, parse, set_no_delay
from bench.peers.window import (
    LONGEST_DRAIN_SECONDS,
    Window,
    answer,
    discard,
    latency_figures,
    prepare_process,
    say,
    sleep_until,
)


@dataclass
class Plan:
    """What is done on each connection."""

    relay: Address
    send: int
    receive: int
    ends_sending: bool
    awaits_end: bool

    def carry_out(self) -> None:
        with connected(self.relay) as connection:
            set_no_delay(connection)
            connection.sendall(bytes(self.send))
            if self.ends_sending:
                connection.shutdown(socket.SHUT_WR)
            self._receive(connection)

    def _receive(self, connection: socket.socket) -> None:
        received = 0
        while received < self.receive or self.awaits_end:
            count = discard(connection)
            received += count
            if not count:
                break
        if received != self.receive:
            raise ValueError(f"{received} bytes came where {self.receive} were due")


class Work:
    """Threads that carry the plan out again and again."""

    def __init__(self, plan: Plan, connections: int) -> None:
        self._plan = plan
        self._connections = connections

    def measure(self, window: Window) -> list[float]:
        self._going, self._observing = True, False
        latencies: list[float] = []
        threads = [
            threading.Thread(target=self._go_on, args=(latencies,), daemon=True)
            for _ in range(self._connections)
        ]
        for thread in threads:
            thread.start()
        sleep_until(window.begin)
        window.open()
        self._observing = True
        sleep_until(window.end)
        self._going = self._observing = False
        window.close()
        self._await(threads)
        return latencies

    def _go_on(self, latencies: list[float]) -> None:
        while self._going:
            started = time.monotonic()
            self._plan.carry_out()
            if self._observing:
                latencies.append(time.monotonic() - started)

    def _await(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + LONGEST_DRAIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.exit("a connection never came to its end")


def main(role: str, address: str, size: str, connections: str) -> None:
    prepare_process()
    plan = Plan(
        relay=parse(address),
        send=0 if role == "fetch" else int(size),
        receive=0 if role == "transfer" else int(size),
        ends_sending=role == "transfer",
        awaits_end=role != "exchange",
    )
    work = Work(plan, int(connections))
    say("ready")
    for line in sys.stdin:
        window = Window(line)
        latencies = work.measure(window)
        answer(window, latency_figures(latencies))


if __name__ == "__main__":
    main(*sys.argv[1:])
