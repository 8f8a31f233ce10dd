"""Receive moderation: on a stream, one wake-up for many writes.

A relay is woken for each segment that arrives, and on small writes that is most of what it costs.
A network driver has the same trouble with interrupts, and under load it turns them off and polls
(Linux's NAPI). So it is done here: nobody waits for the source of small reads, and each tick of a
timer takes all that is there. It helps the sender as well: while nothing is read there is no window
to open, so the kernel acknowledges nothing, and what is written in the meantime joins to large
segments in the sender's queue. (``SO_RCVLOWAT`` is the wrong means: below its mark the kernel
acknowledges every second segment at once, at the sender's cost.) Larger reads are left alone: the
kernel has joined what they bring already, and what comes between two ticks would be too much, for
the caches and for what a connection may have under way.

Invariant: on a stream it ticks every `PERIOD` or twice as often, and no bound is shorter. Each tick
takes what is there. So no byte waits longer than the bound, and what the loop is late. The end of
file waits for no tick (`_ticks`).

Invariant: a stream is a source that has been read `patience` times in a row without a pause, little
each time, while nothing at all was sent to its peer: whoever waits for an answer gets one, so an
exchange of requests and responses never looks like a stream. Answers may take another way, and a
sender that waits for them has one message under way at each tick. At the first tick that finds no
more than two reads have brought before, or that the peer has been sent something, it is no stream
any more, and is waited for as ever. What has become an exchange later does not go on as a stream:
that ends where it flows much slower than it did, and is a stream no longer than `_PROOF` ticks
before it has to look like one again.

Invariant: no stream stays slower than it was. A sender that may not have under way what flows in a
period waits for us while we wait for it. So what the first ticks bring is held against what came
before them.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from typing import Final

from gevent.socket import IPPROTO_TCP

from gsplice import _gevent
from gsplice._gevent import GeventSocket
from gsplice._ticks import Ticks

#: Seconds: the least that a bound can be, and that every event loop can wait for.
PERIOD: Final = 0.001
#: Reads in a row that make a stream, at first. Each time that it was a mistake it takes four times
#: as many to try again.
PATIENCE: Final = 32
_MOST_PATIENCE: Final = 32 * 4**5
#: Seconds from one read to the next, on the average, that are quick.
_QUICK: Final = PERIOD / 10
#: Bytes: reads that bring fewer, on the average, are small. (Measured: see ``bench/NOTES.rst``.)
_SMALL: Final = 80 * 1024
#: Bytes in a period. Where more flows it ticks twice as often: between two ticks a sender fills its
#: send buffer, has no room for more (half of ``tcp_wmem``'s 4 MiB is overhead), and would stand
#: still.
_PLENTY: Final = 1800 * 1024
#: Bytes in a period. Where less flows it ticks once in it again; that is less than the above
#: because a flow is never quite even.
_PLENTY_NO_MORE: Final = 1600 * 1024
#: Bytes in a period. Where more flows, two ticks in it do not take it; it is left alone, at once or
#: when it has been a stream for so many ticks: its reads may be large ones by now.
_MUCH: Final = 5200 * 1024
_TERM: Final = 64
#: Bytes: a tick that finds less has found a pause, and so has one that finds less than so many
#: reads have brought, on the average, before it was a stream.
_LITTLE: Final = 4 * 1024
_FEW_READS: Final = 2
#: After so many ticks it is seen whether they bring less than this part of what came before. What
#: that was is the most that was seen, which fades by this factor with each look.
_TRIAL: Final = 16
_SLOWER: Final = 0.75
_FADING: Final = 0.9
#: Where that many ticks bring less than this part of the most that as many have brought, it is
#: not the stream that it was.
_COLLAPSED: Final = 1 / 4
#: A stream that was one for so many ticks was no mistake, however it ends.
_PROVEN: Final = 4
#: After so many, about a second, it has to look like a stream again.
_PROOF: Final = 1024

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


class Moderation:
    """Decides when one source is a stream, and ticks as long as it is.

    :param source: a socket.
    :param due: called in the hub at each tick. Where it takes what is there it calls `take_tick`
        before, and `found` after it.
    """

    __slots__ = (
        "_began",
        "_due",
        "_flow_before",
        "_little",
        "_may_begin",
        "_most",
        "_moved",
        "_moved_before",
        "_moved_before_window",
        "_patience",
        "_raw",
        "_segments",
        "_since",
        "_tick_count",
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
        self._ticks: Ticks | None = None
        self._tick_count = 0
        self._began = 0.0
        self._moved_before = 0
        self._little = _LITTLE
        self._moved_before_window = self._most = 0  # of `_TRIAL` ticks

    @property
    def is_stream(self) -> bool:
        """Whether nobody waits for the source: it is polled."""
        return self._ticks is not None

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
            goes_on = remaining is None or remaining > flow
            if is_quick and is_small and flow < _MUCH and goes_on:
                self._begin(max(_LITTLE, _FEW_READS * count // self._patience))
        return self._reads_to_go()

    def found(self, moved: int, remaining: int | None) -> int:
        """Take note of what a tick has found; the parameters and the result are those of `read`."""
        ticks, now = self._ticks, time.monotonic()
        assert ticks is not None  # it is a stream
        elapsed = now - self._since
        if elapsed < ticks.period / 2:
            return NEVER  # the tick before was late
        count, self._moved = moved - self._moved, moved
        self._since = now
        self._tick_count += 1
        flow = count / elapsed * PERIOD
        is_mistake = self._tick_count in (_TRIAL, _TERM) and self._is_slower()
        if is_mistake or count < self._little or self._has_answered():
            self._end(is_mistake or self._tick_count < _PROVEN)
        elif self._is_to_be_seen_anew(flow):
            self._end(False)
        elif remaining is not None and remaining <= count:
            self._end(False)  # the last bytes are not worth a wait
        elif flow > _PLENTY:
            ticks.set_halved(True)
        elif flow < _PLENTY_NO_MORE:
            ticks.set_halved(False)
        return self._reads_to_go()

    def wait(self) -> bool:
        """Tick, if it is a stream; return whether nobody has to wait for the source then."""
        if self._ticks is None:
            return False
        self._ticks.start(self._due)
        return True

    def take_tick(self) -> None:
        """Take the tick that is due, so that the next one comes in its time."""
        assert self._ticks is not None  # it is a stream
        self._ticks.take()

    def pause(self) -> None:
        """Do not tick until `wait` is called: what was read waits for the sink."""
        assert self._ticks is not None  # it is a stream
        self._ticks.pause()

    def abandon(self) -> None:
        """Never tick again, in a forked child, and leave the parent's watchers alone."""
        ticks, self._ticks = self._ticks, None
        if ticks is not None:
            ticks.abandon()

    def close(self) -> None:
        """Never tick again."""
        ticks, self._ticks = self._ticks, None
        if ticks is not None:
            ticks.close()

    def _reads_to_go(self) -> int:
        """Return after how many reads to look: a stream is looked at when it ticks."""
        return NEVER if self.is_stream or not self._may_begin else self._patience

    def _begin(self, little: int) -> None:
        try:
            self._ticks = Ticks(self._raw.fileno(), PERIOD)
        except OSError:
            self._may_begin = False
            return
        self._moved_before, self._began = self._moved, self._since
        self._moved_before_window, self._most = self._moved, 0
        self._little = little
        self._tick_count = 0

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

    def _is_to_be_seen_anew(self, flow: float) -> bool:
        if self._tick_count >= _TERM and flow > _MUCH:
            return True
        if self._tick_count % _TRIAL:
            return False
        window = self._moved - self._moved_before_window
        self._moved_before_window, self._most = self._moved, max(window, self._most)
        return window < self._most * _COLLAPSED or self._tick_count >= _PROOF

    def _is_slower(self) -> bool:
        periods = (self._since - self._began) / PERIOD
        return self._moved - self._moved_before < self._flow_before * periods * _SLOWER
