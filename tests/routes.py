"""The routes that bytes can take through gsplice, each from a peer that sends to one that receives.

A route has an end that gives and an end that takes. Each end plays its peer's part as well, so that
a test has nothing to do but what it is about.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any, NamedTuple

import gevent
from gevent import socket
from peers import PATIENCE, connected, decoded, pattern, receive, waits_to_write

import gsplice
from gsplice import _gevent
from gsplice._chunked import LAST_CHUNK, ChunkedSink

#: A stream: more than the first read, which finds out that it is one.
STREAM = pattern(100_007, 11)
#: So much that small buffers are full of it several times.
STALLING = STREAM[:40_001]
MESSAGES = STREAM[:900]
MESSAGE = 300
#: Of a body so much that it is worth while to see through it.
BODY = pattern(140_009, 13)
#: Of a file there is more than one round of ``sendfile``.
ROUNDS = pattern(1_100_011, 12)


class Giving:
    """A source whose peer sends *data*, in pieces of *piece* bytes; *thing* is the source."""

    def __init__(self, data: bytes, piece: int, kind: str = "unix") -> None:
        self.data = data
        self._unsent = data
        self._piece = piece
        self.client, self.source = connected(kind)
        self.sockets = [self.source]
        self.thing: Any = self.source

    def feed(self) -> None:
        """Send all that has to be sent, and the end of file."""
        while self._unsent:
            self.client.sendall(self._unsent[: self._piece])
            self._unsent = self._unsent[self._piece :]
            _gevent.let_loop_pass()
        self.client.shutdown(socket.SHUT_WR)

    def check_end(self) -> None:
        """Check that the source itself knows that all has been taken: a socket need not."""

    def close(self) -> None:
        """Close everything."""
        self.client.close()
        self.source.close()


class GivingReader(Giving):
    """A buffered reader that has read some of the bytes already."""

    def __init__(self, data: bytes, piece: int) -> None:
        super().__init__(data, piece)
        self.client.sendall(data[:MESSAGE])
        self._unsent = data[MESSAGE:]
        self.thing = self.source.makefile("rb")
        self.thing.peek()

    def close(self) -> None:
        """Close everything."""
        self.thing.close()
        super().close()


class GivingResponse(Giving):
    """A response of ``http.client``: a body that is seen through."""

    def __init__(self, data: bytes, piece: int) -> None:
        super().__init__(data, piece)
        self.client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
        self.thing = HTTPResponse(self.source)
        self.thing.begin()

    def check_end(self) -> None:
        """Check that the response knows how much of it has been taken."""
        assert self.thing.length == 0

    def close(self) -> None:
        """Close everything."""
        self.thing.close()
        super().close()


class GivingObject(Giving):
    """An object that gives by a method of its own."""

    def __init__(self, data: bytes, piece: int) -> None:
        super().__init__(data, piece)
        self.recv = self.source.recv
        self.thing = self


class GivingFile:
    """A regular file, from the middle on."""

    def __init__(self, data: bytes, _: int) -> None:
        self.data = data
        self.sockets: list[socket.socket] = []
        self.thing = tempfile.TemporaryFile()  # noqa: SIM115 (see `close`)
        self.thing.write(b"before " + data)
        self.thing.seek(len(b"before "))

    def feed(self) -> None:
        """All is there."""

    def check_end(self) -> None:
        """Check that its position is behind the last byte."""
        assert self.thing.tell() == len(b"before ") + len(self.data)

    def close(self) -> None:
        """Close it."""
        self.thing.close()


class Taking:
    """A sink whose peer receives; *thing* is the sink."""

    def __init__(self, kind: str = "unix") -> None:
        self.sink, self.backend = connected(kind)
        self.sockets = [self.sink]
        self.thing: Any = self.sink
        self._receiving: gevent.Greenlet[..., bytes] | None = None

    def begin(self, transfer: gsplice.Transfer) -> None:
        """Begin to receive, while *transfer* is under way."""
        self._receiving = gevent.spawn(receive, self.backend)

    def end(self) -> bytes:
        """Return all that has arrived, once nothing more will be sent."""
        assert self._receiving is not None
        self.sink.shutdown(socket.SHUT_WR)
        return self._receiving.get(timeout=PATIENCE)

    def close(self) -> None:
        """Close everything."""
        if self._receiving is not None:
            self._receiving.kill()
        self.sink.close()
        self.backend.close()


class TakingLate(Taking):
    """A sink that is stalled at first: its peer receives when nothing goes in any more."""

    def __init__(self, buffer: int = 4096) -> None:
        super().__init__()
        self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)

    def begin(self, transfer: gsplice.Transfer) -> None:
        """Begin to receive once *transfer* waits for that."""
        while not (waits_to_write(self.sink) or transfer.ready()):
            _gevent.let_loop_pass()
        super().begin(transfer)


class TakingMethod(Taking):
    """A socket of a class with a method of its own, so that all of them are used."""

    class Counting(socket.socket):
        """Does something to what it receives."""

        def recv(self, *args: Any) -> bytes:
            return super().recv(*args)

    def __init__(self) -> None:
        super().__init__()
        self.sink = self.Counting(self.sink.family, self.sink.type, fileno=self.sink.detach())
        self.sockets = [self.sink]
        self.thing = self.sink


class TakingChunks(Taking):
    """A sink that bytes go to in HTTP's chunks."""

    def __init__(self) -> None:
        super().__init__()
        del self.thing  # it keeps the C socket that it finds, so it is made when it is asked for
        self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)

    @functools.cached_property
    def thing(self) -> ChunkedSink:
        """The sink."""
        return ChunkedSink(self.sink)

    def end(self) -> bytes:
        """Return the body that has arrived, once nothing more will be sent."""
        self.thing.end_chunk()
        self.sink.sendall(LAST_CHUNK)
        wire = super().end()
        body = decoded(wire)
        assert len(wire) == len(body) + self.thing.framing + len(LAST_CHUNK)
        return body


