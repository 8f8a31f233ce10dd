"""When a source is read: as soon as it can be, in its turn, or at the ticks of moderation.

Invariant: a direction that holds no bytes waits for its source, or for its turn, or for the next
tick where the source is a stream (`_moderation`). One that holds bytes waits for the sink alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gsplice import _account, _gevent, _hub
from gsplice._direction import Owner, WatchingDirection
from gsplice._endpoint import SocketSource
from gsplice._moderation import NEVER, PERIOD, Moderation, first_look

#: So many rounds for a tick, at the most: what is left then is waited for as ever.
_ROUNDS: Final = 8
#: A round that brings less has caught up with the sender, who is left alone until the next tick.
_CAUGHT_UP: Final = 16 * 1024


class ReadingDirection(WatchingDirection):
    """A direction from a real stream socket; how its bytes are moved is its subclass's affair."""

    __slots__ = ("_moderation", "_place", "_source", "_turns", "_until_look")

    def __init__(
        self, source: SocketSource, count: int | None, moderation: float, owner: Owner
    ) -> None:
        super().__init__(count, owner)
        self._source = source
        # None where the loop keeps the order of the report by itself.
        self._turns = _hub.resources().turns_on(_gevent.loop_of(source.socket))
        self._place: Callable[..., None] | None = None  # what the loop calls, once it has waited
        self._moderation: Moderation | None = None  # made when there are enough reads to look at
        # So many reads:
        self._until_look = first_look(_account.active()) if moderation >= PERIOD else NEVER

    # What the hub calls.

    def on_readable(self) -> bool:
        """The source has bytes, its end, or an error: take what it has, and `_look` if it is time.

        Called in a turn, it may hold bytes by now, which go first, or have ended: then do nothing.
        Return whether it is read by large pieces.
        """
        raise NotImplementedError

    def on_event(self, events: int = 1) -> None:
        """The same, for a loop that calls in the order of its report."""
        try:
            self._in_step = True
            if events < 0:
                self._poll_again()
            self.on_readable()
        except BaseException as error:  # a signal's, for which gevent stops this watcher
            if self._owner is None:
                raise  # it has ended, with what it met in there; this came on top, for the hub
            self._failed(error)

    def on_due(self) -> None:
        """A tick: take what is there."""
        try:
            self._in_step = True
            moderation = self._moderation
            if moderation is not None and moderation.is_stream:
                self._tick(moderation)
            self._step_is_made()
        except BaseException as error:  # a signal's, for which gevent stops this watcher
            self._failed(error)

    # The steps.

    def _tick(self, moderation: Moderation) -> None:
        if self._holds_bytes():
            moderation.pause()  # it waits for the sink
            return
        moderation.take_tick()
        drained = self._drain()
        if self._owner is not None and not self._holds_bytes():
            self._until_look = moderation.found(self.moved, self._remaining)
        self._go_on(drained)

    def _take(self) -> bool:
        """Take what one round brings; return whether there may be more at once."""
        raise NotImplementedError

    def _holds_bytes(self) -> bool:
        """Whether there are bytes that the sink has not accepted yet."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Wait for what has to come next, or end where nothing has to."""
        raise NotImplementedError

    def _drain(self) -> bool:
        """Take what is there, but no more than is fair; return whether that was about all."""
        for _ in range(_ROUNDS):
            before = self.moved
            if not self._take() or self.moved - before < _CAUGHT_UP:
                return True
        return False

    def _go_on(self, drained: bool) -> None:
        """Wait for what comes next; a source that was not *drained* is ready at once."""
        if drained or self._owner is None:  # it has been abandoned in the last step, perhaps
            self._wait()
        else:
            if self._waits_for_tick():
                # It is polled. After this read a `_look` drains it again, and once that was all
                # it is left to the ticks.
                self._until_look = 1
            self._wait_for_source()

    def _wait_for_more(self) -> None:
        """Wait for the source; or for the next tick, where it is polled."""
        if self._waits_for_tick():
            self._claim(_gevent.read_watcher(self._source.socket), self.on_event)
        else:
            self._wait_for_source()

    def _waits_for_tick(self) -> bool:
        """Wait for the next tick, where the source is polled; return whether it is."""
        return self._moderation is not None and self._moderation.wait()

    def _wait_for_source(self) -> None:
        if self._place is None:
            turns = self._turns
            self._place = self.on_event if turns is None else turns.place_for(self)
        sock = self._source.socket
        self._wait_for(sock, _gevent.read_watcher(sock), self._place)

    def _look(self) -> None:
        """Drain a stream that was polled, or ask `Moderation` whether the source has become one."""
        if self._owner is None:
            return
        moderation = self._moderation
        if moderation is None:
            moderation = self._moderation = Moderation(self._source.socket, self.on_due)
        if moderation.is_stream:
            self._go_on(drained=self._holds_bytes() or self._drain())
        else:
            self._until_look = moderation.read(self.moved, self._remaining)
            self._wait()

    def abandon(self) -> None:
        """Move nothing any more, and tell nobody (in a forked child)."""
        super().abandon()
        self._leave_turns()
        if self._moderation is not None:
            self._moderation.abandon()

    def _release(self) -> None:
        super()._release()
        self._leave_turns()
        moderation, self._moderation = self._moderation, None  # it refers to this object
        if moderation is not None:
            moderation.close()

    def _leave_turns(self) -> None:
        self._place = None  # it refers to this object
        if self._turns is not None:
            self._turns.leave(self)
