"""Whose turn it is where many sources can be read: first come, first served.

libev calls what epoll has reported from the last to the first (``ev_invoke_pending``). So among
many connections the one that has waited longest is served last, and where it comes first in the
next report as well, it has waited for all the others twice. libuv calls in the order of the report.

Invariant: the sources of transfers and relays are read in the order of the loop's report, and those
of one report before those of the next.

A turn is no more than a wish to read: by the time it comes, another's may have ended the reader, or
left it with bytes to deliver. And nothing is lost with a turn: what is not read is reported again.

Invariant: a report keeps the loop from its timers, and other greenlets from their turn, for no
more than `_MOST_PIECES`. Who is left then comes first behind the next report, which names it again.

Invariant: while an engine is under way that has asked for a place, `_serve` is called behind each
report in which the loop took one for it. What a signal's handler does, at any moment, must not
break that: the loop would go round and round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, Protocol

from gsplice import _account, _gevent

#: Large pieces: some 3 ms, where each is several 100 KiB. (Measured: see ``bench/NOTES.rst``.)
_MOST_PIECES: Final = 64


class Reader(Protocol):
    """Who waits for a source."""

    def on_readable(self) -> bool:
        """Read, unless it holds bytes, or has ended, by now; return whether by large pieces."""

    def throw(self, error: BaseException | type[BaseException]) -> None:
        """Called by gevent, before it closes a socket that is waited for."""


class Turns:
    """Those that are to read once the loop has called all that were reported with them."""

    __slots__ = ("_end_of_report", "_is_in_c", "_left", "_reported", "loop")

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self._is_in_c = _gevent.is_in_c(loop)
        self._reported: list[Reader] = []  # in the order of the calls: the last was reported first
        self._left: list[Reader] = []  # of the report before, in its order
        # Called when all that was reported has been called, and before the loop's own callbacks:
        # behind those, the loop would have asked again. The loop does not live for it (``ref``).
        self._end_of_report = loop.prepare(ref=False)

    def place_for(self, reader: Reader) -> Callable[[], None]:
        """Return what the loop is to call when *reader*'s source can be read.

        It takes a place in line. For the loop in C that is no Python, which costs more to enter
        from there, for each message, than from `_serve`. On one in Python whatever raises has its
        watcher stopped, that of `_serve` too; so there it is started for each report.
        """
        if self._is_in_c:
            self._watch()
        append = self._reported.append if self._is_in_c else self._append
        place = functools.partial(append, reader)
        place.__self__ = reader  # type: ignore[attr-defined]  # whom gevent tells of a `close`
        return place

    def _append(self, reader: Reader) -> None:
        self._reported.append(reader)
        self._watch()

    def _watch(self) -> None:
        if not self._end_of_report.active:
            self._end_of_report.start(self._serve)

    def _serve(self) -> None:
        line = self._reported[::-1]
        self._reported.clear()
        if self._left:
            line = list(dict.fromkeys(self._left + line))
            self._left = []
        if not self._is_in_c:
            self._end_of_report.stop()
        to_go = _MOST_PIECES
        for place, reader in enumerate(line, 1):
            to_go -= reader.on_readable()
            if not to_go:
                self._left = line[place:]
                break
        if self._is_in_c and not _account.active():
            self._left.clear()
            self._end_of_report.stop()
            if _account.active():  # begun by a signal's handler, before that
                self._watch()
