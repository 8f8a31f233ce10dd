"""An oracle for streams of bytes: it knows every byte that was sent, and what may come of it.

Invariant: each stream has bytes of its own, and at each position another stretch of them. So what
is lost, doubled, out of order or another connection's is seen where it is received.

A stream may have urgent bytes between its own (``MSG_OOB``). Of those a plain loop of recv and
sendall passes on the ones that were overtaken by another before they were reached, and not the
others, so that each may be there or not. It never is the byte that the stream has at its place.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import gevent
from gevent import socket, ssl
from gevent.event import Event
from gevent.queue import Queue
from peers import pattern

from gsplice import _gevent
from gsplice._shutdown import half_close  # Python itself has no such call for TLS

#: The bytes of a stream come again after so many: a prime, so no multiple of any buffer's size.
_PERIOD = 65_521
#: The most that is sent, received or compared at once.
LARGEST_PIECE = 2 * _PERIOD
_TLS_RECORD = 16 * 1024
#: What a socket raises that has gone; the last two are those of a TLS socket that another greenlet
#: has closed.
GONE = (OSError, ValueError, AttributeError)

#: What was done → how many times.
Counts: TypeAlias = "collections.Counter[str]"


class Stream:
    """What one peer sends: bytes of its own, with urgent ones between them."""

    def __init__(self, key: int) -> None:
        self._bytes = pattern(_PERIOD, key) * 4
        self.sent = 0  # of its own bytes, urgent ones not counted
        self.urgent: collections.Counter[int] = collections.Counter()  # position → how many

    def piece(self, position: int, length: int) -> bytes:
        """Return *length* bytes from *position* on."""
        start = position % _PERIOD
        return self._bytes[start : start + length]

    def urgent_byte(self, position: int) -> bytes:
        """Return the urgent byte for *position*: not the one that the stream has there."""
        return bytes([self.piece(position, 1)[0] ^ 0xFF])


class Cursor:
    """Goes along a stream with the bytes that have come of it."""

    def __init__(self, stream: Stream, position: int = 0) -> None:
        self._stream = stream
        self._urgent = 0  # that were met at this position
        self.position = position

    def take(self, data: bytes) -> None:
        """Check that *data* is what comes next."""
        rest = memoryview(data)
        while rest:
            if self._is_urgent(rest):
                self._urgent += 1
                rest = rest[1:]
                continue
            length = min(len(rest), self._until_urgent(), LARGEST_PIECE)
            expected = self._stream.piece(self.position, length)
            if rest[:length] != expected:
                raise AssertionError(self._difference(rest[:length].tobytes(), expected))
            self.position += length
            self._urgent = 0
            rest = rest[length:]
        assert self.position <= self._stream.sent, "bytes came that nobody has sent"

    def _is_urgent(self, data: memoryview) -> bool:
        if self._urgent >= self._stream.urgent[self.position]:
            return False
        return data[:1] == self._stream.urgent_byte(self.position)

    def _until_urgent(self) -> int:
        ahead = (place for place in self._stream.urgent if place > self.position)
        return min(ahead, default=self.position + LARGEST_PIECE) - self.position

    def _difference(self, data: bytes, expected: bytes) -> str:
        at = next(i for i, (got, due) in enumerate(zip(data, expected, strict=True)) if got != due)
        return (
            f"other bytes than were sent, from {self.position + at} on: "
            f"{data[at : at + 20]!r}, not {expected[at : at + 20]!r}"
        )


class Writer:
    """A greenlet that does to a socket, one after the other, what it is told."""

    def __init__(self, sock: socket.socket, stream: Stream, counts: Counts) -> None:
        self._socket = sock
        self._stream = stream
        self._counts = counts
        self._orders: Any = Queue()
        self.is_ending = False  # it has been told to
        self._greenlet = gevent.spawn(self._run)

    def write(self, sizes: Iterable[int]) -> None:
        """Send so many bytes at a time."""
        self._tell(*((self._send, size) for size in sizes))

    def drip(self, times: int, size: int) -> None:
        """Send small pieces, each in a pass of the event loop of its own."""
        self._tell(*[(self._send, size), (_gevent.let_loop_pass,)] * times)

    def send_urgent(self) -> None:
        """Send an urgent byte."""
        self._tell((self._send_urgent,))

    def pause(self, seconds: float) -> None:
        """Do nothing for a while."""
        self._tell((gevent.sleep, seconds))

    def end(self) -> None:
        """Send the end of file, and be done."""
        if not self.is_ending:
            self._tell((self._end,), None)
            self.is_ending = True

    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self._greenlet.ready()

    def close(self) -> None:
        """Leave off."""
        self._greenlet.kill()

    def _tell(self, *orders: Any) -> None:
        if not self.is_ending:
            for order in orders:
                self._orders.put(order)

    def _run(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                order[0](*order[1:])
        except GONE:
            with contextlib.suppress(OSError):  # a TLS session may have failed, and not the socket
                socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def _send(self, size: int) -> None:
        most = _TLS_RECORD if isinstance(self._socket, ssl.SSLSocket) else LARGEST_PIECE
        while size:
            piece = self._stream.piece(self._stream.sent, min(size, most))
            count = self._socket.send(piece)
            self._stream.sent += count
            self._counts["write"] += 1
            size -= count

    def _send_urgent(self) -> None:
        position = self._stream.sent
        self._socket.send(self._stream.urgent_byte(position), socket.MSG_OOB)
        self._stream.urgent[position] += 1
        self._counts["urgent byte"] += 1

    def _end(self) -> None:
        self._counts["half-close"] += 1
        if isinstance(self._socket, ssl.SSLSocket):
            session = _gevent.tls_session(self._socket)
            while session is not None and session.pending():
                # The reader has a part of a record: the alert would have the rest thrown away, and
                # without one this would be no half-close (`gsplice._shutdown`).
                gevent.sleep(0.001)
        half_close(self._socket)


class Reader:
    """A greenlet that receives as much as it is allowed to, and checks it."""

    def __init__(self, sock: socket.socket, cursor: Cursor, counts: Counts) -> None:
        self._socket = sock
        self._counts = counts
        self._allowed: float = 0
        self._piece = LARGEST_PIECE
        self._may_go_on = Event()
        self.cursor = cursor
        self.received = 0
        self.has_met_end = False
        self.error: Exception | None = None
        self._fault: AssertionError | None = None
        self._greenlet = gevent.spawn(self._run)

    def allow(self, count: float, piece: int = LARGEST_PIECE) -> None:
        """Receive *count* bytes more, at most so many at a time."""
        self._allowed += count
        self._piece = piece
        self._may_go_on.set()

    def check(self) -> None:
        """Raise what was wrong with the bytes that came."""
        if self._fault is not None:
            raise self._fault

    def has_ended(self) -> bool:
        """Whether nothing more can come."""
        return self._greenlet.ready()

    def close(self) -> None:
        """Leave off."""
        self._greenlet.kill()

    def _run(self) -> None:
        try:
            while not self.has_met_end:
                self._may_go_on.wait()
                self._receive()
        except GONE as error:
            self.error = error
        except AssertionError as fault:
            self._fault = fault

    def _receive(self) -> None:
        data = self._socket.recv(int(min(self._piece, self._allowed)))
        self._counts["read"] += 1
        self.received += len(data)
        self._allowed -= len(data)
        if self._allowed <= 0:
            self._may_go_on.clear()
        self.has_met_end = not data
        self.cursor.take(data)
