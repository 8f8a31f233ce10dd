"""Connections with transfers between them, of which every byte is accounted for.

Invariant: a way (one direction of a connection) knows what its transfers have `delivered` and what
they have handed back, `held`. What is held goes on first, so the sink gets one stream without a
gap, and ``delivered + len(held)`` is what has left the source. `Way.settle` proves it: what the
backend has received, what is held and what can still be read from the source are the stream.
"""

from __future__ import annotations

import collections
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import gevent
from gevent import socket
from oracle import GONE, Cursor, Reader, Stream, Writer
from peers import connected, connected_tls, reset, wait_until, waits_to_read, waits_to_write

import gsplice
from gsplice._shutdown import half_close

#: Seconds that anything may take that has to come to an end by itself.
PATIENCE = 15.0

Counts: TypeAlias = "collections.Counter[str]"


class Options(NamedTuple):
    """How a transfer or relay is begun."""

    mode: str = "auto"
    count: int | None = None
    """For a single direction."""
    idle_timeout: float | None = None
    own_timeout: float | None = None
    """The sockets' own, which a relay does not regard."""
    moderation: float = 0.001
    by_caller: bool = False
    """Run in a greenlet that waits for it, as `gsplice.copy` and `gsplice.relay` do."""
    caller_timeout: float | None = None
    """Of a `gevent.Timeout` around that."""


def wait_while_bytes_arrive(condition: Callable[[], bool], ways: Sequence[Way]) -> None:
    """Let the hub run until *condition* is true, for as long as it takes while bytes arrive.

    TCP with buffers that are next to nothing drops segments, and sends them again ever later.
    """

    def arrived() -> int:
        return sum(way.reader.received for way in ways)

    while not condition():
        before = arrived()
        wait_until(lambda before=before: condition() or arrived() > before, PATIENCE)


class Way:
    """One direction, from a writer to a reader, with one transfer at a time between them."""

    def __init__(
        self,
        client: socket.socket,
        source: socket.socket,
        sink: socket.socket,
        backend: socket.socket,
        key: int,
        counts: Counts,
    ) -> None:
        self.source = source
        self.sink = sink
        self.stream = Stream(key)
        self.writer = Writer(client, self.stream, counts)
        self.reader = Reader(backend, self.stream, counts)
        self.source_is_whole = True  # nothing that was sent has been lost before it was read
        self.sink_is_whole = True  # nothing that was accepted has been lost before it was received
        self.delivered = 0
        self.held = b""
        self.spliced = 0
        self.transfer: gsplice.Transfer | None = None
        self._resent: io.BytesIO | None = None  # the transfer's source, where it is what was held
        self._moved = 0

    def make(self, options: Options) -> gsplice.Transfer:
        """Return a transfer of what is held, or else of what comes."""
        source: Any = self.source
        if self.held:
            source = io.BytesIO(self.held)
            options = options._replace(count=None)
        transfer = gsplice.Transfer(
            source,
            self.sink,
            options.count,
            idle_timeout=options.idle_timeout,
            mode=options.mode,
            moderation=options.moderation,
        )
        self.follow(transfer, source if self.held else None)
        return transfer

    def follow(self, transfer: gsplice.Transfer, resent: io.BytesIO | None = None) -> None:
        """Account for what *transfer* moves."""
        self.transfer = transfer
        self._resent = resent
        self._moved = 0

    def take_note(self) -> None:
        """The transfer has ended: what it moved is delivered, what it hands back is held."""
        transfer, self.transfer = self.transfer, None
        assert transfer is not None
        assert transfer.spliced <= transfer.moved
        self.delivered += transfer.moved
        self.spliced += transfer.spliced
        if self._resent is not None:
            left = transfer.undelivered + self._resent.read()
            assert transfer.moved + len(left) == len(self.held), "bytes in hand were lost"
            self.held = left
        else:
            self.held = transfer.undelivered

    def check(self) -> None:
        """Check what holds at every moment."""
        if self.reader.fault is not None:
            raise self.reader.fault
        moved = 0
        if self.transfer is not None:
            moved = self.transfer.moved
            assert moved >= self._moved, "a transfer has taken back what it had moved"
            self._moved = moved
            assert self.transfer.ready() or self.transfer.undelivered == b""
        assert self.reader.received <= self.delivered + moved, "more arrived than was moved"

    def is_at_its_end(self) -> bool:
        """Whether all that the writer has sent is delivered, and its end was sent as well."""
        own = self.stream.sent
        with_urgent = own + self.stream.urgent.total()
        return self.writer.is_ending and own <= self.delivered <= with_urgent

    def settle(self) -> None:
        """Take what is left from either side, and check that there is nothing else."""
        assert self.transfer is None
        self.reader.allow(float("inf"))
        self.writer.end()
        rest = gevent.spawn(_all_from, self.source)
        if self.sink.fileno() >= 0:
            _end_writing(self.sink)
        greenlets = [rest, self.writer.greenlet, self.reader.greenlet]
        wait_while_bytes_arrive(lambda: all(one.ready() for one in greenlets), [self])
        self.check()
        if self.sink_is_whole:
            assert self.reader.has_met_end, self.reader.error
            assert self.reader.received == self.delivered
            self._check_rest(self.reader.cursor, rest.value)
        else:
            self._check_somewhere(rest.value)

    def _check_rest(self, cursor: Cursor, rest: bytes) -> None:
        cursor.take(self.held)
        cursor.take(rest)
        if self.source_is_whole:
            missing = self.stream.sent - cursor.position
            assert not missing, f"{missing} bytes at the end of the stream are nowhere"

    def _check_somewhere(self, rest: bytes) -> None:
        """Check what is left where nobody knows how many of the lost bytes were urgent ones."""
        faults: list[AssertionError] = []
        for urgent in range(self.stream.urgent.total() + 1):
            try:
                self._check_rest(Cursor(self.stream, self.delivered - urgent), rest)
                return
            except AssertionError as fault:
                faults.append(fault)
        raise faults[0]


