"""Receive moderation: on a stream, one wake-up for many writes.

A relay is woken for each segment that arrives, and on small writes that is most of what it costs.
A network driver has the same trouble with interrupts, and under load it turns them off and polls
(Linux's NAPI). So it is done here: nobody waits for the source of small reads, and each tick of a
timer takes all that is there. It helps the sender as well: while nothing is read there is no window
to open, so the kernel acknowledges nothing, and what is written in the meantime joins to large
segments in the sender's queue. (``SO_RCVLOWAT`` is the wrong means: below its mark the kernel
acknowledges every second segment at once, at the sender's cost.) Larger reads are left alone: the
kernel has joined what they bring already, and what comes in a millisecond would be too much, for
the caches and for what a connection may have under way.

Invariant: on a stream a timer ticks every `PERIOD`, and no bound is shorter. Each tick takes what
is there. So no byte waits longer than the bound, and what the loop is late. The end of file waits
for no tick: of that, and of errors, epoll(7) tells by itself where it is asked for nothing else.

Invariant: a stream is a source that has been read `patience` times in a row without a pause, little
each time, while nothing at all was sent to its peer: whoever waits for an answer gets one, so an
exchange of requests and responses never looks like a stream. At the first tick that finds little,
or that the peer has been sent something, it is no stream any more, and is waited for as ever.

Invariant: no stream stays slower than it was. A sender that may not have under way what flows in a
period waits for us while we wait for it. So what the first ticks bring is held against what came
before them.
"""

from __future__ import annotations

import select
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from gevent import monkey
from gevent.socket import IPPROTO_TCP

from gsplice import _gevent
from gsplice._gevent import GeventSocket

#: Seconds from one tick to the next: the least that event loops count in.
PERIOD: Final = 0.001
#: Reads in a row that make a stream, at first. Each time that it was a mistake it takes four times
#: as many to try again.
PATIENCE: Final = 32
_MOST_PATIENCE: Final = 32 * 4**5
#: Seconds from one read to the next, on the average, that are quick.
_QUICK: Final = PERIOD / 10
#: Bytes: reads that bring fewer, on the average, are small.
_SMALL: Final = 32 * 1024
#: Bytes: a tick that finds less has found a pause.
_LITTLE: Final = 4 * 1024
#: After so many ticks it is seen whether they bring less than this part of what came before. What
#: that was is the most that was seen, which fades by this factor with each look.
_TRIAL: Final = 16
_SLOWER: Final = 0.75
_FADING: Final = 0.9
#: A stream that was one for so many ticks was no mistake, however it ends.
_PROVEN: Final = 4
#: After so many ticks, where one finds so many bytes, it is looked at anew: reads may be large ones
#: by now.
_TERM: Final = 64
_MUCH: Final = 2400 * 1024

#: The answer of `Moderation.read` and `Moderation.found` where there is nothing to look at.
NEVER: Final = -1

# struct tcp_info (linux/tcp.h): tcpi_data_segs_out, since Linux 4.6.
_TCP_INFO: Final = 11  # Linux's; the socket module has it nowhere else
_DATA_SEGMENTS_OUT: Final = struct.Struct("156xI")


def first_look(others: int) -> int:
    """Return after how many reads to look for the first time, beside so many *others*.

    Those that began together, and whose peers take turns, would all look in the same turn of the
    loop, and who comes last in it would wait for all of them.
    """
    return PATIENCE + others % PATIENCE


class _Polling:
    """Calls each `PERIOD`, and when no more will come from a socket; not for what has come.

    No watcher of gevent's can be asked for the second alone: hence an epoll of its own.
    """

    __slots__ = ("_epoll", "_hangup", "_timer")

    def __init__(self, fd: int) -> None:
        # First what may fail, and closes by itself; then the watchers, which do not.
        self._epoll = _epoll()
        self._epoll.register(fd, select.EPOLLRDHUP)
        self._timer = _gevent.timer(PERIOD, repeat=True)
        self._hangup = _gevent.read_watcher_of(self._epoll.fileno())

    def start(self, callback: Callable[[], None]) -> None:
        """Call *callback* from now on, until `pause`; where it does already, it goes on."""
        if not self._timer.active:
            self._timer.start(callback)
            self._hangup.start(callback)

    def pause(self) -> None:
        self._timer.stop()
        self._hangup.stop()

    def abandon(self) -> None:
        """Never call again, in a forked child; what is done to a watcher now is the parent's."""
        self._timer.close()
        _gevent.when_loop_runs(self._close_hangup)

    def close(self) -> None:
        self._timer.close()
        self._close_hangup()

    def _close_hangup(self) -> None:
        self._hangup.stop()
        self._hangup.close()
        self._epoll.close()


