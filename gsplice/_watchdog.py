"""Time-outs that cost the data path no more than a look at the clock.

Invariant: `expired` is called once the limit has passed since the last byte, and not before. The
timer is not moved on every byte: it fires in time, looks when the last byte was, and goes back to
sleep for what is left.

A sink that has taken a byte says so only when a third of its send queue is free (socket(7) calls
that writable). Behind a slow peer that may take long, and the peer is there all the same. So the
send queues are looked at, `_LOOKS` times in the length of the limit: if one has become shorter,
bytes have reached the peer. Nobody knows when in between, so they count as moved at that look.

What follows for the end: where the queues are empty it comes when the limit has passed since the
last byte was moved. Where bytes are left in one it comes when none has reached the peer for that
long, and at the latest one `_LOOKS`-th of the limit after that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from gsplice import _gevent, _kernel
from gsplice._gevent import GeventSocket

#: Looks at the send queues in the length of the limit: as late as a quarter of it the end may be.
_LOOKS: Final = 4


class Watchdog:
    """Calls *expired* in the hub when nothing has been moved for *seconds*.

    :param sockets: those whose peers may be slow, and are there as long as they take bytes.
    """

    __slots__ = (
        "_arrived",
        "_expired",
        "_last",
        "_limit",
        "_looked",
        "_own_limit",
        "_queues",
        "_sockets",
        "_timer",
    )

    def __init__(
        self,
        seconds: float | None,
        expired: Callable[[], None],
        sockets: Sequence[GeventSocket] = (),
    ) -> None:
        self._limit = seconds
        self._expired = expired
        self._sockets = sockets if seconds is not None else ()
        self._last = 0.0  # when a byte was moved
        self._arrived = 0.0  # when it was seen that bytes had reached a peer
        self._own_limit: float | None = None  # of the wait under way, for moved bytes alone
        self._queues: list[int] = []  # at the last look
        self._looked = 0.0  # when that was
        self._timer: Any = None

    def start(self) -> None:
        """Begin to watch."""
        self.stop()
        self.touch()
        self._sleep(self._last)

    def touch(self) -> None:
        """Something was moved: count anew."""
        self._last = time.monotonic()

    def begin_wait(self, timeout: float | None) -> None:
        """A wait begins for a socket whose own time-out is *timeout*: here it does not count."""

    def stop(self) -> None:
        """Watch no longer; a second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _ends(self) -> float | None:
        """Return when the time is over, None for never."""
        ends = []
        if self._limit is not None:
            ends.append(max(self._last, self._arrived) + self._limit)
        if self._own_limit is not None:
            ends.append(self._last + self._own_limit)
        return min(ends, default=None)

    def _sleep(self, now: float) -> None:
        """Look again when the time is over, or at the queues before that."""
        ends = self._ends()
        if ends is None:
            return
        seconds = ends - now
        if self._sockets and self._limit is not None:
            seconds = min(seconds, self._limit / _LOOKS)
        self._timer = _gevent.timer(seconds)
        # The loop's time may be old: a callback may have run for long.
        self._timer.start(self._look, update=True)

    def _look(self) -> None:
        self.stop()
        now = time.monotonic()
        if self._sockets:
            self._look_at_queues(now)
        ends = self._ends()
        if ends is None or ends > now:
            self._sleep(now)
        else:
            self._expired()

    def _look_at_queues(self, now: float) -> None:
        queues = [_kernel.unacknowledged(sock.fileno()) or 0 for sock in self._sockets]
        if self._last > self._looked:
            # Bytes were added meanwhile, so the lengths say nothing of those that have arrived.
            if any(queues):
                self._arrived = now
        elif queues != self._queues:
            self._arrived = now
        self._queues = queues
        self._looked = now


class WaitWatchdog(Watchdog):
    """A watchdog for which the time-out of the socket waited for counts as well.

    That one is what `recv` and `send` make of it: a byte counts when the sink has accepted it.
    """

    __slots__ = ()

    def begin_wait(self, timeout: float | None) -> None:
        """A wait begins that may last *timeout* seconds, and not longer than the idle time-out."""
        self._own_limit = timeout
        self.start()
