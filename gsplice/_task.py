"""What `Transfer` and `Relay` have in common: gevent's result protocol, and how they are ended."""

from __future__ import annotations

# AsyncResult.set_exception imports it at the first error. At the fd limit, where the first error
# may well come, that would fail, and nobody would be told.
import pickle  # noqa: F401
from typing import TYPE_CHECKING, Any, TypeVar

from gevent import Timeout
from gevent.event import AsyncResult

from gsplice._direction import TransferStopped
from gsplice._watchdog import Watchdog

if TYPE_CHECKING:
    _Result = AsyncResult[Any]
else:
    _Result = AsyncResult  # no generic class at run time

_Self = TypeVar("_Self", bound="Task")


class Task(_Result):
    """Something under way that will have a result.

    To `gevent.event.AsyncResult` (`ready`, `successful`, `exception`, `wait`, `rawlink`, `unlink`)
    it adds a beginning and a premature end.
    """

    __slots__ = ("_started", "_watchdog")

    def __init__(self) -> None:
        super().__init__()
        self._started = False
        self._watchdog: Watchdog | None = None

    def start(self: _Self) -> _Self:
        """Begin; return self. A second call, or one after the end, does nothing."""
        if not self._started and not self.ready():
            self._started = True
            self._begin()
        return self

    def stop(self) -> None:
        """End at once: `get` will raise `TransferStopped`. After the end it does nothing.

        When this returns, nothing waits for the sockets any more, and others may use them. Only
        where the handler of a signal calls it in the middle of a step, it ends with that step,
        right after the handler.
        """
        self._stop()
        self._join()

    def _stop(self) -> None:
        if not self.ready():
            self._fail(TransferStopped("the transfer was stopped"))

    def ready(self) -> bool:
        """Return whether it has ended, in whatever way."""
        return bool(super().ready())

    def get(self, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Wait for the end, and return the result or raise the error.

        After the end it does not wait, so a function that is linked by `rawlink` may ask as well.

        :param timeout: seconds after which `gevent.Timeout` is raised; the transfer goes on.
        """
        if not self.ready():
            with Timeout(timeout):  # None: never
                self.wait()
        if self.exception is None:
            return self.value
        try:
            raise self.exception.with_traceback(None)
        finally:
            del self  # what is raised refers to this frame, and the task to what is raised

    def get_nowait(self) -> Any:
        """Return the result or raise the error; raise `gevent.Timeout` where it has not ended."""
        if not self.ready():
            raise Timeout
        return self.get()

    def _begin(self) -> None:
        raise NotImplementedError

    def _fail(self, error: BaseException) -> None:
        """End with *error*."""
        raise NotImplementedError

    def _join(self) -> None:
        """Wait until nothing waits for the sockets any more, after the end."""
        raise NotImplementedError

    def _timed_out(self) -> None:
        self._fail(TimeoutError("timed out"))

    def _stop_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stop()
