"""The kinds of ends that bytes go from and to: sockets, regular files, and other objects.

Making one changes nothing: what must be drained or flushed first is so only when a transfer
begins. Every end can be used by its own methods (`take`, `give`), which is how bytes go where they
cannot be spliced. A socket or a regular file can besides be used by its fd.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

from gevent.ssl import SSLSocket

from gsplice import _gevent, _kernel, _shutdown
from gsplice._gevent import GeventSocket
from gsplice._pipe import Pipe

#: The most that TLS puts into a record (RFC 8446, 5.1). Of a longer ``send`` the peer may have got
#: some records when it is interrupted, and nobody could say how many.
_TLS_RECORD: Final = 16 * 1024


class ReadAhead(Protocol):
    """Bytes that have been read from a socket already, and whoever keeps them."""

    def take_buffered(self, limit: int | None) -> bytes:
        """Take what is kept, at most *limit* bytes, and read nothing from the socket."""

    def timed_out(self) -> None:
        """Take note that a read from the socket has timed out."""


class SocketSource:
    """A real stream socket, maybe with some of its bytes read ahead by someone."""

    __slots__ = ("ahead", "socket")

    def __init__(self, sock: GeventSocket, ahead: ReadAhead | None = None) -> None:
        self.socket = sock
        self.ahead = ahead

    def take_buffered(self, limit: int | None) -> bytes:
        """Take what has been read from the socket already, at most *limit* bytes."""
        return b"" if self.ahead is None else self.ahead.take_buffered(limit)

    def failed(self, error: OSError) -> Exception:
        """Return *error*, which was met in reading; who reads ahead knows, as if it had read."""
        if self.ahead is not None and isinstance(error, TimeoutError):
            self.ahead.timed_out()
        return error

    def take(self, limit: int) -> bytes:
        """Wait for bytes and take at most *limit* of them; none means end of file."""
        try:
            data: bytes = self.take_buffered(limit) or self.socket.recv(limit)
        except OSError as error:
            self.failed(error)
            raise
        return data


class FileSource:
    """A regular file, from its position on."""

    __slots__ = ("file",)

    def __init__(self, file: BinaryFile) -> None:
        self.file = file

    def take(self, limit: int) -> bytes:
        """Read at most *limit* bytes; none means end of file."""
        return self.file.read(limit) or b""


class ObjectSource:
    """Anything else that can be read, by its own method."""

    __slots__ = ("_read",)

    def __init__(self, read: Callable[[int], bytes | None]) -> None:
        self._read = read

    def take(self, limit: int) -> bytes:
        """Read at most *limit* bytes; none means end of file."""
        data: Any = self._read(limit)
        if data is None:  # a raw stream in non-blocking mode (io.RawIOBase.read)
            raise BlockingIOError(errno.EAGAIN, "the source is in non-blocking mode")
        if isinstance(data, str):
            raise TypeError("the source gave str: open it in binary mode")
        return bytes(data) if not isinstance(data, bytes) else data


class SocketSink:
    """A real stream socket, maybe with a buffered writer on it."""

    __slots__ = ("_raw", "socket", "writer")

    def __init__(self, sock: GeventSocket, writer: io.BufferedWriter | None = None) -> None:
        self.socket = sock
        self.writer = writer
        self._raw = _gevent.raw_socket(sock)

    def send(self, data: bytes | memoryview) -> int:
        """Send what there is room for now, and return how much; BlockingIOError for none."""
        count: int = self._raw.send(data)
        return count

    def fileno(self) -> int:
        """Return the fd, -1 once the socket is closed."""
        fd: int = self._raw.fileno()
        return fd

    def splice_from(self, pipe: Pipe) -> int:
        """Send what the pipe holds and there is room for; BlockingIOError where there is none."""
        return _kernel.splice(pipe.read_fd, self.fileno(), pipe.held)

    def catch_up(self, count: int) -> None:
        """Take note that *count* bytes went out by a call whose result an exception took away."""

    def send_file(self, file: int, offset: int, length: int) -> int:
        """Send at most *length* bytes of the file from *offset*; 0 at its end."""
        return _kernel.sendfile(self.fileno(), file, offset, length)

    def prepare(self) -> None:
        """Send what the writer has buffered: it was written first."""
        if self.writer is not None:
            self.writer.flush()

    def give(self, data: memoryview) -> int:
        """Send *data*, or the beginning of it, waiting for room; return how much."""
        sent: int = self.socket.send(data)
        return sent

    def sends_on(self) -> GeventSocket | None:
        """Return the socket in whose send queue bytes wait, if there is one."""
        return self.socket

    def settle(self) -> None:
        """A socket has no position to keep."""

    def end(self) -> None:
        """Tell the peer that nothing more will come."""
        _shutdown.half_close(self.socket)


class FileSink:
    """A regular file, from its position on."""

    __slots__ = ("_offset", "file")

    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        self._offset: int | None = None  # where the next byte goes, once the fd is used

    def send(self, data: bytes | memoryview) -> int:
        """Write *data* behind what was written; return how much."""
        offset = self._position()
        written = _kernel.pwrite(self.file.fileno(), data, offset)
        self._offset = offset + written
        return written

    def splice_from(self, pipe: Pipe) -> int:
        """Write what the pipe holds behind what was written; return how much."""
        self._offset = self._position()  # known to `catch_up`, where this call is interrupted
        written = _kernel.splice(pipe.read_fd, self.file.fileno(), pipe.held, self._offset)
        self._offset += written
        return written

    def catch_up(self, count: int) -> None:
        """Take note that *count* bytes went in by a call whose result an exception took away."""
        self._offset = self._position() + count

    def appends(self) -> bool:
        """Whether the file was opened to append."""
        return _kernel.appends(self.file.fileno())

    def _position(self) -> int:
        return self.file.tell() if self._offset is None else self._offset

    def prepare(self) -> None:
        """Write what the file object has buffered: it was written first."""
        self.file.flush()

    def give(self, data: memoryview) -> int:
        """Write *data*, or the beginning of it; return how much."""
        return self.file.write(data)

    def sends_on(self) -> GeventSocket | None:
        """Return the socket in whose send queue bytes wait: there is none."""
        return None

    def settle(self) -> None:
        """Leave the file's position behind the last byte, and nothing in its buffer."""
        if self._offset is None:
            self.file.flush()
        elif self.appends():
            self.file.seek(0, os.SEEK_END)
        else:
            self.file.seek(self._offset)

    def end(self) -> None:
        """A file needs no word of it."""


