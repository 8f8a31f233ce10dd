"""A forwarded connection: it begins as an exchange of a few small messages, and often is no more.

A `Relay` is made for connections that last, and half of what a short one costs is to make it. So
both ways begin as little as can receive and send, and become a relay as soon as they are anything
more: when a read fills the buffer (a stream, maybe), when a sink does not take all (that, and what
an error in sending means for the other way, is for the relay), and after a few messages.

Invariant: an exchange holds no bytes between two calls of the hub. What its step has received it
has sent, or the exchange is over and what is left is the first that the relay has to send. So
nothing waits for a sink in here, and an end of file is met with nothing held. One that has been
passed on the relay meets again: a socket says so as often as it is asked.

Invariant: a forwarding ends once. An exchange ends by itself only where both ways have come to
their end of file; whatever else ends one (an error, `stop`) is the end of the relay that it has
become by then. An exchange that is over has no watcher and no timer, and refers to nothing that
refers to it.

Invariant: a step is made whole, as in `_direction`: what would end an exchange in the middle of one
(the handler of a signal) ends it after that.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final

from gevent.socket import SOCK_STREAM

from gsplice import _account, _gevent, _hub, _shutdown
from gsplice._direction import TransferStopped
from gsplice._endpoint import SocketSource
from gsplice._gevent import LeanSocket
from gsplice._watchdog import Watchdog
from gsplice.relay import ClosingRelay, Relay

#: So many messages one way are no short connection any more.
_MOST_MESSAGES: Final = 8


def may_exchange(listener: Any, options: Mapping[str, Any]) -> bool:
    """Return whether clients of the C socket *listener* are relayed as an exchange at first."""
    is_real = listener.type == SOCK_STREAM and listener.family in _gevent.STREAM_FAMILIES
    return is_real and options["mode"] != "splice"


class Forwarding:
    """Both ways between two sockets that are closed as soon as it has ended.

    :param options: those of a `Relay`.
    :param ended: called in the hub at the end, with the relay if it was one by then.
    """

    __slots__ = (
        "_backend",
        "_client",
        "_down",
        "_end_is_due",
        "_ended",
        "_options",
        "_relay",
        "_up",
        "_watchdog",
        "in_step",
    )

    def __init__(
        self,
        client: Any,
        backend: Any,
        options: Mapping[str, Any],
        ended: Callable[[Relay | None], None],
    ) -> None:
        self._client = client
        self._backend = backend
        self._options = options
        self._ended: Callable[[Relay | None], None] | None = ended
        self._up: _Way | None = None
        self._down: _Way | None = None
        self._relay: ClosingRelay | None = None
        self._watchdog: Watchdog | None = None
        #: Whether a step of an exchange is under way.
        self.in_step = False
        self._end_is_due: BaseException | None = None  # with this, once the step has been made

    def start(self, exchange: bool) -> None:
        """Begin; what the client has sent already goes at once.

        :param exchange: whether the client may be part of an exchange; see `may_exchange`.
        """
        if not (exchange and type(self._client) is type(self._backend) is LeanSocket):
            self._become_relay(self._client, self._backend).start()
            return
        idle_timeout = self._options["idle_timeout"]
        if idle_timeout is not None:
            ends = (self._client, self._backend)
            self._watchdog = Watchdog(idle_timeout, self._timed_out, ends)
            self._watchdog.start()
        self.in_step = True
        try:
            self._up = up = _Way(self, self._client, self._backend)
            self._down = _Way(self, self._backend, self._client)
        finally:
            self.in_step = False
        up.on_readable()

    def stop(self) -> None:
        """End at once, or with the step under way; after the end it does nothing."""
        if self._relay is not None and not self.in_step:
            self._relay.stop()
        else:
            self.fail(TransferStopped("the transfer was stopped"))

    def fail(self, error: BaseException) -> None:
        """End with *error* at once, or with the step under way: an exchange as a relay does."""
        if self.in_step:
            self._end_is_due = self._end_is_due or error
        elif self._relay is not None:
            self._relay.fail(error)
        elif self._ended is not None:
            self._end_exchange()
            self._go_on().fail(error)

    def step_is_made(self) -> None:
        """Take note that a step of an exchange has been made whole, and end now if that is due."""
        self.in_step = False  # before the look: what asks for the end from here on, ends it
        error, self._end_is_due = self._end_is_due, None
        if error is not None:
            self.fail(error)

    def moved(self) -> None:
        """A message has gone through an exchange."""
        if self._watchdog is not None:
            self._watchdog.touch()

    def end_of(self, way: _Way) -> None:
        """One way of an exchange has come to its end of file: pass it on, unless both have."""
        way.stop()
        if way is self._up:
            self._up = None
        elif way is self._down:
            self._down = None
        else:
            return  # the handler of a signal has forked within the step, and this is the child
        if self._up is self._down:
            self._end(None)
            return
        try:
            _shutdown.half_close(way.sink)
        except OSError as error:
            self.fail(error.with_traceback(None))

    def last(self, way: _Way, left: bytes) -> None:
        """Go on as a relay, with what is *left* of *way*'s last message."""
        from_client = from_backend = None
        if way is self._up:
            from_client = _Held(left)
        elif way is self._down:
            from_backend = _Held(left)
        else:
            return  # as above
        self._end_exchange()
        self._go_on(from_client, from_backend).start()

    def abandon(self) -> None:
        """Forward nothing any more (in a forked child)."""
        self._up = self._down = None
        if self._watchdog is not None:
            self._watchdog.stop()

    def _go_on(
        self, from_client: _Held | None = None, from_backend: _Held | None = None
    ) -> ClosingRelay:
        """Return the relay that an exchange becomes; what was received and not sent goes first.

        Its ends are not looked at again. One that somebody has closed meanwhile is met by the
        relay, as an error like any: were it raised here, nobody would be told of the end.
        """
        return self._become_relay(
            SocketSource(self._client, from_client), SocketSource(self._backend, from_backend)
        )

    def _become_relay(self, client: Any, backend: Any) -> ClosingRelay:
        self._relay = relay = ClosingRelay(client, backend, **self._options)
        relay.rawlink(self._end)
        return relay

    def _end(self, relay: Relay | None) -> None:
        self._end_exchange()
        self._relay = None
        ended, self._ended = self._ended, None
        assert ended is not None  # it ends once
        ended(relay)

    def _end_exchange(self) -> None:
        up, down = self._up, self._down
        self._up = self._down = None
        if up is not None:
            up.stop()
        if down is not None:
            down.stop()
        watchdog, self._watchdog = self._watchdog, None  # it refers to this object
        if watchdog is not None:
            watchdog.stop()

    def _timed_out(self) -> None:
        self.fail(TimeoutError("timed out"))


