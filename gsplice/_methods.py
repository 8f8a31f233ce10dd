"""From any source to any sink by their own methods: what cannot be spliced goes this way.

Methods such as ``SSLSocket.recv`` wait, so it runs in its caller's greenlet (`run`) or in one of
its own (`start`). Either is interrupted where it waits when another greenlet ends the transfer.

Invariant: `_chunk` is what has been taken from the source and not accepted by the sink. A sink
that does not say how much it took (``sendall``, most ``write``) has accepted a chunk when its
method returns, and nothing of it when the method raises.
"""

from __future__ import annotations

import time
from typing import Any, Final

import gevent
import greenlet
from gevent.event import Event

from gsplice import _account, _gevent
from gsplice._direction import Direction, Owner, TransferStopped
from gsplice._endpoint import Sink, Source

#: The most that is asked of the source at once.
_CHUNK: Final = 64 * 1024
#: Seconds for which a transfer that never has to wait runs before others get their turn.
_TURN: Final = 0.001


class MethodCopy(Direction):
    """Moves bytes with ``recv`` or ``read``, and ``send``, ``sendall`` or ``write``."""

    __slots__ = ("_caller", "_chunk", "_greenlet", "_left", "_sink", "_source", "_turn_ends")

    def __init__(self, source: Source, sink: Sink, count: int | None, owner: Owner) -> None:
        super().__init__(count, owner)
        self._source = source
        self._sink = sink
        self._chunk = memoryview(b"")
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self._caller: greenlet.greenlet | None = None
        self._left: Event | None = None  # the caller is out of the methods; made where one waits
        self._turn_ends = 0.0

    def run(self) -> None:
        """Move everything in the calling greenlet; an error ends it and is raised."""
        if self._remaining == 0:
            self.start()  # which is its end as well
            return
        _account.began(self)
        self._caller = gevent.getcurrent()
        try:
            self._move()
            self._finish()
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self._caller = None
            if self._left is not None:
                self._left.set()

    def abandon(self) -> None:
        """Let go of everything without a word to anyone (in a forked child).

        A copy that its caller runs, in the caller's greenlet, is the caller's affair.
        """
        super().abandon()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _begin(self) -> None:
        self._greenlet = gevent.spawn(self._run_alone)

    def join(self) -> None:
        """Wait until its greenlet, which has been interrupted, waits for nothing any more.

        Others may wait for that as well, and who does may be interrupted and ask again.
        """
        current = gevent.getcurrent()
        if current is gevent.get_hub():
            return
        own = self._greenlet
        if own not in (None, current):
            own.join()
            self._greenlet = None  # no more to wait for
        elif self._caller not in (None, current):
            self._left = self._left or Event()
            self._left.wait()

    def _run_alone(self) -> None:
        try:
            self._move()
            self._finish()
        except BaseException as error:  # GreenletExit after the end: `_release` has sent it
            self.fail(error)

    def _move(self) -> None:
        while self._remaining != 0 and not self._is_over():
            limit = _CHUNK if self._remaining is None else min(self._remaining, _CHUNK)
            chunk = self._source.take(limit)
            if not chunk:
                return
            self._chunk = memoryview(chunk)
            if self._remaining is not None and len(chunk) > self._remaining:
                raise ValueError(f"the source gave {len(chunk)} bytes, asked for at most {limit}")
            self._count_down(len(chunk))
            self._deliver()
            self._let_others_run()

    def _deliver(self) -> None:
        while self._chunk and not self._is_over():
            count = self._sink.give(self._chunk)
            self._chunk = self._chunk[count:]
            self._accepted(count)
        if self._is_over():  # ended while a method was at work: what it did counts
            self.undelivered = self._take_back()

    def _is_over(self) -> bool:
        return self._owner is None

    def _accepted(self, count: int) -> None:
        super()._accepted(count)
        if self._is_over():  # ended meanwhile, and counted
            _account.moved_late(count)

    def _let_others_run(self) -> None:
        now = time.monotonic()
        if now >= self._turn_ends:
            _gevent.let_loop_pass()
            self._turn_ends = now + _TURN

    def _settle(self) -> None:
        self._sink.settle()

    def _take_back(self) -> bytes:
        return bytes(self._chunk)

    def _release(self) -> None:
        super()._release()
        current = gevent.getcurrent()
        if self._greenlet not in (None, current):
            self._greenlet.kill(block=False)
        elif self._caller not in (None, current):
            gevent.get_hub().loop.run_callback(self._interrupt_caller)

    def _interrupt_caller(self) -> None:
        if self._caller is not None:  # else it has just come out by itself
            self._caller.throw(TransferStopped("the transfer was stopped"))
