"""One direction of bytes, whatever transfers it takes, of which every byte is accounted for.

Invariant: a way knows what its transfers have `delivered` and what they have handed back, `held`.
What is held goes on first, so the sinks, which may follow one another, get one stream without a
gap, and ``delivered + len(held)`` is what has left the source. `Way.settle` proves it: what was
received, what is held and what can still be read from the source are the stream.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gevent
from ends import End
from oracle import Counts, Cursor, Stream
from peers import wait_until

import gsplice

#: Seconds that anything may take that has to come to an end by itself.
PATIENCE = 15.0


class Options(NamedTuple):
    """How a transfer or relay is begun."""

    mode: str = "auto"
    count: int | None = None
    """For a single direction."""
    idle_timeout: float | None = None
    own_timeout: float | None = None
    """The sockets' own, which a relay does not regard."""
    moderation: float = 0.001
    by_caller: bool = False
    """Run in a greenlet that waits for it, as `gsplice.copy` and `gsplice.relay` do."""
    caller_timeout: float | None = None
    """Of a `gevent.Timeout` around that."""


def wait_while_bytes_arrive(condition: Callable[[], bool], ways: Sequence[Way]) -> None:
    """Let the hub run until *condition* is true, for as long as it takes while bytes arrive."""

    def arrived() -> int:
        return sum(way.received for way in ways)

    while not condition():
        before = arrived()
        wait_until(lambda before=before: condition() or arrived() > before, PATIENCE)


class _FormerSink(NamedTuple):
    """Where the beginning of a stream has gone; nothing more may."""

    far: End
    reader: Any
    due: int


class Way:
    """From one end to another, with one transfer at a time between them."""

    def __init__(self, near: End, far: End, key: int, counts: Counts) -> None:
        self.near = near
        self.far = far
        self.stream = Stream(key)
        self.writer = near.writer(self.stream, counts)
        self.reader = far.reader(Cursor(self.stream), counts)
        self.source_is_whole = True  # nothing that was sent has been lost before it was read
        self.sink_is_whole = True  # nothing that was accepted has been lost before it was received
        self.delivered = 0
        self.held = b""
        self.spliced = 0
        self.transfer: gsplice.Transfer | None = None
        self._counts = counts
        self._former: list[_FormerSink] = []
        self._received_before = 0  # by those
        self._resent: io.BytesIO | None = None  # the transfer's source, where it is what was held
        self._began_at: int | None = None  # the source's position
        self._moved = 0

    @property
    def received(self) -> int:
        """How many bytes have arrived, wherever they had to go."""
        return self._received_before + self.reader.received

    @property
    def moved(self) -> int:
        """How many bytes sinks have accepted."""
        return self.delivered + (0 if self.transfer is None else self.transfer.moved)

    def make(self, options: Options) -> gsplice.Transfer:
        """Return a transfer of what is held, or else of what comes."""
        source: Any = self.near.source
        if self.held:
            source = io.BytesIO(self.held)
            options = options._replace(count=None)
        transfer = gsplice.Transfer(
            source,
            self.far.sink,
            options.count,
            idle_timeout=options.idle_timeout,
            mode=options.mode,
            moderation=options.moderation,
        )
        self.follow(transfer, source if self.held else None)
        return transfer

    def follow(self, transfer: gsplice.Transfer, resent: io.BytesIO | None = None) -> None:
        """Account for what *transfer* moves."""
        self.transfer = transfer
        self._resent = resent
        self._began_at = self.near.position()
        self._moved = 0

    def take_note(self) -> None:
        """The transfer has ended: what it moved is delivered, what it hands back is held."""
        transfer, self.transfer = self.transfer, None
        assert transfer is not None
        assert transfer.spliced <= transfer.moved
        self.delivered += transfer.moved
        self.spliced += transfer.spliced
        if self._resent is not None:
            left = transfer.undelivered + self._resent.read()
            assert transfer.moved + len(left) == len(self.held), "bytes in hand were lost"
            self.held = left
        else:
            self.held = transfer.undelivered
            self._check_position(transfer.moved + len(self.held))
            self.near.look_after_source()
        self.far.look_after_sink()

    def _check_position(self, left: int) -> None:
        position = self.near.position()
        if position is not None and self._began_at is not None:
            assert position - self._began_at == left, "not what has left the file"

    def check(self) -> None:
        """Check what holds at every moment."""
        self.reader.check()
        if self.transfer is not None:
            moved = self.transfer.moved
            assert moved >= self._moved, "a transfer has taken back what it had moved"
            self._moved = moved
            assert self.transfer.ready() or self.transfer.undelivered == b""
        assert self.received <= self.moved, "more arrived than was moved"

    def is_at_its_end(self) -> bool:
        """Whether all that the writer has sent is delivered, and its end was sent as well."""
        own = self.stream.sent
        with_urgent = own + self.stream.urgent.total()
        return self.writer.is_ending and own <= self.delivered <= with_urgent

    def turn_to(self, far: End) -> None:
        """Have what comes next go to *far*, once what went before has arrived where it went."""
        self.reader.allow(float("inf"))
        wait_while_bytes_arrive(lambda: self.received == self.delivered, [self])
        self.check()
        self._former.append(_FormerSink(self.far, self.reader, self.reader.received))
        self._received_before += self.reader.received
        self.far = far
        self.reader = far.reader(Cursor(self.stream, self.reader.cursor.position), self._counts)

    def settle(self) -> None:
        """Take what is left from either side, and check that there is nothing else."""
        assert self.transfer is None
        self.writer.end()
        rest = gevent.spawn(self.near.rest)
        readers = [self.reader, *(former.reader for former in self._former)]
        for far in (self.far, *(former.far for former in self._former)):
            far.end_writing()
        for reader in readers:
            reader.allow(float("inf"))
        having_to_end = [rest.ready, *(one.has_ended for one in (self.writer, *readers))]
        wait_while_bytes_arrive(lambda: all(has_ended() for has_ended in having_to_end), [self])
        self.check()
        for former in self._former:
            assert former.reader.received == former.due, "more has come than was sent there"
        if self.sink_is_whole:
            assert self.reader.has_met_end, self.reader.error
            assert self.received == self.delivered
            self._check_rest(self.reader.cursor, rest.value)
        else:
            self._check_somewhere(rest.value)

    def close(self) -> None:
        """Have nobody send or receive any more."""
        for one in (self.writer, self.reader, *(former.reader for former in self._former)):
            one.close()

    def _check_rest(self, cursor: Cursor, rest: bytes) -> None:
        cursor.take(self.held)
        cursor.take(rest)
        if self.source_is_whole:
            missing = self.stream.sent - cursor.position
            assert not missing, f"{missing} bytes at the end of the stream are nowhere"

    def _check_somewhere(self, rest: bytes) -> None:
        """Check what is left where nobody knows how many of the lost bytes were urgent ones."""
        faults: list[AssertionError] = []
        for urgent in range(self.stream.urgent.total() + 1):
            try:
                self._check_rest(Cursor(self.stream, self.delivered - urgent), rest)
                return
            except AssertionError as fault:
                faults.append(fault)
        raise faults[0]