def _fault_of(check: Callable[[], None]) -> Exception | None:
    """Return what *check* raises: in a greenlet of its own, that would go to the hub as well."""
    try:
        check()
    except Exception as fault:
        return fault
    return None


def _all_from(sock: socket.socket) -> bytes:
    """Return what can still be read from a source, up to its end or an error."""
    data = bytearray()
    try:
        sock.settimeout(None)
        while piece := sock.recv(65536):
            data += piece
    except GONE:
        _discard_all(sock)
    return bytes(data)


def _discard_all(sock: socket.socket) -> None:
    """Let a peer finish whose TLS session has failed here: nobody can read what it sends."""
    try:
        while socket.socket.recv(sock, 65536):
            pass
    except OSError:
        pass


def _end_writing(sock: socket.socket) -> None:
    try:
        half_close(sock)
    except OSError:  # it was shut down before, or its peer has gone
        pass


class Connection:
    """A client and a backend with gsplice between them: two ways, up and down."""

    def __init__(self, kinds: tuple[str, str], keys: tuple[int, int], counts: Counts) -> None:
        self.client, self.a = _connected(kinds[0])
        self.b, self.backend = _connected(kinds[1])
        self.kinds = kinds
        self._counts = counts
        sockets = (self.client, self.a, self.b, self.backend)
        self.up = Way(*sockets, keys[0], counts)
        self.down = Way(*reversed(sockets), keys[1], counts)  # type: ignore[misc]
        self.ways = (self.up, self.down)
        self.is_troubled = False  # something was done to its sockets that may end a transfer
        self.has_had_timeouts = False  # of its sockets' own
        self.is_settled = False
        self._sessions: list[Session] = []

    def tighten(self) -> None:
        """Have the kernel keep little, so that whoever does not read is soon felt."""
        for sock in (self.client, self.a, self.b, self.backend):
            # With windows of less than a few segments, which are large on loopback, TCP would live
            # by its timers.
            size = 8 * 1024 if sock.family == socket.AF_UNIX else 256 * 1024
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, size)

    # What can be begun.

    def begin(self, ways: tuple[Way, ...], options: Options) -> None:
        """Begin a transfer on each of the *ways* that has none."""
        self.take_note()
        for way in ways:
            if way.transfer is None:
                self._begin(options, way)

    def begin_relay(self, options: Options) -> None:
        """Begin a relay, or first what has to go before it."""
        self.take_note()
        if any(way.transfer is not None for way in self.ways):
            return
        if any(way.held for way in self.ways):
            self.begin(tuple(way for way in self.ways if way.held), options)
        else:
            self._begin(options)

    def _begin(self, options: Options, way: Way | None = None) -> None:
        for sock in (self.a, self.b):
            if sock.fileno() >= 0:
                sock.settimeout(options.own_timeout)
        self.has_had_timeouts |= options.own_timeout is not None
        try:
            self._sessions.append(Session(self, options, way))
        except OSError:
            assert self.is_troubled
        self._counts["begin " + ("relay" if way is None else "transfer")] += 1

    # What can happen to it.

    def stop(self) -> None:
        """Stop all that runs; the sockets are free at once."""
        for session in self._sessions:
            session.stop()
        self.take_note()
        assert not self._sessions, "stopped, and it has not ended"

    def kill_callers(self) -> None:
        """Kill the greenlets that wait for a transfer of theirs."""
        for session in self._sessions:
            session.kill()

    def reset(self, sock: socket.socket) -> None:
        """Have one of the peers send a RST, or what unix sockets have in its place."""
        self._trouble(self.ways, self.ways)
        if sock.fileno() >= 0:
            reset(sock)

    def close(self, sock: socket.socket) -> None:
        """Close one of the sockets of the transfers."""
        # What its peer has not received may be lost with it: what was unread there causes a RST.
        source_of, sink_of = (self.up, self.down) if sock is self.a else (self.down, self.up)
        self._trouble((source_of,), (sink_of,))
        sock.close()

    def shut_down(self, sock: socket.socket, how: int) -> None:
        """Shut one of the sockets of the transfers down, in one direction or both."""
        if sock.fileno() < 0:
            return
        source_of = self.up if sock is self.a else self.down
        sink_of = self.down if sock is self.a else self.up
        if how == socket.SHUT_WR:
            self._trouble((), ())
        else:
            # What then comes makes TCP send a RST, once our own end of file is sent as well, and a
            # TLS session fails as a whole: what the peer has not received may be lost with it.
            self._trouble((source_of,), (sink_of,))
        try:
            socket.socket.shutdown(sock, how)  # SSLSocket's own would drop the session
        except OSError:
            pass  # it is not connected any more

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

    def finish(self) -> None:
        """Let everything come to its end by itself, as it has to; go on with what is left."""
        for way in self.ways:
            way.reader.allow(float("inf"))
            way.writer.end()
        self._wait_for_ends()
        for _ in range(2):  # what is held, then what has not been taken from the sources
            if not self.is_troubled and not all(way.is_at_its_end() for way in self.ways):
                self.begin_relay(Options())
                self._wait_for_ends()
        assert self.is_troubled or all(way.is_at_its_end() for way in self.ways)

    def _wait_for_ends(self) -> None:
        wait_while_bytes_arrive(
            lambda: all(session.has_ended() for session in self._sessions), self.ways
        )
        self.take_note()

    def settle(self) -> None:
        """End all of it, and check that every byte is somewhere, once."""
        self.is_settled = True
        self.stop()
        for sock in (self.a, self.b):
            assert not waits_to_read(sock), "a transfer that is over waits for its source"
            assert not waits_to_write(sock), "a transfer that is over waits for its sink"
        settling = [gevent.spawn(_fault_of, way.settle) for way in self.ways]
        for greenlet in gevent.joinall(settling):
            if greenlet.value is not None:
                raise greenlet.value

    def close_all(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for session in self._sessions:
            session.abandon()
        for way in self.ways:
            gevent.killall([way.writer.greenlet, way.reader.greenlet])
        for sock in (self.client, self.a, self.b, self.backend):
            sock.close()


def _connected(kind: str) -> tuple[socket.socket, socket.socket]:
    return connected_tls() if kind == "tls" else connected(kind)


class Session:
    """A transfer or a relay from its beginning to its end, and the greenlet that waits for it."""

    def __init__(self, connection: Connection, options: Options, way: Way | None) -> None:
        self._connection = connection
        self._options = options
        self._way = way
        self._may_be_stopped = self._may_be_killed = False
        self._caller: gevent.Greenlet[..., Any] | None = None
        self.task: Any = self._relay() if way is None else way.make(options)
        if options.by_caller:
            self._caller = gevent.spawn(self._call)
        else:
            self.task.start()

    def _relay(self) -> gsplice.Relay:
        ends = self._connection
        relay = gsplice.Relay(
            ends.a,
            ends.b,
            idle_timeout=self._options.idle_timeout,
            mode=self._options.mode,
            moderation=self._options.moderation,
        )
        ends.up.follow(relay.up)
        ends.down.follow(relay.down)
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
        ways = self._connection.ways if self._way is None else (self._way,)
        transfers = [(way, way.transfer) for way in ways]
        resent = [way for way in ways if way.held]
        for way in ways:
            way.take_note()
        self._connection._counts[self._outcome()] += 1
        for way, transfer in transfers:
            assert transfer is not None
            self._connection._counts["bytes in hand at an end"] += bool(transfer.undelivered)
            self._check_count(transfer)
            if transfer.successful() and way not in resent and transfer.moved != self._limit():
                assert way.is_at_its_end() or self._connection.is_troubled, "a false end of file"

    def _limit(self) -> int | None:
        return None if self._way is None else self._options.count

    def _check_count(self, transfer: gsplice.Transfer) -> None:
        limit = self._limit()
        if limit is not None and self._way is not None and not transfer.successful():
            return
        if transfer.successful():
            assert transfer.undelivered == b""
            assert transfer.get() == transfer.moved

    def _outcome(self) -> str:
        """Return what has become of it, in a word; an error that nothing has caused is a fault."""
        error = self.task.exception
        if error is None:
            return "clean end"
        expected: list[type[BaseException]] = []
        if self._may_be_stopped or self._may_be_killed or self._options.caller_timeout:
            expected += [gsplice.TransferStopped, gevent.GreenletExit, gevent.Timeout]
        if self._options.idle_timeout or (
            self._way is not None and self._connection.has_had_timeouts
        ):
            expected.append(TimeoutError)
        if self._connection.is_troubled:
            expected += GONE
        if not isinstance(error, tuple(expected)):
            raise AssertionError(f"nothing was done that gives {error!r}") from error
        return f"ended by {type(error).__name__}"
