"""HTTP/1.1's chunked transfer coding as a sink (RFC 9112, 7.1).

A chunk begins with its size, so that has to be known before the first byte goes out. It is: what
was spliced waits in a pipe, what was copied in a buffer, and a file has a length. Of a file that
the kernel makes up as it is read (procfs, sysfs) that is 0, or a page: its end is believed only
when a read confirms it, and else its bytes are read first.

Invariant: `_frame` is what has to be sent before the next byte of the body, and `_open` is how
many bytes of the chunk that was announced last are still to come. The line break behind a chunk
goes out with whatever follows it.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from gsplice import _kernel
from gsplice._endpoint import SocketSink
from gsplice._gevent import GeventSocket
from gsplice._pipe import Pipe

#: The empty chunk that ends a body, and that no trailer follows it.
LAST_CHUNK: Final = b"0\r\n\r\n"
_LINE_BREAK: Final = b"\r\n"
_MORE_FOLLOWS: Final = getattr(socket, "MSG_MORE", 0)


class ChunkedSink(SocketSink):
    """A real stream socket to which bytes go in chunks; `LAST_CHUNK` is its owner's to send.

    `framing` is the number of bytes that went out besides the body's.
    """

    __slots__ = ("_frame", "_open", "framing")

    def __init__(self, sock: GeventSocket) -> None:
        super().__init__(sock)
        self._frame = b""
        self._open = 0
        self.framing = 0

    def end_chunk(self) -> None:
        """Send the line break behind the last chunk; it is held up until more is sent behind it."""
        if self._open:
            raise _became_shorter()
        while self._frame:
            self._frame_went(self.socket.send(self._frame, _MORE_FOLLOWS))

    def send(self, data: bytes | memoryview) -> int:
        """Send what there is room for now, and return how much; BlockingIOError for none."""
        self._announce(len(data))
        data = data[: self._open]
        if not self._frame:
            return self._sent(self._raw.send(data))
        framed = len(self._frame)
        count: int = self._raw.sendmsg([self._frame, data])
        self._frame_went(min(count, framed))
        if count < framed:
            raise BlockingIOError(errno.EAGAIN, "there is no room for the body yet")
        return self._sent(count - framed)

    def splice_from(self, pipe: Pipe) -> int:
        """Send what the pipe holds and there is room for; BlockingIOError where there is none."""
        self._announce(pipe.held)
        self._send_frame()
        return self._sent(super().splice_from(pipe))

    def catch_up(self, count: int) -> None:
        """Take note that *count* bytes went out by a call whose result an exception took away."""
        self._sent(count)

    def send_file(self, file: int, offset: int, length: int) -> int:
        """Send at most *length* bytes of the file from *offset*; 0 at its end.

        :raises OSError: EINVAL, before anything is announced, where its size is not known.
        """
        if not self._open:
            length = _length_to_end(file, offset, length)
            if not length:
                return 0
            self._announce(length)
        self._send_frame()
        sent = self._sent(_kernel.sendfile(self.fileno(), file, offset, self._open))
        if not sent:
            raise _became_shorter()
        return sent

    def give(self, data: memoryview) -> int:
        """Send *data* as a chunk, waiting for room; return how much that is."""
        self._announce(len(data))
        self.socket.sendall(b"".join((self._frame, data)))
        self._frame_went(len(self._frame))
        return self._sent(len(data))

    def _announce(self, length: int) -> None:
        """Begin a chunk of *length* bytes, unless one is under way."""
        if not self._open:
            self._open = length
            self._frame += b"%x\r\n" % length

    def _send_frame(self) -> None:
        while self._frame:
            self._frame_went(self._raw.send(self._frame, _MORE_FOLLOWS))

    def _frame_went(self, count: int) -> None:
        self.framing += count
        self._frame = self._frame[count:]

    def _sent(self, count: int) -> int:
        self._open -= count
        if count and not self._open:
            self._frame = _LINE_BREAK
        return count


def _length_to_end(file: int, offset: int, length: int) -> int:
    """Return how many bytes the file has from *offset* on, *length* where they are more."""
    size = _kernel.file_size(file)
    left = max(size - offset, 0)
    if length < left:
        return length
    has_byte = _kernel.pread(file, 1, size - 1 if left else offset)
    if bool(has_byte) is not bool(left):
        raise OSError(errno.EINVAL, "the file is not as long as stat says")
    return left


def _became_shorter() -> OSError:
    return OSError(errno.EIO, "the file became shorter while it was sent")
