"""What every engine is: one direction, from its beginning to its end.

Invariant: `moved` + ``len(undelivered)`` is what has left the source, at every moment after the
end, and `fail` fills in `undelivered` from wherever the engine holds bytes.

Invariant: an engine ends once. From then on it has no watcher, pipe or timer, and has told whom
it belongs to.

Invariant: a step, which is what the hub calls an engine for, is made whole. The handler of a signal
runs between any two instructions of it, and may well stop transfers. In the middle of a step nobody
could say which bytes have been taken and which accepted, so then the end waits for the step's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from gsplice import _account, _gevent
from gsplice._endpoint import Sink
from gsplice._gevent import GeventSocket
from gsplice._watchdog import Watchdog


class TransferStopped(Exception):
    """The transfer was ended by `stop`, its own or that of the relay it belongs to."""


class Owner(Protocol):
    """Whom an engine works for."""

    def ended(self, error: BaseException | None) -> None:
        """The engine has ended: cleanly where *error* is None."""


class Direction:
    """One direction of bytes; the ways to move them are its subclasses."""

    __slots__ = (
        "_end_is_due",
        "_in_step",
        "_owner",
        "_remaining",
        "_watchdog",
        "moved",
        "spliced",
        "undelivered",
    )

    _sink: Sink  # each subclass has a slot for its own kind

    def __init__(self, count: int | None, owner: Owner) -> None:
        self._remaining = count
        self._owner: Owner | None = owner
        self._watchdog: Watchdog | None = None
        self._in_step = False
        self._end_is_due: BaseException | None = None  # with this, once the step has been made
        self.moved = 0
        self.spliced = 0
        self.undelivered = b""

    def watch_over(self, watchdog: Watchdog) -> None:
        """Have *watchdog* told of each byte, and each wait; it stays its owner's to stop."""
        self._watchdog = watchdog

    def prepare(self) -> None:
        """Do what comes before the first byte; it may wait. Where none is wanted, do nothing."""
        if self._remaining != 0:
            self._sink.prepare()

    def end_sink(self) -> None:
        """Tell the sink's peer that no more bytes will come."""
        self._sink.end()

    def sends_on(self) -> GeventSocket | None:
        """Return the socket in whose send queue bytes wait, if there is one."""
        return self._sink.sends_on()

    def start(self) -> None:
        """Begin to move bytes; the owner is told of the end, whatever it is."""
        _account.began(self)
        self._in_step = True
        try:
            if self._remaining == 0:
                self._end(None)  # and leave both ends alone: no byte needs no system call
            else:
                self._begin()
            self._step_is_made()
        except BaseException as error:
            self._failed(error)

    def fail(self, error: BaseException) -> None:
        """End at once with *error*, or with the step under way; after the end it does nothing."""
        if self._owner is None:
            return  # and keep nothing: a step that the hub calls for from here on is never made
        if self._in_step:
            self._end_is_due = self._end_is_due or error
            return
        try:
            self.undelivered = self._take_back()
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._settle()
        finally:
            self._end(error)

    def take_what_has_come(self) -> None:
        """Move what can be moved without a wait; nothing, where methods might wait."""

    def throw(self, error: BaseException | type[BaseException]) -> None:
        """End the wait that is under way with *error*.

        It is called by gevent, before it closes or shuts down a socket that is waited for.
        """
        self.fail(_gevent.thrown(error))

    def abandon(self) -> None:
        """Move nothing any more, and tell nobody: in a forked child it is the parent's transfer.

        The event loop is still the parent's as well at that moment: what is done to a watcher here
        would be done to the parent's (libuv tells the kernel at once).
        """
        self._owner = None
        if self._watchdog is not None:
            self._watchdog.stop()

    def _failed(self, error: BaseException) -> None:
        """End with *error*, which is being handled; what is not for the transfer goes on up."""
        self._in_step = False
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit
            self.fail(TransferStopped("interrupted"))
            raise error
        # The frames are our own and tell a user nothing; kept, they would keep the sockets open.
        self.fail(self._end_is_due or error.with_traceback(None))

    def _step_is_made(self) -> None:
        """Take note that a step has been made whole, and end now where that is due."""
        self._in_step = False  # before the look: what asks for the end from here on, ends it
        if self._end_is_due is not None:
            self.fail(self._end_is_due)

    def _finish(self) -> None:
        """End cleanly: everything the source gave has been accepted by the sink."""
        if self._owner is not None:
            self._settle()
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        owner, self._owner = self._owner, None
        assert owner is not None
        try:
            self._release()
        except BaseException:  # a signal's; each part of it may be done twice
            self._release()
            raise
        finally:
            _account.ended(self)
            owner.ended(error)

    def join(self) -> None:
        """Wait until nothing of it waits for a socket any more, after the end."""

    def sockets(self) -> list[GeventSocket]:
        """Return the sockets for which it waits by itself."""
        return []

    def _count_down(self, count: int) -> None:
        """Take note that *count* bytes have been taken from the source."""
        if self._remaining is not None:
            self._remaining -= count

    def _accepted(self, count: int) -> None:
        """Take note that the sink has accepted *count* bytes."""
        self.moved += count
        if self._watchdog is not None:
            self._watchdog.touch()

    def _begin(self) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """Leave the two ends as the last byte left them (the position of a file)."""

    def _take_back(self) -> bytes:
        """Return the bytes taken from the source that the sink has not accepted."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of watchers, pipes and timers."""
        self._watchdog = None
        self._end_is_due = None


