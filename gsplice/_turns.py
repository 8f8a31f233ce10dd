"""Whose turn it is where many sources can be read: first come, first served.

libev calls what epoll has reported from the last to the first (``ev_invoke_pending``). So among
many connections the one that has waited longest is served last, and where it comes first in the
next report as well, it has waited for all the others twice. libuv calls in the order of the report.

Invariant: sources that are reported together are read in the order of the report, before the loop
asks for the next one.

A turn is no more than a wish to read: by the time it comes, another's may have ended the reader, or
left it with bytes to deliver. And nothing is lost with a turn: what is not read is reported again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol


class Reader(Protocol):
    """Who waits for a source."""

    def on_readable(self) -> None:
        """Read, unless it holds bytes, or has ended, by now."""

    def throw(self, error: BaseException | type[BaseException]) -> None:
        """Called by gevent, before it closes a socket that is waited for."""


class Turns:
    """Those that are to read once the loop has called all that were reported with them.

    :param keeps_watchers: whether the loop leaves a watcher active whose callback has raised, a
        prepare watcher at least, as libev's does; gevent's in Python stops each.
    """

    __slots__ = ("_end_of_report", "_keeps_watchers", "_readers", "_reported", "loop")

    def __init__(self, loop: Any, keeps_watchers: bool) -> None:
        self.loop = loop
        self._keeps_watchers = keeps_watchers
        self._reported: list[Reader] = []  # in the order of the calls: the last was reported first
        self._readers = 0
        self._end_of_report: Any = None  # a watcher, while there are readers

    def enter(self, reader: Reader) -> Callable[[], None]:
        """Return what the loop is to call when *reader*'s source can be read, until `leave`.

        It takes a place in line, without any Python where that is safe: Python costs more to enter
        from the loop, for each message, than from `_serve`.
        """
        if not self._readers:
            # Called once all that was reported has been, and before the loop's callbacks: behind
            # those, the loop would have asked again meanwhile. The loop does not live on for it.
            self._end_of_report = self.loop.prepare(ref=False)
            self._end_of_report.start(self._serve)
        self._readers += 1
        append = self._reported.append if self._keeps_watchers else self._append
        take_place: Any = functools.partial(append, reader)
        take_place.__self__ = reader  # whom gevent tells; as of a bound method
        return take_place  # type: ignore[no-any-return]

    def leave(self) -> None:
        """Take note that there is a reader less."""
        self._readers -= 1
        if not self._readers:
            self._end_of_report.stop()
            self._end_of_report.close()
            self._end_of_report = None

    def _append(self, reader: Reader) -> None:
        self._reported.append(reader)
        if not self._end_of_report.active:  # a signal's handler has raised in somebody's turn
            self._end_of_report.start(self._serve)

    def _serve(self) -> None:
        if self._reported:
            readers = self._reported[::-1]
            self._reported.clear()
            for reader in readers:
                reader.on_readable()
