"""What is measured: a stream, a stream of small writes, and requests with their answers."""

from __future__ import annotations

import abc
import contextlib
import socket
import time
from typing import Final, NamedTuple, TypeAlias

from gsplice.demo import backend, traffic
from gsplice.demo.deadline import DemoError
from gsplice.demo.processes import Forwarder, Reading
from gsplice.demo.traffic import Moved, Payload

_SMALL_WRITE: Final = 1024
#: Small writes keep the client as busy as the forwarder: so many times fewer bytes are enough.
_FEWER: Final = 8

_CONNECTIONS: Final = 32
_REQUEST: Final = 256
#: Seconds that one round of requests takes.
_ROUND: Final = 0.4

#: Connections, and what is asked on each.
_Asked: TypeAlias = list[tuple[socket.socket, bytes]]


class Sample(NamedTuple):
    """What one round gave through one forwarder."""

    rate: float
    """In the scenario's own unit."""
    cpu: float
    """In the scenario's own unit."""
    spliced: float
    """The share of the bytes that went kernel to kernel."""


class Scenario(abc.ABC):
    """One kind of traffic."""

    title: str
    rate_unit: str
    cpu_unit: str
    #: How large one round is, in what `measure` tells of progress.
    size: float

    @abc.abstractmethod
    def measure(self, forwarder: Forwarder, payload: Payload, moved: Moved) -> Sample:
        """Run one round through *forwarder*; the clock is read when the last byte has arrived."""


class Stream(Scenario):
    """One connection, one way, as fast as it goes."""

    rate_unit = "MB/s"
    cpu_unit = "CPU seconds per GB"

    def __init__(self, title: str, total: int, write_size: int) -> None:
        self.title = title
        self.size = self._total = total
        self._write_size = write_size

    def measure(self, forwarder: Forwarder, payload: Payload, moved: Moved) -> Sample:
        """Send all; at the end of file the far end tells how much it got."""
        with forwarder.connect() as sock:
            before = forwarder.read()
            sock.sendall(backend.COUNT)
            traffic.send(sock, payload.writes(self._total, self._write_size), moved)
            sock.shutdown(socket.SHUT_WR)
            arrived = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
            spent = forwarder.read().since(before)
        if arrived != self._total:
            raise DemoError(
                f"{forwarder.title}: {arrived:,} bytes of {self._total:,} came to the far end"
            )
        gigabytes = self._total / 1e9
        return Sample(1e3 * gigabytes / spent.when, spent.cpu / gigabytes, _spliced(spent))


class Requests(Scenario):
    """Many connections, on each of which a request waits for its answer."""

    title = f"{_CONNECTIONS} connections, {_REQUEST} B requests and answers"
    rate_unit = "round trips a second"
    cpu_unit = "CPU microseconds per round trip"
    size = _ROUND

    def measure(self, forwarder: Forwarder, payload: Payload, moved: Moved) -> Sample:
        """Ask on all connections, then wait for all answers, again and again."""
        requests = [bytes(write) for write in payload.writes(_CONNECTIONS * _REQUEST, _REQUEST)]
        with contextlib.ExitStack() as stack:
            asked = [(stack.enter_context(forwarder.connect()), each) for each in requests]
            for sock, _ in asked:
                sock.sendall(backend.ECHO)
            self._ask(asked, forwarder)  # now each is connected to the far end
            before = forwarder.read()
            count = self._ask_for_a_while(asked, forwarder, moved)
            spent = forwarder.read().since(before)
        return Sample(count / spent.when, 1e6 * spent.cpu / count, _spliced(spent))

    def _ask_for_a_while(self, asked: _Asked, forwarder: Forwarder, moved: Moved) -> int:
        count = 0
        then = time.perf_counter()
        end = then + _ROUND
        while then < end:
            self._ask(asked, forwarder)
            count += len(asked)
            now = time.perf_counter()
            moved(now - then)
            then = now
        return count

    def _ask(self, asked: _Asked, forwarder: Forwarder) -> None:
        for sock, request in asked:
            sock.sendall(request)
        for sock, request in asked:
            if sock.recv(_REQUEST, socket.MSG_WAITALL) != request:
                raise DemoError(f"{forwarder.title}: an answer is not what was asked")


def _spliced(spent: Reading) -> float:
    return spent.spliced / max(spent.spliced + spent.copied, 1)


def scenarios(megabytes: int) -> list[Scenario]:
    """Return all, with streams of *megabytes*."""
    total = megabytes * 10**6
    return [
        Stream("one stream, 256 KiB writes", total, traffic.STREAM_WRITE),
        Stream("one stream, 1 KiB writes", total // _FEWER, _SMALL_WRITE),
        Requests(),
    ]
