"""Connections: two ends with gsplice between them, or one that gets its own bytes back.

Invariant: a connection knows what was done to its ends, and so what may have come of it: which
ways may have lost bytes in the kernel (`Way.source_is_whole`, `Way.sink_is_whole`), and whether
transfers may have met errors at all. Whatever nothing was done to has to be exact.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from ends import End, SocketEnd, make_end
from gevent import socket
from oracle import GONE, Counts
from peers import is_stream, waits_to_write
from sessions import Session
from ways import Options, Way, wait_while_bytes_arrive

from gsplice import _gevent

#: More than a socket of small buffers, its peer's and a pipe hold together.
_FLOOD = 2_500_037


class Connection:
    """A client, a backend, and gsplice between them: two ways, up and down.

    :param kinds: of both ends; only one where the connection is an echo, which has one way.
    :param keys: of the streams.
    """

    def __init__(
        self, kinds: tuple[str, ...], keys: tuple[int, int], is_tight: bool, counts: Counts
    ) -> None:
        self.kinds = kinds
        self.counts = counts
        self._is_tight = is_tight
        self.ends: list[End] = [make_end(kind, is_tight) for kind in kinds]
        a, b = self.ends[0], self.ends[-1]
        self.up = Way(a, b, keys[0], counts)
        self.down = self.up if a is b else Way(b, a, keys[1], counts)
        self.ways = (self.up,) if a is b else (self.up, self.down)
        self.is_troubled = False  # something was done to its ends that may end a transfer
        self.has_had_timeouts = False  # of its sockets' own
        self.is_settled = False
        self._sessions: list[Session] = []

    # What can be begun.

    def begin(self, ways: tuple[Way, ...], options: Options) -> None:
        """Begin a transfer on each of the *ways* that has none."""
        self.take_note()
        for way in ways:
            if way.transfer is None:
                self._begin(options, (way,))

    def begin_relay(self, options: Options) -> None:
        """Begin a relay, or first what has to go before it; where there can be none, transfers."""
        self.take_note()
        if any(way.transfer is not None for way in self.ways):
            return
        if any(way.held for way in self.ways):
            self.begin(tuple(way for way in self.ways if way.held), options)
        elif self._may_be_relayed():
            self._begin(options, self.ways)
        else:
            self.begin(self.ways, options)

    def _may_be_relayed(self) -> bool:
        a, b = self.up.near, self.down.near
        is_as_it_was = self.up.far is b and self.down.far is a
        return a is not b and is_as_it_was and not (a.is_file or b.is_file)

    def _begin(self, options: Options, ways: tuple[Way, ...]) -> None:
        for end in self.ends:
            end.settimeout(options.own_timeout)
        self.has_had_timeouts |= options.own_timeout is not None
        try:
            self._sessions.append(Session(self, options, ways))
        except GONE:
            assert self.is_troubled
        self.counts["begin " + ("relay" if len(ways) > 1 else "transfer")] += 1

    def flood(self, way: Way, options: Options) -> None:
        """Have a transfer hold bytes that its sink has no room for: nobody reads them.

        In a connection that is new, and whose ends are tight.
        """
        way.writer.write([_FLOOD])
        self.begin((way,), options)
        far = way.far
        if isinstance(far, SocketEnd):
            wait_while_bytes_arrive(lambda: waits_to_write(far.socket) or self._have_ended(), [way])

    def stream(self, way: Way, options: Options, times: int, size: int) -> None:
        """Have small writes come one after the other, and be read at once."""
        way.reader.allow(float("inf"))
        way.writer.drip(times, size)
        self.begin((way,), options)
        wait_while_bytes_arrive(lambda: way.moved == times * size or self._have_ended(), [way])
        self.counts["moderated"] += way.transfer is not None and is_stream(way.transfer)

    def read_ahead(self, way: Way, size: int) -> None:
        """Have a buffered reader take some of what comes, and be the source from now on."""
        self.take_note()
        if way.transfer is None:
            way.writer.write([size + 1])
            for _ in range(2):  # in which a writer that has nothing before that sends it
                _gevent.let_loop_pass()
            self.counts["bytes read ahead"] += way.near.read_ahead(size)

    def turn(self, way: Way, kind: str, is_read: bool) -> None:
        """Have the rest of a way go elsewhere."""
        self.stop()
        if self.is_troubled:
            return  # nobody knows what has become of what it has delivered
        far = make_end(kind, self._is_tight)
        self.ends.append(far)
        way.turn_to(far)
        self.counts["turn"] += 1
        if is_read:
            way.reader.allow(float("inf"))

    # What can happen to it.

    def stop(self) -> None:
        """Stop all that runs; the ends are free at once."""
        for session in self._sessions:
            session.stop()
        self.take_note()
        assert not self._sessions, "stopped, and it has not ended"

    def kill_callers(self) -> None:
        """Kill the greenlets that wait for a transfer of theirs."""
        for session in self._sessions:
            session.kill()

    def reset(self, end: End) -> None:
        """Have the peer of an end send a RST, or what unix sockets have in its place."""
        if isinstance(end, SocketEnd):
            self._trouble(self.ways, self.ways)
            end.reset_peer()

    def close(self, end: End) -> None:
        """Close one of the ends."""
        # What its peer has not received may be lost with it: what was unread there causes a RST.
        self._trouble(self._from(end), self._to(end))
        end.close()

    def shut_down(self, end: End, how: int) -> None:
        """Shut one of the ends down, in one direction or both."""
        if not isinstance(end, SocketEnd) or not end.is_open():
            return
        if how == socket.SHUT_WR:
            self._trouble((), ())
        else:
            # What then comes makes TCP send a RST, once our own end of file is sent as well, and a
            # TLS session fails as a whole: what the peer has not received may be lost with it.
            self._trouble(self._from(end), self._to(end))
        end.shut_down(how)

    def _from(self, end: End) -> tuple[Way, ...]:
        return tuple(way for way in self.ways if way.near is end)

    def _to(self, end: End) -> tuple[Way, ...]:
        return tuple(way for way in self.ways if way.far is end)

    def _trouble(self, sources: tuple[Way, ...], sinks: tuple[Way, ...]) -> None:
        self.is_troubled = True
        for way in sources:
            way.source_is_whole = False
        for way in sinks:
            way.sink_is_whole = False

    # What has to hold.

    def take_note(self) -> None:
        """Account for what has ended by itself."""
        for session in list(self._sessions):
            if session.has_ended():
                self._sessions.remove(session)
                session.account()

    def check(self) -> None:
        """Check what holds at every moment."""
        for way in self.ways:
            way.check()

    def wait_for_ends(self) -> None:
        """Let what runs come to its end by itself, as it has to."""
        wait_while_bytes_arrive(self._have_ended, self.ways)
        self.take_note()

    def finish(self) -> None:
        """Let everything come to its end by itself, as it has to; go on with what is left."""
        for way in self.ways:
            way.reader.allow(float("inf"))
            way.writer.end()
        self.wait_for_ends()
        for _ in range(2):  # what is held, then what has not been taken from the sources
            if not self.is_troubled and not all(way.is_at_its_end() for way in self.ways):
                self.begin_relay(Options())
                self.wait_for_ends()
        assert self.is_troubled or all(way.is_at_its_end() for way in self.ways)

    def _have_ended(self) -> bool:
        return all(session.has_ended() for session in self._sessions)

    def settle(self) -> None:
        """End all of it, and check that every byte is somewhere, once."""
        self.is_settled = True
        self.stop()
        for end in self.ends:
            end.check_is_free()
        settling = [gevent.spawn(_fault_of, way.settle) for way in self.ways]
        for greenlet in gevent.joinall(settling):
            if greenlet.value is not None:
                raise greenlet.value

    def close_all(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for session in self._sessions:
            session.abandon()
        for way in self.ways:
            way.close()
        for end in self.ends:
            end.close_all()


def _fault_of(check: Callable[[], None]) -> BaseException | None:
    """Return what *check* raises: in a greenlet of its own, that would go to the hub as well."""
    try:
        check()
    except (Exception, pytest.fail.Exception) as fault:
        return fault
    return None