def _epoll() -> Any:
    """Return a new ``select.epoll``, which only Linux has, and which gevent.monkey takes away."""
    return monkey.get_original("select", "epoll")()


class Moderation:
    """Decides when one source is a stream, and ticks as long as it is.

    :param source: a socket.
    :param due: called in the hub at each tick; where it takes what is there it calls `found`.
    """

    __slots__ = (
        "_began",
        "_due",
        "_flow_before",
        "_may_begin",
        "_moved",
        "_moved_before",
        "_patience",
        "_polling",
        "_raw",
        "_segments",
        "_since",
        "_ticks",
    )

    def __init__(self, source: GeventSocket, due: Callable[[], None]) -> None:
        self._raw = _gevent.raw_socket(source)
        self._due = due
        # Of a unix socket nobody can say whether its peer was sent anything.
        self._may_begin = sys.platform == "linux" and source.family in _gevent.TCP_FAMILIES
        self._patience = PATIENCE
        self._segments = -1  # sent to the source's peer up to the last look
        self._moved = 0  # up to the last look
        self._since = 0.0  # when that was
        self._flow_before = 0  # bytes in a period, where each read was waited for
        # Of a stream:
        self._polling: _Polling | None = None
        self._ticks = 0
        self._began = 0.0
        self._moved_before = 0

    @property
    def is_stream(self) -> bool:
        """Whether nobody waits for the source: it is polled."""
        return self._polling is not None

    def read(self, moved: int, remaining: int | None) -> int:
        """Take note that the source was readable and was read.

        :param moved: bytes moved since the beginning.
        :param remaining: bytes left to take, where there is a limit.
        :return: after how many reads to call again.
        """
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        count, self._moved = moved - self._moved, moved
        if self._may_begin and not self._has_answered():
            flow = int(count / elapsed * PERIOD)
            self._flow_before = max(flow, int(self._flow_before * _FADING))
            is_quick = elapsed < self._patience * _QUICK
            is_small = count < self._patience * _SMALL
            if is_quick and is_small and (remaining is None or remaining > flow):
                self._begin()
        return self._reads_to_go()

    def found(self, moved: int, remaining: int | None) -> int:
        """Take note of what a tick has found; the parameters and the result are those of `read`."""
        now = time.monotonic()
        if now - self._since < PERIOD / 2:
            return NEVER  # the tick before was late
        count, self._moved = moved - self._moved, moved
        self._since = now
        self._ticks += 1
        is_mistake = self._ticks in (_TRIAL, _TERM) and self._is_slower()
        if is_mistake or count < _LITTLE or self._has_answered():
            self._end(is_mistake or self._ticks < _PROVEN)
        elif self._ticks >= _TERM and count > _MUCH:
            self._end(False)
        elif remaining is not None and remaining <= count:
            self._end(False)  # the last bytes are not worth a wait
        return self._reads_to_go()

    def wait(self) -> bool:
        """Tick, if it is a stream; return whether nobody has to wait for the source then."""
        if self._polling is None:
            return False
        self._polling.start(self._due)
        return True

    def pause(self) -> None:
        """Do not tick until `wait` is called: what was read waits for the sink."""
        if self._polling is not None:
            self._polling.pause()

    def abandon(self) -> None:
        """Never tick again, in a forked child, and leave the parent's watchers alone."""
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.abandon()

    def close(self) -> None:
        """Never tick again."""
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.close()

    def _reads_to_go(self) -> int:
        """Return after how many reads to look: a stream is looked at when it ticks."""
        return NEVER if self.is_stream or not self._may_begin else self._patience

    def _begin(self) -> None:
        try:
            self._polling = _Polling(self._raw.fileno())
        except OSError:
            self._may_begin = False
            return
        self._moved_before, self._began = self._moved, self._since
        self._ticks = 0

    def _end(self, is_mistake: bool) -> None:
        self._patience = min(self._patience * 4, _MOST_PATIENCE) if is_mistake else PATIENCE
        self.close()

    def _has_answered(self) -> bool:
        """Return whether the peer was sent anything since the last look, as far as is known.

        A kernel, or what stands for one, may not know. Of another error the bytes will tell.
        """
        try:
            information = self._raw.getsockopt(IPPROTO_TCP, _TCP_INFO, _DATA_SEGMENTS_OUT.size)
        except OSError:
            information = b""
        if len(information) < _DATA_SEGMENTS_OUT.size:
            self._may_begin = False
            return True
        before, (self._segments,) = self._segments, _DATA_SEGMENTS_OUT.unpack(information)
        return self._segments != before

    def _is_slower(self) -> bool:
        periods = (self._since - self._began) / PERIOD
        return self._moved - self._moved_before < self._flow_before * periods * _SLOWER
