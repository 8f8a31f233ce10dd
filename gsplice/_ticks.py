"""Ticks: each period, or each half of one; and at once when the socket that is polled has ended.

No watcher of gevent's can be asked for the end of a socket alone, and its loops count in
milliseconds. So there is an epoll(7) of its own, which a watcher watches, and a timerfd(2) in it
where a period is too long. Whole periods are the loop's own timer's, which needs no fd, nor a call
for each tick.

Invariant: a tick that is not taken (`Ticks.take`) comes again at once. So none is lost by whoever
raises out of the callback, as the handler of a signal may.
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
        "_half_timer",
        "_is_half",
        "_period",
        "_timer",
        "_watcher",
    )

    def __init__(self, fd: int, period: float) -> None:
        # First what may fail, and closes by itself; then the watchers, which do not.
        self._epoll = _epoll()
        self._epoll.register(fd, select.EPOLLRDHUP)
        self._timer = _gevent.timer(period, repeat=True)
        self._watcher = _gevent.read_watcher_of(self._epoll.fileno())
        self._callback: Callable[[], None] | None = None
        self._period = period
        self._is_half = False
        self._half_timer = -1  # a timerfd, once there was a half; it ticks while `_is_half`
        self._can_halve = True

    @property
    def period(self) -> float:
        """Seconds from one tick to the next."""
        return self._period / 2 if self._is_half else self._period

    def start(self, callback: Callable[[], None]) -> None:
        """Call *callback* from now on, until `pause`; where it does already, it goes on."""
        if self._callback is None:
            self._callback = callback
            self._watcher.start(callback)
            if not self._is_half:
                self._timer.start(callback)

    def pause(self) -> None:
        """Call nobody. A half that is over meanwhile waits to be taken, and costs nothing."""
        self._callback = None
        self._watcher.stop()
        self._timer.stop()

    def halve(self, is_half: bool) -> None:
        """Tick twice as often, or not; where the system has no means for it, go on as before."""
        if is_half == self._is_half or not self._can_halve:
            return
        try:
            self._set_half_timer(is_half)
        except OSError:
            self._can_halve = False
            return
        self._is_half = is_half
        if is_half:
            self._timer.stop()
        elif self._callback is not None:
            self._timer.start(self._callback)

    def take(self) -> None:
        """Take the tick, if it is one; the next comes when its time has come."""
        if self._is_half:
            _kernel.take_tick(self._half_timer)

    def abandon(self) -> None:
        """Never call again, in a forked child; what is done to a watcher now is the parent's."""
        self._timer.close()
        _gevent.when_loop_runs(self._close_fds)

    def close(self) -> None:
        """Never call again."""
        self._timer.close()
        self._close_fds()

    def _set_half_timer(self, is_half: bool) -> None:
        if self._half_timer < 0:
            timer = _kernel.open_timer()
            self._epoll.register(timer, select.EPOLLIN)
            self._half_timer = timer
        _kernel.start_timer(self._half_timer, self._period / 2 if is_half else 0.0)

    def _close_fds(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()
        if self._half_timer >= 0:
            _kernel.close(self._half_timer)


def _epoll() -> Any:
    """Return a new ``select.epoll``, which only Linux has, and which gevent.monkey takes away."""
    return monkey.get_original("select", "epoll")()
