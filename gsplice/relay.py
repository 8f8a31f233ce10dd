"""Both directions at once: `relay`, and `Relay`, the object behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gsplice import _options, _recognition
from gsplice._direction import Direction
from gsplice._endpoint import Sink, Source
from gsplice._gevent import GeventSocket
from gsplice._task import Task
from gsplice._watchdog import Watchdog
from gsplice.transfer import Transfer


class RelayResult(NamedTuple):
    """How many bytes each direction of a relay has delivered."""

    sent: int
    """From *a* to *b*."""
    received: int
    """From *b* to *a*."""


class Relay(Task):
    """Both directions between *a* and *b*: `up` is from *a* to *b*, `down` from *b* to *a*.

    The parameters are those of `relay`. Bad ones raise here, what goes wrong later is raised by
    `get`, and `get` returns a `RelayResult`.

    Invariant: it ends when both directions have ended cleanly, or at the first error in either;
    then the other one is stopped, and each has what it could not deliver.
    """

    __slots__ = ("_down_goes_first", "_ends", "_idle_timeout", "_over", "_silenced", "down", "up")

    #: Whether the end of the direction that ends last is passed on as well.
    _passes_on_last_end = True

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> RelayResult: ...  # type: ignore[override]

    def __init__(
        self,
        a: Any,
        b: Any,
        *,
        idle_timeout: float | None = None,
        mode: str = "auto",
        moderation: float = _options.MODERATION,
    ) -> None:
        super().__init__()
        self._idle_timeout = _options.seconds("idle_timeout", idle_timeout)
        mode, bound = _options.mode(mode), _options.moderation(moderation)
        (from_a, to_a), (from_b, to_b) = _recognition.ends(a), _recognition.ends(b)
        # Until it begins:
        self._ends: tuple[Any, ...] = (_recognition.socket_of_end(a), _recognition.socket_of_end(b))
        self._over = False
        self._silenced: tuple[tuple[GeventSocket, float], ...] = ()
        # What was read ahead from *b*, in an exchange say (`_forwarding`), may be nowhere else. It
        # is taken first: a direction that never begins, since the other one fails at once, hands
        # nothing back.
        self._down_goes_first = getattr(from_b, "ahead", None) is not None
        self.up: _Leg = _Leg(self, from_a, to_b, mode, bound)
        self.down: _Leg = _Leg(self, from_b, to_a, mode, bound)

    @property
    def moved(self) -> int:
        """Bytes that the sinks have accepted, in both directions."""
        return self.up.moved + self.down.moved

    @property
    def spliced(self) -> int:
        """Those of them that went kernel to kernel."""
        return self.up.spliced + self.down.spliced

    @property
    def undelivered(self) -> bytes:
        """What `up` has not delivered, then what `down` has not; to send it on, ask those two."""
        return self.up.undelivered + self.down.undelivered

    def run(self) -> RelayResult:
        """Relay while the calling greenlet waits; return how many bytes it was."""
        try:
            return self.start().get()
        finally:
            self.stop()
            del self  # what is raised here refers to this frame, and the relay to what is raised

    def _begin(self) -> None:
        # One direction may well be silent while the other streams, so a socket's own time-out
        # says nothing here.
        self._silenced = tuple(
            (sock, sock.timeout)
            for sock in self._ends
            if isinstance(sock, GeventSocket) and sock.timeout is not None
        )
        sinks = tuple(sock for sock in self._ends if isinstance(sock, GeventSocket))
        self._ends = ()
        for sock, _ in self._silenced:
            sock.settimeout(None)
        if self._idle_timeout is not None:
            self._watchdog = Watchdog(self._idle_timeout, self._timed_out, sinks)
            self._watchdog.start()
        legs = (self.down, self.up) if self._down_goes_first else (self.up, self.down)
        for leg in legs:
            if not self._over:
                leg.start()

    def _fail(self, error: BaseException, rescued: _Leg | None = None) -> None:
        if self._over:
            return
        self._over = True
        try:
            if rescued is not None:
                rescued.take_what_has_come()
        finally:
            try:
                self._end()
            finally:  # and last, so that whoever waits for the relay finds its sockets free
                self.set_exception(error)

    def _join(self) -> None:
        for leg in (self.up, self.down):
            leg._join()

    def _end(self) -> None:
        self._over = True
        self._stop_watchdog()
        for sock, timeout in self._silenced:
            sock.settimeout(timeout)
        self._silenced = ()
        for leg in (self.up, self.down):
            leg._stop()

    def leg_ended(self, leg: _Leg, error: BaseException | None) -> None:
        """Take note that a direction has ended; pass the end of file on, or end both."""
        if self._over:
            return
        other = self.down if leg is self.up else self.up
        if error is None and (self._passes_on_last_end or not other.ready()):
            error = _pass_on_end(leg)
        if error is not None:
            # Of a peer that has gone, what it had sent before is still to be had: the answer to
            # a request that it would not read to the end, say.
            peer_has_gone = leg.undelivered and isinstance(error, ConnectionError)
            self._fail(error, other if peer_has_gone else None)
        elif other.ready():
            self._end()
            self.set(RelayResult(self.up.moved, self.down.moved))


class ClosingRelay(Relay):
    """A relay whose sockets are closed as soon as it has ended; that tells the last end as well."""

    __slots__ = ()

    _passes_on_last_end = False

    def fail(self, error: BaseException) -> None:
        """End at once with *error*; after the end it does nothing."""
        self._fail(error)


class _Leg(Transfer):
    """One direction of a relay."""

    __slots__ = ("_relay",)

    def __init__(
        self, relay: Relay, source: Source, sink: Sink, mode: str, moderation: float
    ) -> None:
        Task.__init__(self)  # the relay has looked at the arguments
        self._set_up(source, sink, None, mode, moderation)
        self._relay: Relay | None = relay

    def _watch(self) -> None:
        """Have the relay's idle time-out kept; it counts the bytes of both directions."""
        if self._relay is not None and self._relay._watchdog is not None:
            self._engine.watch_over(self._relay._watchdog)

    def take_what_has_come(self) -> None:
        """Move what the source's kernel has received already, as far as it goes without a wait."""
        self.start()
        self._direction().take_what_has_come()

    def end_sink(self) -> None:
        """Tell the sink's peer that no more bytes will come."""
        self._direction().end_sink()

    def _direction(self) -> Direction:
        assert isinstance(self._engine, Direction)  # no message's body is both source and sink
        return self._engine

    def ended(self, error: BaseException | None) -> None:
        """Take note of the engine's end, and tell the relay."""
        super().ended(error)
        relay, self._relay = self._relay, None  # so that a relay that is over is no cycle
        assert relay is not None
        relay.leg_ended(self, error)


