"""What stands at either side of a way: a socket and its peer, or a pair of regular files.

Invariant: an end says what a transfer is given as its source and as its sink, and who else is at
work there: a writer that feeds the source, a reader that takes and checks what the sink was given.
Whoever wants what is left in a source asks `rest`, so bytes that a ``makefile("rb")`` has buffered
are not forgotten.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from typing import Any, BinaryIO, TypeAlias

from gevent import socket
from oracle import GONE, LARGEST_PIECE, Counts, Cursor, Reader, Stream, Writer
from peers import connected, connected_tls, reset, waits_to_read, waits_to_write

from gsplice._shutdown import half_close

#: What an end may be; those of the second line have no peer that could stall, reset or half-close.
SOCKET_KINDS = ("tcp", "unix", "tcp6", "tls")
FILE_KINDS = ("file", "raw file")

#: What the kernel keeps for a socket of which little is wanted. With windows of less than a few
#: segments, which are large on loopback, TCP would live by its timers.
_SMALL_TCP = 256 * 1024
_SMALL_UNIX = 8 * 1024


class SocketEnd:
    """A socket that transfers are given, and its peer's."""

    is_file = False

    def __init__(self, kind: str, is_tight: bool) -> None:
        self.kind = kind
        # Chosen before there are bytes: of what is queued beyond a buffer that shrinks, TCP throws
        # the acknowledgements away, and both sides sit their timers out.
        size = (_SMALL_UNIX if kind == "unix" else _SMALL_TCP) if is_tight else None
        make = connected_tls if kind == "tls" else connected
        self.peer, self.socket = make(buffers=size) if kind == "tls" else make(kind, buffers=size)
        self._ahead: Any = None  # a buffered reader on the socket
        self._is_deaf = False  # shut down for reading

    @property
    def source(self) -> Any:
        """What a transfer reads from."""
        return self._ahead or self.socket

    @property
    def sink(self) -> Any:
        """What a transfer writes to."""
        return self.socket

    def writer(self, stream: Stream, counts: Counts) -> Writer:
        """Return the peer as it sends *stream*."""
        return Writer(self.peer, stream, counts)

    def reader(self, cursor: Cursor, counts: Counts) -> Reader:
        """Return the peer as it receives what follows *cursor*."""
        return Reader(self.peer, cursor, counts)

    def read_ahead(self, size: int) -> bool:
        """Have a reader buffer at most *size* bytes, as they come; return whether it has any."""
        if self.socket.fileno() < 0:
            return False
        if self._ahead is None:
            self._ahead = self.socket.makefile("rb", buffering=size)
        timeout = self.socket.gettimeout()
        self.socket.settimeout(0.0)
        try:
            return bool(self._ahead.peek(1))
        except GONE:  # SSLWantReadError, where there is nothing, is one as well
            return False
        finally:
            self.socket.settimeout(timeout)

    def look_after_sink(self) -> None:
        """A socket has no position."""

    def look_after_source(self) -> None:
        """Do without a reader that refuses to read any more, since a read of it has timed out."""
        if self._ahead is not None and self._ahead.raw._timeout_occurred:
            with contextlib.suppress(OSError):  # it refuses, unless there is something left in it
                assert not self._ahead.peek(1), "a read has timed out that had bytes to give"
            self._drop_reader()

    def position(self) -> int | None:
        """Return how many bytes have left the source, where that can be told at once."""
        return None

    def settimeout(self, seconds: float | None) -> None:
        """Bound each wait for the socket."""
        if self.socket.fileno() >= 0:
            self.socket.settimeout(seconds)

    def end_writing(self) -> None:
        """Tell the peer that nothing more will come."""
        if self.socket.fileno() >= 0:
            with contextlib.suppress(OSError):  # shut down before, or its peer has gone
                half_close(self.socket)

    def rest(self) -> bytes:
        """Return what can still be read from the source, up to its end or an error."""
        data = bytearray()
        try:
            self.socket.settimeout(None)
            read = self.socket.recv if self._ahead is None else self._ahead.read1
            while piece := read(65536):
                data += piece
        except GONE:
            self._discard_all()
        if self._is_deaf and self.socket.fileno() >= 0:
            # What comes from now on fills the kernel's buffer, and then its sender waits for ever.
            reset(self.socket)
        return bytes(data)

    def _discard_all(self) -> None:
        """Let a peer finish whose TLS session has failed here: nobody can read what it sends."""
        with contextlib.suppress(OSError):
            while socket.socket.recv(self.socket, 65536):
                pass

    def check_is_free(self) -> None:
        """Check that no transfer has left anything behind at the socket."""
        assert not waits_to_read(self.socket), "a transfer that is over waits for its source"
        assert not waits_to_write(self.socket), "a transfer that is over waits for its sink"

    def reset_peer(self) -> None:
        """Have the peer send a RST, or what unix sockets have in its place."""
        if self.peer.fileno() >= 0:
            reset(self.peer)

    def shut_down(self, how: int) -> None:
        """Shut the socket down, in one direction or both."""
        self._is_deaf |= how != socket.SHUT_WR
        with contextlib.suppress(OSError):  # it is not connected any more
            socket.socket.shutdown(self.socket, how)  # SSLSocket's own would drop the session

    def is_open(self) -> bool:
        """Whether the socket has not been closed."""
        return self.socket.fileno() >= 0

    def close(self) -> None:
        """Close the socket, with what is left in a reader."""
        self._drop_reader()
        self.socket.close()

    def close_all(self) -> None:
        """Leave nothing behind."""
        self.close()
        self.peer.close()

    def _drop_reader(self) -> None:
        reader, self._ahead = self._ahead, None
        if reader is not None:
            reader.raw.close()  # its own waits for whoever reads


