"""Conversations in which each side knows every byte that the other one has to say.

A stream has a number, from which its bytes follow, and no two streams are alike. So a byte that is
lost, doubled, out of order or another connection's is seen where it arrives, at once and whatever
came before it.

Invariant: what a side has received is the beginning of the stream that it expects, and all of it
where the conversation was to end cleanly; otherwise the conversation counts as wrong.
"""

from __future__ import annotations

import contextlib
import enum
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import gevent
from gevent import socket
from gevent.event import Event
from peers import MORE_THAN_BUFFERS, reset

#: The longest stream, in bytes: one whose half is more than buffers hold.
LONGEST = MORE_THAN_BUFFERS
#: A prime: streams begin at places that differ, up to so many of them.
_PLACES = 7_340_033
_STRIDE = 40_503
_BYTES = memoryview(random.Random(4).randbytes(_PLACES + LONGEST))

#: Seconds that any conversation may take, on a machine that does much else.
LONGEST_SECONDS = 300.0


def stream(number: int, length: int) -> memoryview:
    """Return the first *length* bytes of a stream."""
    start = number * _STRIDE % _PLACES
    return _BYTES[start : start + length]


class Ending(enum.IntEnum):
    """How a conversation ends, and by whom."""

    CLEAN = 0
    CLIENT_RESETS = 1
    CLIENT_LEAVES = 2
    BACKEND_RESETS = 3
    BACKEND_LEAVES = 4
    #: By the client, which has said nothing at all.
    UNSPOKEN = 5

    @property
    def by_backend(self) -> bool:
        return self in (Ending.BACKEND_RESETS, Ending.BACKEND_LEAVES)

    @property
    def by_client(self) -> bool:
        return self in (Ending.CLIENT_RESETS, Ending.CLIENT_LEAVES)

    def end(self, sock: socket.socket) -> None:
        """Close *sock* in this way."""
        if self in (Ending.CLIENT_RESETS, Ending.BACKEND_RESETS, Ending.UNSPOKEN):
            reset(sock)
        else:
            sock.close()


class Plan(NamedTuple):
    """What a conversation is about; the client tells the backend first of all."""

    number: int
    up: int
    down: int
    ending: Ending = Ending.CLEAN

    @classmethod
    def of(cls, head: bytes) -> Plan:
        *numbers, ending = HEAD.unpack(head)
        return cls(*numbers, Ending(ending))

    def head(self) -> bytes:
        return HEAD.pack(*self)

    def upward(self) -> memoryview:
        return stream(2 * self.number, self.up)

    def downward(self) -> memoryview:
        return stream(2 * self.number + 1, self.down)


HEAD = struct.Struct("!IIIB")


class WrongBytes(Exception):
    """Something was received that had not been sent there, or not everything was."""


class Expected:
    """A stream as it arrives."""

    def __init__(self, what: memoryview) -> None:
        self._left = what
        self.received = 0

    def take(self, data: bytes | memoryview) -> None:
        if bytes(self._left[: len(data)]) != data:  # views are compared item by item
            raise WrongBytes(f"other bytes than were sent, somewhere after {self.received}")
        self.received += len(data)
        self._left = self._left[len(data) :]

    def receive(self, sock: socket.socket, least: int | None = None) -> None:
        """Receive until the end of file, or until there are *least* bytes."""
        while least is None or self.received < least:
            data = sock.recv(65536)
            if not data:
                return
            self.take(data)

    def check_complete(self) -> None:
        if self._left:
            raise WrongBytes(f"{len(self._left)} bytes are missing after {self.received}")


@dataclass
class Tally:
    """How the conversations of one side have ended."""

    counts: Counter[str]
    complaints: list[str]

    @classmethod
    def empty(cls) -> Tally:
        return cls(Counter(), [])

    def add(self, outcome: str, count: int = 1) -> None:
        self.counts[outcome] += count

    def ended(self, plan: Plan | None, error: Exception) -> None:
        """Take note of an end that came as *error*, which is one of several to be expected."""
        if isinstance(error, WrongBytes) or (plan is not None and plan.ending is Ending.CLEAN):
            self.wrong(plan, error)
        else:
            self.add(plan.ending.name if plan is not None else "silent")

    def wrong(self, plan: Plan | None, error: BaseException) -> None:
        self.counts["wrong"] += 1
        if len(self.complaints) < 10:
            self.complaints.append(f"{plan}: {error!r}")


