"""Ticks: each period, or twice in one; and at once when the socket that is polled has ended.

No watcher of gevent's can be asked for the end of a socket alone, and none of its loops' timers for
less than a millisecond. So there is an epoll(7) of its own, which a watcher watches, and a
timerfd(2) in it where a period is too long. Whole periods are the loop's timer's, which needs no
fd, and no call to take a tick.

Invariant: of the loop's timer and the timerfd one is running, from `start` to `pause`.

Invariant: in a forked child nothing is done to what the parent has open as well.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from gevent import monkey

from gsplice import _gevent, _kernel


class Ticks:
    """Calls each *period* seconds, and when no more will come from a socket; not for what has come.

    :param fd: the socket's.
    :raises OSError: where there is no fd for it.
    """

    __slots__ = (
        "_callback",
        "_can_halve",
        "_epoll",
        "_is_halved",
        "_period",
        "_timer",
        "_timerfd",
        "_watcher",
    )

    def __init__(self, fd: int, period: float) -> None:
        # First what may fail, and closes by itself; then the watchers.
        self._epoll = _epoll()
        self._epoll.register(fd, select.EPOLLRDHUP)
        self._timer = _gevent.timer(period, repeat=True)
        self._watcher = _gevent.read_watcher_of(self._epoll.fileno())
        self._callback: Callable[[], None] | None = None
        self._period = period
        self._is_halved = False
        self._can_halve = True
        self._timerfd = -1  # opened when it is needed first

    @property
    def period(self) -> float:
        """Seconds from one tick to the next."""
        return self._period / 2 if self._is_halved else self._period

    def start(self, callback: Callable[[], None]) -> None:
        """Call *callback*, which has to `take` the tick, until `pause`; it may do so already."""
        if self._callback is None:
            self._callback = callback
            self._watcher.start(callback)
            if not self._is_halved:
                self._timer.start(callback)

    def pause(self) -> None:
        """Call nobody. A timerfd that is due meanwhile waits to be read, and costs nothing."""
        self._callback = None
        self._watcher.stop()
        self._timer.stop()

    def set_halved(self, is_halved: bool) -> None:
        """Tick twice in a period, or once; as before, where the system has no means for it."""
        if is_halved == self._is_halved or not self._can_halve:
            return
        try:
            self._set_timerfd(self._period / 2 if is_halved else 0.0)
        except OSError:
            self._can_halve = False
            return
        self._is_halved = is_halved
        if is_halved:
            self._timer.stop()
        elif self._callback is not None:
            self._timer.start(self._callback)

    def take(self) -> None:
        """Take the tick, if there is one; the next comes when its time has come."""
        if self._is_halved:
            _kernel.take_tick(self._timerfd)

    def abandon(self) -> None:
        """Never call again, in a forked child; what is done to a watcher now is the parent's.

        A signal's handler may have forked, in the middle of anything that is above.
        """
        self._timer.close()
        self._callback = None
        self._can_halve = False
        self._close_timerfd()
        watcher, epoll = self._watcher, self._epoll
        del self._watcher, self._epoll
        _gevent.when_loop_runs(lambda: _close(watcher, epoll))

    def close(self) -> None:
        """Never call again."""
        self._timer.close()
        _close(self._watcher, self._epoll)
        self._close_timerfd()

    def _set_timerfd(self, period: float) -> None:
        if self._timerfd < 0:
            self._timerfd = _kernel.open_timer()
            self._epoll.register(self._timerfd, select.EPOLLIN)
        _kernel.start_timer(self._timerfd, period)

    def _close_timerfd(self) -> None:
        timerfd, self._timerfd = self._timerfd, -1
        if timerfd >= 0:
            _kernel.close(timerfd)


def _close(watcher: Any, epoll: Any) -> None:
    watcher.stop()
    watcher.close()
    epoll.close()


def _epoll() -> Any:
    """Return a new ``select.epoll``, which only Linux has, and which gevent.monkey takes away."""
    return monkey.get_original("select", "epoll")()