class TakingFile:
    """A regular file in which something stands already, some of it in its buffer."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.thing = tempfile.TemporaryFile()  # noqa: SIM115 (see `close`)
        self.thing.write(b"before ")

    def begin(self, transfer: gsplice.Transfer) -> None:
        """It takes whatever comes."""

    def end(self) -> bytes:
        """Return what stands in it behind what stood there before."""
        end = self.thing.tell()
        self.thing.seek(0)
        content = self.thing.read()
        assert content.startswith(b"before ")
        assert len(content) == end, "its position is not behind the last byte"
        return content[len(b"before ") :]

    def close(self) -> None:
        """Close it."""
        self.thing.close()


class Route(NamedTuple):
    """How bytes go, and by which system calls."""

    gives: Callable[..., Any]
    takes: Callable[[], Any]
    calls: tuple[str, ...]
    mode: str = "auto"
    data: bytes = STREAM
    piece: int = 1 << 30
    count: int | None = None


_PIPES = ("splice", "pipe2", "fcntl F_SETPIPE_SZ", "fcntl F_GETPIPE_SZ")

_SIZE_LINE = "send (of a size line)"


def giving_over_tcp(data: bytes, piece: int) -> Giving:
    """Return a source over TCP."""
    return Giving(data, piece, "tcp")


def taking_over_tcp() -> Taking:
    """Return a sink over TCP."""
    return Taking("tcp")


MODERATED = Route(
    giving_over_tcp, taking_over_tcp, ("getsockopt",), data=STREAM[:15_000], piece=500
)
MODERATED_AND_SPLICED = MODERATED._replace(mode="splice")

ROUTES = {
    "messages": Route(Giving, Taking, ("recv_into", "send"), "auto", MESSAGES, MESSAGE),
    "messages, spliced": Route(Giving, Taking, (*_PIPES, "recv_into"), "splice", MESSAGES, MESSAGE),
    "stream": Route(Giving, Taking, (*_PIPES, "recv_into", "send")),
    "stream, spliced": Route(Giving, Taking, (*_PIPES, "recv_into"), "splice"),
    "stream, copied": Route(Giving, Taking, ("recv_into", "send"), "copy"),
    "stream over TCP": Route(giving_over_tcp, taking_over_tcp, (*_PIPES, "recv_into", "send")),
    "small writes, moderated": MODERATED,
    "small writes, moderated and spliced": MODERATED_AND_SPLICED,
    "stalled": Route(Giving, lambda: TakingLate(32768), ("splice", "recv_into", "send")),
    "stalled, spliced": Route(Giving, TakingLate, ("splice", "recv_into"), "splice", STALLING),
    "stalled, copied": Route(Giving, TakingLate, ("recv_into", "send"), "copy", STALLING),
    "count": Route(Giving, Taking, ("recv_into", "splice", "send"), count=50_001),
    "count, spliced": Route(Giving, Taking, ("splice",), "splice", count=99_999),
    "count, stalled": Route(Giving, TakingLate, ("splice",), "splice", STALLING, count=30_001),
    "reader": Route(GivingReader, Taking, ("splice", "recv_into", "send")),
    "reader, stalled": Route(GivingReader, TakingLate, ("splice", "send"), "splice", STALLING),
    "into a file": Route(Giving, TakingFile, (*_PIPES, "recv_into", "pwrite")),
    "into a file, spliced": Route(Giving, TakingFile, ("splice", "recv_into"), "splice"),
    "into a file, copied": Route(Giving, TakingFile, ("recv_into", "pwrite"), "copy"),
    "file": Route(GivingFile, Taking, ("sendfile",), "auto", ROUNDS),
    "file, copied": Route(GivingFile, Taking, ("pread", "send"), "copy"),
    "file, stalled": Route(GivingFile, TakingLate, ("sendfile",), "auto", STALLING),
    "file, stalled, copied": Route(GivingFile, TakingLate, ("pread", "send"), "copy", STALLING),
    "file, count": Route(GivingFile, Taking, ("sendfile",), count=50_001),
    "methods": Route(GivingObject, TakingMethod, ("recv", "send")),
    "methods, count": Route(GivingObject, TakingMethod, ("recv", "send"), count=70_001),
    "chunks": Route(Giving, TakingChunks, ("splice", "recv_into", _SIZE_LINE, "sendmsg")),
    "chunks, spliced": Route(Giving, TakingChunks, ("splice", "recv_into", _SIZE_LINE), "splice"),
    "chunks, copied": Route(Giving, TakingChunks, ("recv_into", "send", "sendmsg"), "copy"),
    "chunks of a file": Route(GivingFile, TakingChunks, ("sendfile", _SIZE_LINE)),
    "chunks of a file, copied": Route(
        GivingFile, TakingChunks, ("pread", "send", "sendmsg"), "copy"
    ),
    "body": Route(GivingResponse, Taking, ("splice", "recv_into"), data=BODY),
    "body, spliced": Route(GivingResponse, Taking, ("splice", "recv_into"), "splice"),
    "body, stalled": Route(GivingResponse, TakingLate, ("splice", "recv_into"), "splice", STALLING),
}
