"""A stream of writes that is moderated, however quick or slow the machine is."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from eagerness import make_eager
from gevent import socket
from peers import Line, MakeLine, Spawn, pattern, receive, ticks_of

import gsplice
from gsplice import _gevent

#: Bytes of a write. Both are small ones; two of the second that are read at once are spliced.
SMALL = 512
SPLICED = 12_000


@pytest.fixture
def any_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a source taken for a stream however quick or slow this machine is."""
    make_eager(monkeypatch)


class Stream:
    """One write after the other, each in a pass of the hub of its own."""

    def __init__(self, line: Line, spawn: Spawn = gevent.spawn) -> None:
        self.line = line
        self.sent = bytearray()
        self._spawn = spawn

    def begin(self, **options: Any) -> tuple[gsplice.Transfer, gevent.Greenlet]:
        """Start a transfer; return it, and the greenlet that receives what it delivers."""
        received = self._spawn(receive, self.line.backend)
        return gsplice.Transfer(self.line.source, self.line.sink, **options).start(), received

    def write(self, times: int = 1, size: int = SMALL) -> None:
        for _ in range(times):
            self.pile_up(size)
            _gevent.let_loop_pass()

    def pile_up(self, size: int) -> None:
        """Write so much at once, and leave the hub no more turns than that takes."""
        piece = pattern(size, len(self.sent) % 251)
        self.line.client.sendall(piece)
        self.sent += piece

    def write_until_moderated(
        self, transfer: Any, size: int = SMALL, period: float | None = None
    ) -> None:
        """Write until it ticks; each *period* seconds, where that is given."""
        for _ in range(5000):
            self.write(size=size)
            ticks = ticks_of(transfer)
            if ticks is not None and period in (None, ticks.period):
                return
        pytest.fail("a stream of 5,000 writes was not moderated")

    def end(self, transfer: gsplice.Transfer, received: gevent.Greenlet) -> None:
        """Come to an end; all of it has to arrive."""
        self.line.client.shutdown(socket.SHUT_WR)
        assert transfer.get(timeout=5) == len(self.sent)
        self.line.sink.shutdown(socket.SHUT_WR)
        assert received.get() == self.sent

    def account(self, transfer: gsplice.Transfer, received: gevent.Greenlet) -> None:
        """Look for each byte where a transfer that was ended before the stream has left it."""
        taken = transfer.moved + len(transfer.undelivered)
        left = receive(self.line.source, len(self.sent) - taken)
        self.line.sink.shutdown(socket.SHUT_WR)
        assert received.get() + transfer.undelivered + left == self.sent


@pytest.fixture
def stream(line: MakeLine, spawn: Spawn, any_pace: None) -> Stream:
    return Stream(line(), spawn)
