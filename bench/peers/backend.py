"""``backend.c`` in Python."""

import socket
import sys
import threading
import time
from collections.abc import Callable

from bench.addresses import announce, listening, parse, set_no_delay
from bench.peers.window import (
    DISCARD_SIZE,
    LONGEST_START_SECONDS,
    Window,
    answer,
    discard,
    prepare_process,
    say,
    sleep_until,
)


def listen(address: str) -> socket.socket:
    listener = listening(parse(address))
    announce(listener.getsockname())
    return listener


def accept_for_ever(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def run_sink(address: str) -> None:
    counts: list[list[int]] = []  # a cell for each thread, so that no update is lost

    def drain(connection: socket.socket) -> None:
        cell = [0]
        counts.append(cell)
        with connection:
            while received := discard(connection):
                cell[0] += received

    threading.Thread(target=accept_for_ever, args=(listen(address), drain), daemon=True).start()
    for line in sys.stdin:
        word, _, rest = line.partition(" ")
        if word == "await":
            await_connections(counts, int(rest))
        else:
            measure(counts, line)


def measure(counts: list[list[int]], command: str) -> None:
    window = Window(command)
    sleep_until(window.begin)
    window.open()
    before = sum(cell[0] for cell in counts)
    sleep_until(window.end)
    after = sum(cell[0] for cell in counts)
    window.close()
    answer(window, {"bytes": after - before})


def await_connections(counts: list[list[int]], due: int) -> None:
    deadline = time.monotonic() + LONGEST_START_SECONDS
    while (used := sum(cell[0] > 0 for cell in counts)) < due:
        if time.monotonic() > deadline:
            sys.exit(f"something came on {used} connections of {due}")
        time.sleep(0.001)
    say("they have come")


def run_echo(address: str) -> None:
    payload = bytes(DISCARD_SIZE)

    def echo(connection: socket.socket) -> None:
        set_no_delay(connection)
        with connection:
            while received := discard(connection):
                connection.sendall(memoryview(payload)[:received])

    threading.Thread(target=accept_for_ever, args=(listen(address), echo), daemon=True).start()
    sys.stdin.read()


def main(role: str, *words: str) -> None:
    prepare_process()
    roles: dict[str, Callable[..., None]] = {"sink": run_sink, "echo": run_echo}
    roles[role](*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