class _Held:
    """What an exchange has received and not sent: the first bytes of a source."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take_buffered(self, limit: int | None) -> bytes:
        """Take all of it: a relay has no limit."""
        data, self._data = self._data, b""
        return data

    def timed_out(self) -> None:
        """Whoever has received it reads no more."""


class _Way:
    """One way of an exchange."""

    __slots__ = (
        "_buffer",
        "_forwarding",
        "_left",
        "_receive",
        "_send",
        "_watcher",
        "moved",
        "sink",
        "source",
        "spliced",
    )

    def __init__(self, forwarding: Forwarding, source: LeanSocket, sink: LeanSocket) -> None:
        self._forwarding: Forwarding | None = forwarding  # until the end
        self.source = source
        self.sink = sink
        self._receive: Callable[[memoryview], int] = _gevent.raw_socket(source).recv_into
        self._send: Callable[[memoryview], int] = _gevent.raw_socket(sink).send
        self._buffer = _hub.resources().small_scratch
        self._left = _MOST_MESSAGES
        self.moved = self.spliced = 0
        self._watcher = _gevent.read_watcher(source)
        _gevent.start(self._watcher, self.on_readable)
        _account.began(self)

    def stop(self) -> None:
        """Wait for nothing any more; a second call does nothing."""
        if self._forwarding is not None:
            _account.ended(self)  # first: a handler of a signal may fork in here (`abandon`)
            self._forwarding = None
            self._watcher.stop()

    def on_readable(self, events: int = 1) -> None:
        """The source has a message, its end, or an error."""
        forwarding = self._forwarding
        if forwarding is None:
            return
        forwarding.in_step = True
        try:
            self._step(forwarding)
            forwarding.step_is_made()
            if events < 0 and self._forwarding is not None:
                _gevent.restart(self._watcher, self.on_readable)
        except BaseException:
            forwarding.in_step = False
            forwarding.fail(TransferStopped("interrupted"))
            raise

    def _step(self, forwarding: Forwarding) -> None:
        try:
            count = self._receive(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            forwarding.fail(error.with_traceback(None))
            return
        if count:
            self._pass_on(forwarding, count)
        else:
            forwarding.end_of(self)

    def _pass_on(self, forwarding: Forwarding, count: int) -> None:
        data = self._buffer[:count]
        try:
            sent = self._send(data)
        except OSError:
            sent = 0  # the relay meets it again
        self.moved += sent
        self._left -= 1
        if sent < count or count == _hub.LARGE_READ or not self._left:
            forwarding.last(self, bytes(data[sent:]))
        else:
            forwarding.moved()

    def throw(self, error: Any) -> None:
        """Called by gevent before it closes or shuts down a socket that is waited for."""
        if self._forwarding is not None:  # abandoned, its watcher may still be at work
            self._forwarding.fail(_gevent.thrown(error))

    def abandon(self) -> None:
        """Move nothing any more, and tell nobody: in a forked child it is the parent's."""
        assert self._forwarding is not None  # it is one of those that are under way
        self._forwarding.abandon()
        self._forwarding = None
        self._watcher.callback = self._stop_abandoned
        self._receive = self._send = _do_nothing  # a handler of a signal may have forked in a step

    def _stop_abandoned(self, events: int = 1) -> None:
        """Called in the child, where the event loop is its own by now."""
        self._watcher.stop()


def _do_nothing(data: memoryview) -> int:
    """What an abandoned way receives and sends by."""
    raise BlockingIOError(errno.EAGAIN, "it is the parent's")