class FileEnd:
    """A regular file to read, and another one to write; "raw file" has no buffers, and appends."""

    is_file = True

    def __init__(self, kind: str) -> None:
        self.kind = kind
        is_raw = kind == "raw file"
        buffering = 0 if is_raw else -1
        self._written_by, self.source = _file("rb", buffering)
        self._read_by, self.sink = _file("ab" if is_raw else "wb", buffering)

    def writer(self, stream: Stream, counts: Counts) -> FileWriter:
        """Return whoever makes the file that is read, and makes it longer."""
        return FileWriter(self._written_by, stream, counts)

    def reader(self, cursor: Cursor, counts: Counts) -> FileReader:
        """Return whoever looks at the file that is written."""
        return FileReader(self._read_by, cursor, counts)

    def read_ahead(self, size: int) -> bool:
        """A file's own buffer is part of its position."""
        return False

    def look_after_source(self) -> None:
        """A file that was read can be read further."""

    def look_after_sink(self) -> None:
        """Check where the file that was written stands: behind its last byte."""
        if not self.sink.closed:
            assert self.sink.tell() == os.fstat(self._read_by).st_size, "a file's position is wrong"

    def position(self) -> int | None:
        """Return how many bytes have left the source."""
        return None if self.source.closed else self.source.tell()

    def settimeout(self, seconds: float | None) -> None:
        """A file never has one wait."""

    def end_writing(self) -> None:
        """A file needs no word of it."""

    def rest(self) -> bytes:
        """Return what has not been read."""
        return b"" if self.source.closed else self.source.read()

    def check_is_free(self) -> None:
        """Nothing waits for a file."""

    def reset_peer(self) -> None:
        """A file has no peer."""

    def shut_down(self, how: int) -> None:
        """A file cannot be shut down."""

    def is_open(self) -> bool:
        """Whether the files have not been closed."""
        return not self.source.closed

    def close(self) -> None:
        """Close both files."""
        self.source.close()
        self.sink.close()

    def close_all(self) -> None:
        """Leave nothing behind."""
        self.close()
        for name in ("_written_by", "_read_by"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


End: TypeAlias = SocketEnd | FileEnd


def make_end(kind: str, is_tight: bool) -> End:
    """Return a new end of this kind; one that is tight has its kernel keep little."""
    return FileEnd(kind) if kind in FILE_KINDS else SocketEnd(kind, is_tight)


class FileWriter:
    """What a `Writer` is to a socket; it is through with each order at once."""

    def __init__(self, fd: int, stream: Stream, counts: Counts) -> None:
        self._fd = fd
        self._stream = stream
        self._counts = counts
        self.is_ending = False

    def write(self, sizes: Iterable[int]) -> None:
        """Make the file so much longer, at a time."""
        for size in () if self.is_ending else sizes:
            self._append(size)

    def drip(self, times: int, size: int) -> None:
        """Make it longer in small pieces."""
        self.write([size] * times)

    def send_urgent(self) -> None:
        """There is no such thing in a file."""

    def pause(self, seconds: float) -> None:
        """Nobody waits for a file."""

    def end(self) -> None:
        """Leave the file as long as it is."""
        self.is_ending = True

    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.is_ending

    def close(self) -> None:
        """There is nothing under way."""

    def _append(self, size: int) -> None:
        while size:
            piece = self._stream.piece(self._stream.sent, min(size, LARGEST_PIECE))
            count = os.write(self._fd, piece)
            self._stream.sent += count
            self._counts["write"] += 1
            size -= count


class FileReader:
    """What a `Reader` is to a socket; a file is never stalled."""

    has_met_end = True
    error: Exception | None = None

    def __init__(self, fd: int, cursor: Cursor, counts: Counts) -> None:
        self._fd = fd
        self._counts = counts
        self._checked = 0
        self.cursor = cursor

    @property
    def received(self) -> int:
        """How many bytes the file has."""
        return os.fstat(self._fd).st_size

    def allow(self, count: float, piece: int = LARGEST_PIECE) -> None:
        """Who writes a file waits for nobody."""

    def check(self) -> None:
        """Check what has been written since the last time."""
        while data := os.pread(self._fd, LARGEST_PIECE, self._checked):
            self._checked += len(data)
            self._counts["read"] += 1
            self.cursor.take(data)

    def has_ended(self) -> bool:
        """Whether everything has been read."""
        return True

    def close(self) -> None:
        """There is nothing under way."""


def _file(mode: str, buffering: int) -> tuple[int, BinaryIO]:
    """Return a new file twice: an fd to be read and written by, and opened in *mode*."""
    fd, path = tempfile.mkstemp(prefix="gsplice-model-")
    try:
        return fd, open(path, mode, buffering)  # type: ignore[return-value]
    finally:
        os.unlink(path)
