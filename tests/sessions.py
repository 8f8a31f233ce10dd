"""A transfer or a relay from its beginning to its end, and the greenlet that waits for it.

Invariant: it ends as what was done to it explains. An error that nothing has caused is a fault, and
so is an end of file that the source has not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import gevent
from oracle import GONE, Counts
from ways import PATIENCE, Options, Way

import gsplice


class Surroundings(Protocol):
    """What has been done to the sockets that a session uses, and would explain its end."""

    is_troubled: bool
    """Something that may end a transfer with an error, or too early."""
    has_had_timeouts: bool
    """They had time-outs of their own."""
    counts: Counts


class Session:
    """What moves bytes along one way, or along two as a relay."""

    def __init__(self, around: Surroundings, options: Options, ways: Sequence[Way]) -> None:
        self._around = around
        self._options = options
        self._ways = ways
        self._may_be_stopped = self._may_be_killed = False
        self._caller: gevent.Greenlet[..., Any] | None = None
        self.task: Any = self._relay(*ways) if len(ways) > 1 else ways[0].make(options)
        if options.by_caller:
            self._caller = gevent.spawn(self._call)
        else:
            self.task.start()

    def _relay(self, up: Way, down: Way) -> gsplice.Relay:
        relay = gsplice.Relay(
            up.near.source,
            down.near.source,
            idle_timeout=self._options.idle_timeout,
            mode=self._options.mode,
            moderation=self._options.moderation,
        )
        up.follow(relay.up)
        down.follow(relay.down)
        return relay

    def _call(self) -> Any:
        """Wait for it as a user would, who then looks at what has become of it."""
        try:
            with gevent.Timeout(self._options.caller_timeout):
                return self.task.run()
        except (Exception, gevent.Timeout, gevent.GreenletExit) as error:
            return error

    def stop(self) -> None:
        """Stop it from another greenlet, and let its caller find out."""
        self._may_be_stopped |= not self.task.ready()
        self.task.stop()
        if self._caller is not None:
            self._may_be_stopped = True  # it had not begun
            self._caller.join(PATIENCE)
            assert self._caller.ready(), "stopped, and its caller still waits"

    def kill(self) -> None:
        """Kill its caller."""
        if self._caller is not None and not self._caller.ready():
            self._may_be_killed = True
            self._caller.kill(timeout=PATIENCE)
            assert self._caller.ready(), "killed, and it still runs"
            self.task.stop()  # it may not have begun

    def abandon(self) -> None:
        """End it without a look at what it did."""
        self.task.stop()
        if self._caller is not None:
            self._caller.kill()

    def has_ended(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.task.ready() and (self._caller is None or self._caller.ready())

    def account(self) -> None:
        """Take note of what it has moved, and check that it ended as it should have."""
        self.task.stop()  # one who waits is woken when nothing waits for the sockets any more
        transfers = [(way, way.transfer) for way in self._ways]
        resent = [way for way in self._ways if way.held]
        for way in self._ways:
            way.take_note()
        self._around.counts[self._outcome()] += 1
        for way, transfer in transfers:
            assert transfer is not None
            self._around.counts["bytes in hand at an end"] += bool(transfer.undelivered)
            if transfer.successful():
                assert transfer.undelivered == b""
                assert transfer.get() == transfer.moved
                if way not in resent and transfer.moved != self._limit():
                    assert self._may_have_ended(way), "a false end of file"

    def _is_relay(self) -> bool:
        return len(self._ways) > 1

    def _limit(self) -> int | None:
        return None if self._is_relay() else self._options.count

    def _may_have_ended(self, way: Way) -> bool:
        # A file that is growing has an end at every moment.
        return way.near.is_file or way.is_at_its_end() or self._around.is_troubled

    def _outcome(self) -> str:
        """Return what has become of it, in a word; an error that nothing has caused is a fault."""
        error = self.task.exception
        if error is None:
            return "clean end"
        expected: list[type[BaseException]] = []
        if self._may_be_stopped or self._may_be_killed or self._options.caller_timeout:
            expected += [gsplice.TransferStopped, gevent.GreenletExit, gevent.Timeout]
        if self._options.idle_timeout or (not self._is_relay() and self._around.has_had_timeouts):
            expected.append(TimeoutError)
        if self._around.is_troubled:
            expected += GONE
        if not isinstance(error, tuple(expected)):
            raise AssertionError(f"nothing was done that gives {error!r}") from error
        return f"ended by {type(error).__name__}"
