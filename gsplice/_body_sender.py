"""A message's body on its way out: as it is, or in chunks, and what of it went out.

The servers and clients that gsplice takes over write the head of a message, and account for its
body, each in its own way. What is between is the same.

Invariant: `moved` and `framing` are what the socket has got, also where `send` raises.
"""

from __future__ import annotations

from typing import Any

from gsplice._chunked import ChunkedSink
from gsplice._endpoint import FileSource
from gsplice._gevent import GeventSocket
from gsplice._sendfile import send_at_once
from gsplice.transfer import Transfer


class BodySender:
    """Sends a body to a socket; in chunks, the last and empty one is its owner's to send at once.

    `moved` is the number of its bytes that went out, `framing` that of the bytes around them, and
    `undelivered` what was taken from it and did not go out.
    """

    __slots__ = ("_chunks", "_socket", "moved", "undelivered")

    def __init__(self, sock: GeventSocket, in_chunks: bool) -> None:
        self._socket = sock
        self._chunks = ChunkedSink(sock) if in_chunks else None
        self.moved = 0
        self.undelivered = b""

    @property
    def framing(self) -> int:
        """Bytes that went out besides the body's."""
        return 0 if self._chunks is None else self._chunks.framing

    def send(self, body: Any, count: int | None = None) -> None:
        """Send what is left of *body*, or *count* bytes of it."""
        if count and self._chunks is None and isinstance(body, FileSource):
            self.moved = send_at_once(body, body.file.tell(), self._socket, count)
            count -= self.moved
            if not count:
                return
        transfer = Transfer(body, self._chunks or self._socket, count)
        try:
            transfer.run()
        finally:
            self.moved += transfer.moved
            self.undelivered = transfer.undelivered
            del transfer  # what is raised refers to this frame, and the transfer to what is raised
        if self._chunks is not None:
            self._chunks.end_chunk()
