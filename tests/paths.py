"""The paths that bytes take through gsplice: what the contract is tried on (`test_contract`).

A path is a kind of source, a kind of sink and a mode. A kind makes an end: what the transfer is
given, the socket under it if there is one, and how its peer feeds or drains it. So a scenario is
written once, for all paths that have what it is about.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path as Directory
from typing import Any, NamedTuple

from gevent import socket, ssl
from peers import MODES, Pairs, Spawn, pattern, receive

from gsplice._shutdown import half_close  # Python itself has no such call for TLS

#: What a writer has buffered, and what a file holds, when a transfer into it begins.
BEFORE = pattern(1500, 77)


class SourceEnd:
    """A source: a socket or something on one, which its peer feeds."""

    ahead = 0
    """Bytes that were read from the socket before a transfer began."""

    def __init__(self, thing: Any, sock: socket.socket, peer: socket.socket) -> None:
        self.thing = thing
        self.socket = sock
        self.peer = peer

    def feed(self, spawn: Spawn, data: bytes, ends: bool = True) -> None:
        """Have *data* come, and the end of file behind it."""
        spawn(self._send, data, ends)

    def _send(self, data: bytes, ends: bool) -> None:
        try:
            self.peer.sendall(data)
            if ends:
                half_close(self.peer)
        except OSError:
            pass  # the scenario is over, or has put an end to it

    def rest(self, count: int) -> bytes:
        """Take the *count* bytes that have not been taken."""
        self.socket.settimeout(None)
        return receive(self.socket, count)

    def close(self) -> None:
        """Close what the transfer was given."""
        self.thing.close()
        self.socket.close()


class ReaderEnd(SourceEnd):
    """A ``makefile("rb")`` reader."""

    def rest(self, count: int) -> bytes:
        """Take the *count* bytes that have not been taken."""
        data: bytes = self.thing.read(count)
        return data


class AheadReaderEnd(ReaderEnd):
    """A reader that has some of the bytes in its buffer when the transfer begins."""

    def feed(self, spawn: Spawn, data: bytes, ends: bool = True) -> None:
        """Have *data* come, the first of it into the buffer."""
        self.peer.sendall(data[:2000])
        if data:
            self.ahead = len(self.thing.peek(1))
        super().feed(spawn, data[2000:], ends)


class ResponseEnd(ReaderEnd):
    """A response of ``http.client`` that ends with its connection."""

    def close(self) -> None:
        """Close what its bytes come from: a response that was closed is one at its end."""
        self.socket._real_close()


class FileSourceEnd(SourceEnd):
    """Something that has all its bytes from the beginning."""

    ahead = 0

    def __init__(self, thing: Any, write: Callable[[bytes], Any]) -> None:
        self.thing = thing
        self._write = write

    def feed(self, spawn: Spawn, data: bytes, ends: bool = True) -> None:
        """Put *data* there."""
        self._write(data)

    def rest(self, count: int) -> bytes:
        """Take the *count* bytes that have not been taken."""
        data: bytes = self.thing.read(count)
        return data

    def close(self) -> None:
        """Close it."""
        self.thing.close()


class SinkEnd:
    """A sink: a socket or something on one, which its peer drains."""

    before = b""

    def __init__(self, thing: Any, sock: socket.socket, peer: socket.socket) -> None:
        self.thing = thing
        self.socket = sock
        self.peer = peer

    def drain(self, count: int) -> bytes:
        """Return the first *count* bytes that arrive of a transfer."""
        arrived = receive(self.peer, len(self.before) + count)
        assert arrived.startswith(self.before)
        return arrived[len(self.before) :]

    def end(self) -> None:
        """Send the end of file behind what was sent."""
        half_close(self.socket)

    def drain_all(self) -> bytes:
        """Return what arrives up to the end of file."""
        return receive(self.peer)[len(self.before) :]

    def cut_and_drain(self) -> bytes:
        """Return all that arrives of what has been sent; of TLS, nothing that is half a record."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)
        return self.drain_all()

    def close(self) -> None:
        """Close what the transfer was given."""
        self.thing.close()
        self.socket.close()


class WriterEnd(SinkEnd):
    """A ``makefile("wb")`` writer, in which something waits to be written."""

    before = BEFORE

    def drain(self, count: int) -> bytes:
        """Return the first *count* bytes that arrive of a transfer."""
        if isinstance(self.socket, ssl.SSLSocket):
            self.thing.flush()  # its transfers go through its own buffer
        return super().drain(count)