class Client:
    """The side that begins.

    :param at_half: called once *heard* bytes of the answer are there; it may wait. Meanwhile half
        of what there is to say is kept back, and so the backend keeps back the other half of its.
    """

    def __init__(
        self,
        plan: Plan,
        tally: Tally,
        heard: int | None = None,
        at_half: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._tally = tally
        self._expected = Expected(plan.downward())
        self._heard = plan.down // 2 if heard is None else heard
        self._at_half = at_half

    def converse(self, sock: socket.socket) -> None:
        """Say and hear everything, and close *sock*."""
        plan = self._plan
        try:
            if plan.ending is not Ending.UNSPOKEN:
                with gevent.Timeout(LONGEST_SECONDS, TimeoutError("it takes too long")):
                    self._speak(sock)
            self._tally.add(plan.ending.name)
        except (OSError, WrongBytes) as error:
            self._tally.ended(plan, error)
        finally:
            plan.ending.end(sock)

    def _speak(self, sock: socket.socket) -> None:
        plan, upward = self._plan, self._plan.upward()
        half = plan.up // 2
        with sending(sock, plan.head(), upward[:half]) as first:
            self._expected.receive(sock, self._heard)
            self._at_half()
            finish(first)
        with sending(sock, upward[half:], end=not plan.ending.by_client) as second:
            if not plan.ending.by_client:
                self._expected.receive(sock)
                if plan.ending is Ending.CLEAN:
                    self._expected.check_complete()
                    finish(second)


class Backend:
    """The side that answers; a handler for a StreamServer."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __call__(self, sock: socket.socket, _: Any) -> None:
        plan = None
        try:
            if len(head := _receive_head(sock)) == HEAD.size:
                plan = Plan.of(head)
                self._answer(sock, plan)
            self._tally.add(plan.ending.name if plan is not None else "silent")
        except (OSError, WrongBytes) as error:
            self._tally.ended(plan, error)
        finally:
            (plan.ending if plan is not None else Ending.CLEAN).end(sock)

    def _answer(self, sock: socket.socket, plan: Plan) -> None:
        expected, downward = Expected(plan.upward()), plan.downward()
        half = plan.down // 2
        with sending(sock, downward[:half]) as first:
            expected.receive(sock, plan.up // 2 + (not plan.ending.by_backend))
            if plan.ending.by_backend:
                return
            finish(first)
        with sending(sock, downward[half:], end=True) as second:
            expected.receive(sock)
            if plan.ending is Ending.CLEAN:
                expected.check_complete()
                finish(second)


@contextlib.contextmanager
def sending(
    sock: socket.socket, *parts: bytes | memoryview, end: bool = False
) -> Iterator[gevent.Greenlet[..., Any]]:
    """Send beside the block, and no longer than it lasts."""

    def send() -> OSError | None:
        try:
            for part in parts:
                sock.sendall(part)
            if end:
                sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # no news where the other side was to leave
            return error
        return None

    sender = gevent.spawn(send)
    try:
        yield sender
    finally:
        sender.kill()


def finish(sender: gevent.Greenlet[..., Any]) -> None:
    """Wait until everything has been sent."""
    if error := sender.get():
        raise error


def _receive_head(sock: socket.socket) -> bytes:
    head = b""
    while len(head) < HEAD.size and (piece := sock.recv(HEAD.size - len(head))):
        head += piece
    return head


class Service:
    """A backend in the process of the relay, which needs no fd: `sendall` and `recv` are enough."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._head = b""
        self._plan: Plan | None = None
        self._to_send: list[memoryview] = []
        self._more = Event()

    def sendall(self, data: bytes | memoryview) -> None:
        missing = HEAD.size - len(self._head)
        self._head += bytes(data[:missing])
        if self._plan is None and len(self._head) == HEAD.size:
            self._plan = Plan.of(self._head)
            self._expected = Expected(self._plan.upward())
            self._say(self._plan.downward()[: self._plan.down // 2])
        if self._plan is not None and (rest := data[missing:]):
            before = self._expected.received
            self._expected.take(rest)
            if before <= self._plan.up // 2 < self._expected.received:
                self._say(self._plan.downward()[self._plan.down // 2 :], _NOTHING)

    def _say(self, *parts: memoryview) -> None:
        self._to_send += parts
        self._more.set()

    def recv(self, limit: int) -> bytes:
        self._more.wait()
        piece, rest = self._to_send[0][:limit], self._to_send[0][limit:]
        if rest:
            self._to_send[0] = rest
        elif piece:
            del self._to_send[0]
        if not self._to_send:
            self._more.clear()
        return bytes(piece)

    def relayed(self, relay: Callable[[Service], Any]) -> None:
        """Take part in a conversation through *relay*, a function of this end."""
        try:
            relay(self)
            self._expected.check_complete()
            self._tally.add(Ending.CLEAN.name)
        except (OSError, WrongBytes) as error:
            self._tally.ended(self._plan, error)


_NOTHING = memoryview(b"")
