"""Whose turn it is where many sources can be read: first come, first served.

libev calls what epoll has reported from the last to the first (``ev_invoke_pending``). So among
many connections the one that has waited longest is served last, and where it comes first in the
next report as well, it has waited for all the others twice. libuv calls in the order of the report.

Invariant: sources that are reported together are read in the order of the report, before the loop
asks for the next one. One that is reported alone is read at once.

A turn is no more than a wish to read: by the time it comes, another's may have ended the reader, or
left it with bytes to deliver. And nothing is lost with a turn: what is not read is reported again.
"""

from __future__ import annotations

from typing import Any, Protocol


class Reader(Protocol):
    """Who waits for a source."""

    def read_in_turn(self) -> None:
        """Read, unless it holds bytes, or has ended, by now."""


class Turns:
    """Those that are to read once the loop has called all that were reported with them."""

    __slots__ = ("_end_of_report", "loop", "waiting")

    def __init__(self, loop: Any) -> None:
        self.loop = loop  # whose `pendingcnt` says how many it has yet to call
        self.waiting: list[Reader] = []  # in the order of the calls, so the last was reported first
        self._end_of_report: Any = None  # a watcher, active while there are any

    def wait(self, reader: Reader) -> None:
        """Have *reader* called behind those that were reported before it.

        Not by the last of them: gevent stops the watcher whose callback raises, and what a signal
        raises in one's turn would stop another's. And not in a callback of the loop's, which would
        come behind all of those that there are: the loop asks again meanwhile.
        """
        self.waiting.append(reader)
        if self._end_of_report is None or not self._end_of_report.active:
            self._end_of_report = self.loop.prepare()  # called before the loop's callbacks
            self._end_of_report.start(self._serve)

    def _serve(self) -> None:
        self._end_of_report.stop()
        self._end_of_report.close()
        waiting, self.waiting = self.waiting, []
        while waiting:
            waiting.pop().read_in_turn()
