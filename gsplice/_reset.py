"""How a connection is cut short so that its peer can tell: what was sent arrives, then a reset.

An end of file says that a stream is whole, so it must not be what a peer gets where the rest is
missing. A reset says it. But the kernel throws away what it has still to send when it sends one, so
that has to arrive first; what has arrived can be read before the reset is met, on Linux.

Invariant: a socket is closed with a reset as soon as its peer has acknowledged all that was sent,
the connection is gone, or the peer has acknowledged nothing for `PATIENCE` seconds; each by itself.
When none is left, whom it concerns is told, once.

Nothing tells that a send queue is empty (a socket is writable while two thirds of it are full), so
a timer looks, in steps that grow.

In a forked child it goes on: a peer is told when the last copy of a socket is closed, and the
child's would outlast the parent's.

Unix sockets know no reset. What was sent is in the peer's own queue already, so they are closed at
once: where something was left unread here the peer gets ECONNRESET behind it (unix(7)), else an end
of file, and nothing can be done about that.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from gevent import socket

from gsplice import _gevent, _kernel
from gsplice._direction import TransferStopped
from gsplice._gevent import GeventSocket
from gsplice.relay import Relay

#: Seconds for which a peer may acknowledge nothing of what it is still to get.
PATIENCE: Final = 1.0
#: Seconds until the second look, and between two looks at the most. The first one is at once, and
#: finds nothing to wait for where the peer reads and is near.
_FIRST_STEP: Final = 0.005
_LAST_STEP: Final = 0.1

#: Have ``close`` send a reset, and keep nothing (socket(7)).
_NO_LINGER: Final = struct.pack("ii", 1, 0)
#: The first byte of struct tcp_info, of a connection that is no more (linux/tcp.h, tcp_states.h).
_TCP_CLOSE: Final = b"\x07"


def cut_short(relay: Relay, a: GeventSocket, b: GeventSocket) -> list[GeventSocket]:
    """Return those of the ends of a *relay* that must not take what they have got for all.

    They are both where the relay failed: one end was reset, say, or has vanished, and nobody knows
    what else it would have said. A session that was silent for its idle time-out, or that was
    stopped, is closed as ever: nothing says that anything is missing, and an end of file is how
    such a session ends. But where bytes were still to be delivered, their sink is cut short.
    """
    error = relay.exception
    # What keepalive says is a TimeoutError as well, with the kernel's errno.
    idle = isinstance(error, TimeoutError) and error.errno is None
    failed = not (error is None or idle or isinstance(error, TransferStopped))
    legs = ((relay.up, b), (relay.down, a))
    return [sink for leg, sink in legs if failed or leg.undelivered]


class Reset:
    """Closes *sockets* with a reset, and calls *done* in the hub when all are closed."""

    __slots__ = ("_done", "_left", "_step", "_timer")

    def __init__(self, sockets: Iterable[GeventSocket], done: Callable[[], None]) -> None:
        now = time.monotonic()
        #: Each socket, what it had still to send at the last look, and since when that is so.
        self._left: dict[GeventSocket, tuple[int, float]] = dict.fromkeys(sockets, (-1, now))
        self._done: Callable[[], None] | None = done
        self._step = _FIRST_STEP
        self._timer: Any = None  # while some are left

    def start(self) -> None:
        """Close what has nothing to send, now, and the others in time."""
        now = time.monotonic()
        for sock in list(self._left):
            if not self._has_to_wait(sock, now):
                self._close(sock)
        if not self._left:
            self._end()
            return
        self._timer = _gevent.timer(self._step)
        self._timer.start(self._look, update=True)
        self._step = min(2 * self._step, _LAST_STEP)

    def stop(self) -> None:
        """Close all that are left, now; after the end it does nothing."""
        if self._left:
            self._timer.close()
            for sock in list(self._left):
                self._close(sock)
            self._end()

    def _look(self) -> None:
        self._timer.close()
        self.start()

    def _has_to_wait(self, sock: GeventSocket, now: float) -> bool:
        unsent = _kernel.unacknowledged(sock.fileno()) if _has_resets(sock) else 0
        if not unsent or _has_gone(sock):
            return False
        seen, since = self._left[sock]
        if unsent != seen:
            self._left[sock] = unsent, now
            return True
        return now - since < PATIENCE

    def _close(self, sock: GeventSocket) -> None:
        del self._left[sock]
        # Where nobody knows what is still to be sent, the kernel goes on with it after `close`.
        if _has_resets(sock) and _kernel.unacknowledged(sock.fileno()) is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        sock.close()

    def _end(self) -> None:
        done, self._done = self._done, None
        assert done is not None
        done()


def _has_resets(sock: GeventSocket) -> bool:
    return _gevent.socket_family(sock) in _gevent.TCP_FAMILIES


def _has_gone(sock: GeventSocket) -> bool:
    """Return whether *sock*'s connection is no more, whatever its queue still counts."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE
