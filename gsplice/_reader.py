"""What a buffered reader on a socket has read already, and the caller has not.

Those bytes come before the socket's own. ``BufferedReader`` has no call that gives just them:
``peek()`` reads from the socket when nothing is buffered, and would block. So for the length of
one ``peek()``, in which nothing else can run, the raw stream is given a socket that has nothing.
"""

from __future__ import annotations

import errno
import io
from socket import SocketIO
from typing import Any, Final

from gsplice._gevent import GeventSocket


class _Silent:
    """A socket that has nothing to read now; `SocketIO` turns that into None."""

    def recv_into(self, buffer: Any) -> int:
        raise BlockingIOError(errno.EAGAIN, "nothing is buffered")


_SILENT: Final = _Silent()


def under(raw: Any) -> Any:
    """Return what the raw stream *raw* reads from, or writes to: a socket, mostly."""
    return raw._sock


def socket_of(raw: Any) -> GeventSocket | None:
    """Return the gevent socket that the raw stream *raw* does nothing but read.

    A stream on which a read has timed out refuses all further ones, so its socket is not used.
    """
    if type(raw) is not SocketIO:
        return None
    state: Any = raw
    if state._timeout_occurred or not isinstance(state._sock, GeventSocket):
        return None
    return state._sock


class Reader:
    """A raw stream on a socket, or a buffered reader on one."""

    __slots__ = ("_raw", "_reader")

    def __init__(self, raw: SocketIO, reader: io.BufferedReader | None) -> None:
        self._raw: Any = raw
        self._reader = reader

    def take_buffered(self, limit: int | None) -> bytes:
        """Take what has been buffered, at most *limit* bytes, without reading from the socket.

        Raises RuntimeError where another greenlet is in a call of the reader, as `read` would.
        """
        if self._reader is None:
            return b""
        raw = self._raw
        sock, raw._sock = raw._sock, _SILENT
        try:
            length = len(self._reader.peek())
            if limit is not None:
                length = min(length, limit)
            return self._reader.read(length) if length else b""
        finally:
            raw._sock = sock

    def timed_out(self) -> None:
        """Have the stream refuse all further reads, as after one of its own has timed out."""
        self._raw._timeout_occurred = True