class FileSinkEnd(SinkEnd):
    """Something that shows what it has got, and always takes more."""

    def __init__(self, thing: Any, content: Callable[[], bytes], before: bytes = b"") -> None:
        self.thing = thing
        self.before = before
        self._content = content

    def drain(self, count: int) -> bytes:
        """Return the first *count* bytes that have come."""
        return self.drain_all()[:count]

    def end(self) -> None:
        """It needs no word of it."""

    def drain_all(self) -> bytes:
        """Return what has come."""
        content = self._content()
        assert content.startswith(self.before)
        return content[len(self.before) :]

    def cut_and_drain(self) -> bytes:
        """Return what has come."""
        return self.drain_all()

    def close(self) -> None:
        """Close it."""
        self.thing.close()


# Ends of other kinds than gsplice's own.


class OwnMethods(socket.socket):
    """Does something to the bytes: is never spliced, though it is a TCP socket."""

    def recv(self, *args: Any) -> bytes:
        return super().recv(*args)

    def send(self, *args: Any, **kwargs: Any) -> int:
        sent: int = super().send(*args, **kwargs)
        return sent


def _own(sock: socket.socket) -> OwnMethods:
    family, kind, protocol = sock.family, sock.type, sock.proto
    return OwnMethods(family, kind, protocol, fileno=sock.detach())


# The kinds. Each makes an end, and closes it behind its ``yield``.

MakeEnd = Callable[[Pairs, Directory], Iterator[Any]]


def _socket_source(kind: str, own: bool = False) -> MakeEnd:
    def make(pairs: Pairs, directory: Directory) -> Iterator[SourceEnd]:
        peer, sock = pairs(kind)
        with _own(sock) if own else sock as sock:
            yield SourceEnd(sock, sock, peer)

    return make


def _reader(kind: str, make_end: type[ReaderEnd] = ReaderEnd) -> MakeEnd:
    def make(pairs: Pairs, directory: Directory) -> Iterator[SourceEnd]:
        peer, sock = pairs(kind)
        with sock.makefile("rb") as reader:
            yield make_end(reader, sock, peer)

    return make


def _response(pairs: Pairs, directory: Directory) -> Iterator[ResponseEnd]:
    peer, sock = pairs("tcp")
    peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    with HTTPResponse(sock) as response:
        response.begin()
        yield ResponseEnd(response, sock, peer)


def _file_source(pairs: Pairs, directory: Directory) -> Iterator[SourceEnd]:
    path = directory / "source"
    path.write_bytes(BEFORE)
    with open(path, "rb") as file, open(path, "ab", buffering=0) as other:
        file.seek(len(BEFORE))
        yield FileSourceEnd(file, other.write)


def _object_source(pairs: Pairs, directory: Directory) -> Iterator[SourceEnd]:
    stream = io.BytesIO()

    def write(data: bytes) -> None:
        stream.write(data)
        stream.seek(0)

    yield FileSourceEnd(stream, write)


def _socket_sink(kind: str, own: bool = False) -> MakeEnd:
    def make(pairs: Pairs, directory: Directory) -> Iterator[SinkEnd]:
        sock, peer = pairs(kind)
        with _own(sock) if own else sock as sock:
            yield SinkEnd(sock, sock, peer)

    return make


def _writer(kind: str) -> MakeEnd:
    def make(pairs: Pairs, directory: Directory) -> Iterator[SinkEnd]:
        sock, peer = pairs(kind)
        with sock.makefile("wb") as writer:
            writer.write(BEFORE)
            yield WriterEnd(writer, sock, peer)

    return make


def _file_sink(mode: str) -> MakeEnd:
    def make(pairs: Pairs, directory: Directory) -> Iterator[SinkEnd]:
        path = directory / "sink"
        path.write_bytes(BEFORE)
        with open(path, mode) as file:
            file.seek(0, io.SEEK_END)
            yield FileSinkEnd(file, path.read_bytes, BEFORE)

    return make


def _object_sink(pairs: Pairs, directory: Directory) -> Iterator[SinkEnd]:
    stream = io.BytesIO()
    yield FileSinkEnd(stream, stream.getvalue)