def relay(
    a: Any,
    b: Any,
    *,
    idle_timeout: float | None = None,
    mode: str = "auto",
    moderation: float = _options.MODERATION,
) -> RelayResult:
    """Move bytes in both directions between *a* and *b* until both have ended; return how many.

    End of file on one side is passed on as ``shutdown(SHUT_WR)`` once every byte before it has
    been delivered. An error in either direction ends both and is raised. Neither is closed.

    :param a: a stream socket, or a ``makefile("rb")`` reader on one: what it has buffered goes
        first, and what comes from *b* goes to its socket.
    :param b: the same.
    :param idle_timeout: seconds without a byte in either direction after which `socket.timeout`
        is raised; the sockets' own time-outs are not regarded. See `Transfer` for what a byte is.
    :param mode: see `gsplice.copy`.
    :param moderation: see `gsplice.copy`.
    :return: a `RelayResult`: the bytes from *a* to *b*, and those from *b* to *a*.
    :raises OSError: what ``recv`` and ``sendall`` would have raised on the same sockets;
        `socket.timeout` after *idle_timeout*.
    :raises TypeError: where *a* or *b* is not both a source and a sink, or an argument no number.
    :raises ValueError: for a bad mode, a negative number, or a socket in non-blocking mode.
    """
    return Relay(a, b, idle_timeout=idle_timeout, mode=mode, moderation=moderation).run()


def _pass_on_end(leg: _Leg) -> Exception | None:
    """Tell the sink's peer that *leg* has ended; return what went wrong."""
    try:
        leg.end_sink()
    except Exception as error:
        return error.with_traceback(None)
    return None