class WatchingDirection(Direction):
    """A direction that runs in callbacks on the hub, and waits for one socket at a time."""

    __slots__ = ("_callback", "_has_claim", "_watcher")

    def __init__(self, count: int | None, owner: Owner) -> None:
        super().__init__(count, owner)
        self._watcher: Any = None
        self._has_claim = False  # `_watcher` waits for nothing
        self._callback: Callable[..., None] | None = None

    def _wait_for(self, sock: GeventSocket, watcher: Any, callback: Callable[..., None]) -> None:
        """Have *callback* called while *sock* is ready; a wait under way just goes on."""
        if self._watcher is watcher and not self._has_claim:
            return
        self._stop_waiting()
        _gevent.start(watcher, callback)
        self._watcher = watcher
        self._callback = callback
        if self._watchdog is not None:
            self._watchdog.begin_wait(sock.timeout)
        # A signal's handler has forked in here, and this is the child. (No tracer that starts there
        # follows a frame from before the fork.)
        if self._owner is None:  # pragma: no cover
            _gevent.when_loop_runs(self._stop_waiting)

    def _claim(self, watcher: Any, callback: Callable[..., None]) -> None:
        """Wait for nothing, and keep others from the socket of *watcher* all the same."""
        if not self._has_claim:
            self._stop_waiting()
            _gevent.claim(watcher, callback)
            self._watcher = watcher
            self._has_claim = True

    def abandon(self) -> None:
        """Move nothing any more, and tell nobody (in a forked child)."""
        super().abandon()
        if self._has_claim:  # no event will come
            _gevent.when_loop_runs(self._stop_waiting)
        elif self._watcher is not None:
            self._watcher.callback = self._stop_abandoned

    def _stop_abandoned(self, events: int = 1) -> None:
        """Called in the child, where the event loop is its own by now."""
        self._stop_waiting()

    def _poll_again(self) -> None:
        """Go on after the event loop has reported an error and stopped polling."""
        if self._watcher is not None and self._callback is not None:
            _gevent.restart(self._watcher, self._callback)

    def _stop_waiting(self) -> None:
        watcher, self._watcher = self._watcher, None
        has_claim, self._has_claim = self._has_claim, False
        self._callback = None
        if has_claim:
            _gevent.end_claim(watcher)
        elif watcher is not None:
            watcher.stop()

    def _release(self) -> None:
        super()._release()
        self._stop_waiting()
