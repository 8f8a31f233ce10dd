"""Time-outs that cost the data path no more than a look at the clock.

Invariant: `expired` is called once the limit has passed since the last `touch`, and not before.
The timer is not moved on every byte: it fires after the limit, looks when the last byte was, and
goes back to sleep for what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gsplice import _gevent


class Watchdog:
    """Calls *expired* in the hub when nothing has been moved for *seconds*."""

    __slots__ = ("_expired", "_last", "_limit", "_timer")

    def __init__(self, seconds: float | None, expired: Callable[[], None]) -> None:
        self._limit = seconds
        self._expired = expired
        self._last = 0.0
        self._timer: Any = None

    def start(self) -> None:
        """Begin to watch."""
        self.stop()
        self.touch()
        if self._limit is not None:
            self._sleep(self._limit)

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

    def _sleep(self, seconds: float) -> None:
        self._timer = _gevent.timer(seconds)
        # The loop's time may be old: a callback may have run for long.
        self._timer.start(self._look, update=True)

    def _look(self) -> None:
        assert self._limit is not None
        self.stop()
        left = self._last + self._limit - time.monotonic()
        if left > 0:
            self._sleep(left)
        else:
            self._expired()


class WaitWatchdog(Watchdog):
    """A watchdog for which the time-out of the socket waited for counts as well."""

    __slots__ = ("_idle_timeout",)

    def __init__(self, idle_timeout: float | None, expired: Callable[[], None]) -> None:
        super().__init__(idle_timeout, expired)
        self._idle_timeout = idle_timeout

    def begin_wait(self, timeout: float | None) -> None:
        """A wait begins that may last *timeout* seconds, and not longer than the idle time-out."""
        limits = [limit for limit in (self._idle_timeout, timeout) if limit is not None]
        self._limit = min(limits, default=None)
        self.start()
