"""Receive moderation: on a stream, one wake-up for many writes.

A relay is woken for each segment that arrives, and on small writes that is most of what it costs;
on large ones it makes each splice(2) a short one.
``SO_RCVLOWAT`` makes the kernel wake it when a *mark* of bytes is there (socket(7), tcp(7)); end of
file, errors and a full window wake it all the same.

Invariant: while a mark is set a timer runs that was started at the last read, for half of the
bound, or a millisecond, which is the least that event loops count in. When it fires, what is there
is taken. So no byte waits for company longer than the bound, and what the loop is late.

Invariant: a mark is set only on a stream. That is a source which has been read `patience` times
in a row without a pause, while nothing at all was sent to its peer: whoever waits for an answer
gets one, so an exchange of requests and responses never looks like a stream. The first time that
the timer finds little, the stream has paused, and the mark is taken away.

The mark follows the stream: it doubles while the kernel wakes us in a fraction of the bound, and
halves when it does not. A sender that cannot have as much under way as the mark asks for would
wait for us while we wait for it; the timer's firing tells, and the mark keeps below from then on.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from gevent.socket import IPPROTO_TCP, SO_RCVLOWAT, SOL_SOCKET

from gsplice import _gevent
from gsplice._gevent import GeventSocket

#: Reads in a row that make a stream, at first. Each time that a mark was a mistake it takes four
#: times as many to try again.
PATIENCE: Final = 32
_MOST_PATIENCE: Final = 32 * 4**5
#: Seconds from one read to the next, on the average, beyond which a source is not in a hurry.
_QUICK: Final = 0.0001
#: Bytes: below this a wake-up saves nothing.
_LEAST_MARK: Final = 4 * 1024
#: Bytes in a read, on the average, below the first → bytes, above which a mark makes nothing
#: cheaper. Small writes; then what is half joined by the kernel already, and better left alone;
#: then a stream of large ones, which is read faster than it comes; then one that waits for us.
_MOST_MARKS: Final = ((16 * 1024, 256 * 1024), (100 * 1024, 0), (256 * 1024, 128 * 1024))
#: A mark that has served for so many wake-ups was no mistake, whatever ends it.
_PROVEN: Final = 64

#: The answer of `Moderation.read` and `Moderation.found` where there is nothing to look at.
NEVER: Final = -1

# struct tcp_info (linux/tcp.h): tcpi_data_segs_out, since Linux 4.6.
_TCP_INFO: Final = 11  # Linux's; the socket module has it nowhere else
_DATA_SEGMENTS_OUT: Final = struct.Struct("156xI")


class Moderation:
    """Sets the mark of one source, and takes it away.

    :param sock: the source.
    :param seconds: the bound.
    :param due: called in the hub when a byte may have waited long enough; it takes what is there
        and calls `found`.
    """

    __slots__ = (
        "_bound",
        "_ceiling",
        "_due",
        "_mark",
        "_may_mark",
        "_most",
        "_moved",
        "_own_mark",
        "_patience",
        "_raw",
        "_segments",
        "_since",
        "_timer",
        "_wakes",
    )

    def __init__(self, sock: GeventSocket, seconds: float, due: Callable[[], None]) -> None:
        self._raw = _gevent.raw_socket(sock)
        self._bound = seconds
        self._due = due
        # The kernel keeps a mark for TCP; for unix sockets poll(2) does not look at it.
        self._may_mark = sys.platform == "linux" and self._raw.family in _gevent.TCP_FAMILIES
        self._mark = 0  # none is set
        self._own_mark = 1  # what the socket had before
        self._most = self._ceiling = _MOST_MARKS[0][1]
        self._patience = PATIENCE
        self._wakes = 0  # since the mark was set, or the timer fired
        self._timer: Any = None
        self._moved = 0
        self._since = 0.0
        self._segments = -1  # sent to the source's peer up to the last look

    def read(self, moved: int, remaining: int | None) -> int:
        """Take note that the source was readable and was read.

        :param moved: bytes moved since the beginning.
        :param remaining: bytes left to take, where there is a limit.
        :return: after how many reads to call again.
        """
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        count, self._moved = moved - self._moved, moved
        try:
            if self._mark:
                self._follow(elapsed)
            elif self._may_mark and self._is_stream(elapsed):
                self._begin(count // self._patience)
        except OSError:
            self._give_up()
        if self._mark and remaining is not None and remaining <= self._mark:
            self._end()  # the last bytes would not fill a mark
        return self._reads_to_go()

    def found(self, moved: int) -> int:
        """Take note of what was there when the timer fired: *moved* is as for `read`.

        :return: after how many reads to call `read` again.
        """
        count, self._moved = moved - self._moved, moved
        self._since = time.monotonic()
        if count >= self._mark:  # the loop is late: there is what the kernel was to wake us for
            self.wait()
            return 1
        if count < self._mark // 4:
            self._patience = PATIENCE if self._wakes >= _PROVEN else self._patience * 4
            self._patience = min(self._patience, _MOST_PATIENCE)
            self._end()
        else:
            self._ceiling = max(self._mark // 2, _LEAST_MARK)
            try:
                self._set(self._ceiling)
            except OSError:
                self._give_up()
            self.wait()
        self._wakes = 0
        return self._reads_to_go()

    def wait(self) -> None:
        """Keep the bound: a wait for the source begins."""
        if self._mark:
            self._timer.again(self._due, update=False)

    def pause(self) -> None:
        """Nothing waits for the source now, though the timer has fired; `wait` goes on."""
        self._timer.stop()

    def abandon(self) -> None:
        """Never fire again, and leave the socket alone: in a forked child it is the parent's."""
        if self._timer is not None:
            self._timer.close()

    def close(self) -> None:
        """Leave the socket as it was."""
        if self._mark:
            self._end()

    def _reads_to_go(self) -> int:
        """Return after how many reads to look again: at each one, while a mark is set."""
        if not self._may_mark:
            return NEVER
        return 1 if self._mark else self._patience

    def _is_stream(self, elapsed: float) -> bool:
        information = self._raw.getsockopt(IPPROTO_TCP, _TCP_INFO, _DATA_SEGMENTS_OUT.size)
        if len(information) < _DATA_SEGMENTS_OUT.size:
            self._may_mark = False
            return False
        before, (self._segments,) = self._segments, _DATA_SEGMENTS_OUT.unpack(information)
        return elapsed < self._patience * _QUICK and self._segments == before

    def _follow(self, elapsed: float) -> None:
        self._wakes += 1
        if self._wakes % _PROVEN == 0 and self._ceiling < self._most:
            self._ceiling *= 2  # what was too much may not be any more
        if elapsed < self._bound / 4 and self._mark < self._ceiling:
            self._set(min(2 * self._mark, self._ceiling))
        self.wait()

    def _begin(self, average: int) -> None:
        """Set the first mark, on a stream whose reads bring *average* bytes."""
        most = next((most for below, most in _MOST_MARKS if average < below), 0)
        if not most:
            return
        if most != self._most:
            self._most = self._ceiling = most
        self._own_mark = self._raw.getsockopt(SOL_SOCKET, SO_RCVLOWAT)
        self._timer = _gevent.timer(self._bound / 2, repeat=True)
        self._set(min(max(2 * average, _LEAST_MARK), self._ceiling))
        self.wait()

    def _set(self, mark: int) -> None:
        self._raw.setsockopt(SOL_SOCKET, SO_RCVLOWAT, mark)
        self._mark = mark

    def _give_up(self) -> None:
        """Do without a mark after an error; what it means for the bytes, they will tell.

        A kernel, or what stands for one, may have no such option.
        """
        self._may_mark = False
        if self._timer is not None:
            self._end()

    def _end(self) -> None:
        self._mark = 0
        timer, self._timer = self._timer, None
        timer.close()
        with contextlib.suppress(OSError):  # closed by now, perhaps
            self._raw.setsockopt(SOL_SOCKET, SO_RCVLOWAT, self._own_mark)
