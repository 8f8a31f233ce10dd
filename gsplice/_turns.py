"""Whose turn it is where many sources can be read: first come, first served.

libev calls what epoll has reported from the last to the first (``ev_invoke_pending``). So among
many connections the one that has waited longest is served last, and where it comes first in the
next report as well, it has waited for all the others twice. libuv calls in the order of the report.

Invariant: the sources of transfers and relays are read in the order of the loop's report, and those
of one report before those of the next.

A turn is only an opportunity to read: by the time it comes, another's may have ended the reader, or
left it with bytes to deliver. And who misses one loses nothing: what is not read is reported again.
(The rest of a line in which somebody raises is called behind the next report, after all of it.)

Invariant: behind a report no more than `_MOST_PIECES` large pieces are read, so that the loop comes
to its timers, and to other greenlets. Who is left comes first behind the next report.

Invariant: while there are readers, `_serve` is called behind each report in which the loop took a
place for one. What the handler of a signal does, at any moment, must not break that: the loop would
go round and round. (Two signals might, within the last three lines of `_serve`.)
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Final, Protocol

from gsplice import _gevent

#: Some 3 ms, where each is several 100 KiB. (Measured: see ``bench/NOTES.rst``.)
_MOST_PIECES: Final = 64


class Reader(Protocol):
    """Who waits for a source."""

    def on_readable(self) -> bool:
        """Read, unless it holds bytes, or has ended, by now; return whether by large pieces."""

    def throw(self, error: BaseException | type[BaseException]) -> None:
        """Called by gevent, before it closes a socket that is waited for."""


class Turns:
    """Those that are to read once the loop has called all that were reported with them."""

    __slots__ = ("_end_of_report", "_is_in_c", "_left", "_readers", "_reported", "_take", "loop")

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self._is_in_c = _gevent.is_in_c(loop)
        self._readers: set[Reader] = set()
        # In the order of the calls: the last was reported first, and `popitem` takes the last.
        self._reported: dict[Reader, None] = {}
        self._left: dict[Reader, None] = {}  # of the report before, in the same order
        # What takes a place, for a reader.
        self._take: Callable[[Reader], None] = (
            self._reported.setdefault if self._is_in_c else self._take_and_watch
        )
        # It is called when all that was reported has been called, and before gevent's own prepare
        # watcher, in which greenlets run. The loop does not live for it (``ref``).
        self._end_of_report = loop.prepare(ref=False)

    def place_for(self, reader: Reader) -> Callable[[], None]:
        """Return what the loop is to call when *reader*'s source can be read, until `leave`.

        It is a bound method, as `_gevent` wants it, of what takes a place in line. libev in C calls
        that without entering Python, which costs more there, for each message, than in `_serve`.
        The loops in Python stop any watcher whose callback raises, that of `_serve` as well; so
        there whoever takes a place starts it.
        """
        self._readers.add(reader)
        if self._is_in_c:
            self._watch()
        return types.MethodType(self._take, reader)

    def leave(self, reader: Reader) -> None:
        """Forget *reader*; a second call does nothing."""
        self._readers.discard(reader)
        self._reported.pop(reader, None)
        self._left.pop(reader, None)

    def _take_and_watch(self, reader: Reader) -> None:
        self._reported.setdefault(reader)
        self._watch()

    def _watch(self) -> None:
        if not self._end_of_report.active:
            self._end_of_report.start(self._serve)

    def _serve(self) -> None:
        line, to_go = self._reported, _MOST_PIECES
        for reader in [*self._left]:  # to the end of the dict, which is the head of the line
            line.pop(reader, None)
            line[reader] = None
        self._left.clear()
        if not self._is_in_c:
            self._end_of_report.stop()
        while line:
            reader, _ = line.popitem()
            to_go -= reader.on_readable()
            if not to_go:
                self._left.update(line)
                break
        if self._is_in_c and not self._readers:
            self._end_of_report.stop()
            if self._readers:  # begun by a signal's handler, before that
                self._watch()