class Kind(NamedTuple):
    """A kind of end, and what may be expected of it."""

    make: MakeEnd
    is_live: bool = True
    """It has a peer, which may be silent, stalled or gone."""
    is_fd: bool = True
    """Its bytes are those of its fd, so that they can be spliced."""
    is_socket: bool = False
    """The transfer is given the socket itself."""
    is_file: bool = False


SOURCES: dict[str, Kind] = {
    "TCP": Kind(_socket_source("tcp"), is_socket=True),
    "TCP6": Kind(_socket_source("tcp6"), is_socket=True),
    "unix": Kind(_socket_source("unix"), is_socket=True),
    "TLS": Kind(_socket_source("tls"), is_socket=True, is_fd=False),
    "own recv": Kind(_socket_source("tcp", own=True), is_socket=True, is_fd=False),
    "TCP6, own recv": Kind(_socket_source("tcp6", own=True), is_socket=True, is_fd=False),
    "reader": Kind(_reader("tcp")),
    "reader with bytes": Kind(_reader("tcp", AheadReaderEnd)),
    "TLS reader": Kind(_reader("tls"), is_fd=False),
    "response": Kind(_response),
    "file": Kind(_file_source, is_live=False, is_file=True),
    "object": Kind(_object_source, is_live=False, is_fd=False),
}
SINKS: dict[str, Kind] = {
    "TCP": Kind(_socket_sink("tcp"), is_socket=True),
    "TCP6": Kind(_socket_sink("tcp6"), is_socket=True),
    "unix": Kind(_socket_sink("unix"), is_socket=True),
    "TLS": Kind(_socket_sink("tls"), is_socket=True, is_fd=False),
    "own send": Kind(_socket_sink("tcp", own=True), is_socket=True, is_fd=False),
    "writer": Kind(_writer("tcp")),
    "file": Kind(_file_sink("r+b"), is_live=False, is_file=True),
    "file to append to": Kind(_file_sink("ab"), is_live=False, is_fd=False, is_file=True),
    "object": Kind(_object_sink, is_live=False, is_fd=False),
}
#: Each source, each sink and each engine, with each that behaves in another way beside it.
PAIRS = (
    *(("TCP", "TCP"), ("TCP6", "TCP6"), ("unix", "unix"), ("TCP", "unix"), ("unix", "TCP")),
    *(("reader", "writer"), ("reader with bytes", "TCP"), ("reader with bytes", "object")),
    *(("TCP", "file"), ("unix", "file"), ("TCP", "file to append to")),
    *(("file", "TCP"), ("file", "TCP6"), ("file", "unix"), ("file", "writer")),
    *(("TLS", "TLS"), ("TLS", "TCP"), ("TCP", "TLS"), ("TLS", "file"), ("file", "TLS")),
    *(("TLS reader", "TCP"), ("own recv", "TCP"), ("unix", "own send"), ("TCP", "object")),
    *(("object", "TCP"), ("object", "TLS"), ("file", "file")),
    *(("TCP6", "file"), ("TCP6", "own send"), ("TCP6, own recv", "TCP6"), ("reader", "file")),
    *(("unix", "TLS"), ("response", "TCP"), ("response", "file")),
)


class Path(NamedTuple):
    """A source, a sink and a mode."""

    source: str
    sink: str
    mode: str

    @property
    def splices(self) -> bool:
        """Whether the bytes can go kernel to kernel."""
        source, sink = SOURCES[self.source], SINKS[self.sink]
        from_file_to_file = source.is_file and sink.is_file
        return self.mode != "copy" and source.is_fd and sink.is_fd and not from_file_to_file

    def __str__(self) -> str:
        return f"{self.source} to {self.sink}, {self.mode}"


def _modes(source: str, sink: str) -> tuple[str, ...]:
    """Return the modes in which this pair goes different ways."""
    return MODES if Path(source, sink, "splice").splices else ("auto",)


PATHS = [Path(*pair, mode) for pair in PAIRS for mode in _modes(*pair)]
LIVE_SOURCES = [path for path in PATHS if SOURCES[path.source].is_live]
LIVE_SINKS = [path for path in PATHS if SINKS[path.sink].is_live]
LIVE = [path for path in LIVE_SOURCES if SINKS[path.sink].is_live]
BETWEEN_SOCKETS = [
    path for path in PATHS if SOURCES[path.source].is_socket and SINKS[path.sink].is_socket
]