class ObjectSink:
    """Anything else that can be written, by its own method."""

    __slots__ = ("_is_tls", "_may_be_short", "_object", "_write")

    def __init__(self, target: Any, write: Callable[[memoryview], Any]) -> None:
        self._object = target
        self._write = write
        self._is_tls = isinstance(target, SSLSocket)
        # Others return what they like: a filter, say, how much it has passed on.
        self._may_be_short = isinstance(target, GeventSocket | io.RawIOBase) and (
            getattr(write, "__name__", "") != "sendall"
        )

    def prepare(self) -> None:
        """Nothing was buffered by gsplice."""

    def give(self, data: memoryview) -> int:
        """Write *data*, or the beginning of it; return how much."""
        if not self._may_be_short:
            self._write(data)
            return len(data)
        written = self._write(data[:_TLS_RECORD] if self._is_tls else data)
        if written is None:  # a raw stream in non-blocking mode (io.RawIOBase.write)
            raise BlockingIOError(errno.EAGAIN, "the sink is in non-blocking mode")
        if not 0 <= written <= len(data):
            raise ValueError(f"the sink says that it took {written} of {len(data)} bytes")
        return int(written)

    def sends_on(self) -> GeventSocket | None:
        """Return the socket in whose send queue bytes wait, if there is one."""
        return self._object if isinstance(self._object, GeventSocket) else None

    def settle(self) -> None:
        """What the object buffers is its own affair, as after its `write`."""

    def end(self) -> None:
        """Tell the peer that nothing more will come, where the object is a socket."""
        if (sock := self.sends_on()) is not None:
            _shutdown.half_close(sock)


BinaryFile: TypeAlias = io.FileIO | io.BufferedReader | io.BufferedWriter | io.BufferedRandom
Source: TypeAlias = SocketSource | FileSource | ObjectSource
Sink: TypeAlias = SocketSink | FileSink | ObjectSink
