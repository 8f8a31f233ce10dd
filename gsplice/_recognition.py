"""What gsplice sees in the things that a caller gives it as a source or a sink.

`source` and `sink` return the kind of end that a thing is, or raise the error that says why it is
none. They look, and change nothing.
"""

from __future__ import annotations

import _socket
import errno
import io
import os
import tempfile
from collections.abc import Callable
from socket import SocketIO
from typing import Any

from gevent.socket import SOCK_STREAM

from gsplice import _body, _gevent, _kernel, _own_methods, _reader
from gsplice._body import BodySource
from gsplice._endpoint import (
    BinaryFile,
    FileSink,
    FileSource,
    ObjectSink,
    ObjectSource,
    Sink,
    SocketSink,
    SocketSource,
    Source,
)
from gsplice._gevent import GeventSocket
from gsplice._own_methods import READING, WRITING


def source(thing: Any) -> Source:
    """Return what *thing* is as a source; raise the error that says why it is none."""
    if isinstance(thing, FileSource):
        return thing  # it has been looked at before
    thing = _body.wrapped(thing)
    if isinstance(thing, GeventSocket):
        return _socket_source(thing, None, _socket_read(thing))
    _refuse_foreign_socket(thing)
    if type(thing) is SocketIO:
        return _reader_source(thing, thing, None)
    if type(thing) is io.BufferedReader and type(thing.raw) is SocketIO:
        return _reader_source(thing, thing.raw, thing)
    return _file_source(thing) or _body_source(thing) or ObjectSource(_read_method(thing))


def sink(thing: Any) -> Sink:
    """Return what *thing* is as a sink; raise the error that says why it is none."""
    if isinstance(thing, GeventSocket):
        return _socket_sink(thing, None, thing)
    if isinstance(thing, SocketSink):
        return thing
    _refuse_foreign_socket(thing)
    writer = thing if type(thing) is io.BufferedWriter else None
    sock = _written_socket(thing if writer is None else writer.raw)
    if sock is not None and not _has_own(thing, WRITING):
        _check_open(thing)
        return _socket_sink(sock, writer, thing)
    file = _regular_file(thing, WRITING)
    if file is not None and file.writable():
        return FileSink(file)
    return ObjectSink(thing, _write_method(thing))


def ends(thing: Any) -> tuple[Source, Sink]:
    """Return what *thing*, one end of a relay, is as a source, and its socket as a sink."""
    if type(thing) is SocketSource:
        return thing, SocketSink(thing.socket)  # it has been looked at before
    if isinstance(thing, GeventSocket):  # what is looked at is the same for both
        _check_socket(thing)
        if is_real_stream_socket(thing):
            return SocketSource(thing), SocketSink(thing)
    return source(thing), sink(socket_of_end(thing))


def _socket_source(
    sock: GeventSocket, stream: _reader.Reader | None, read: Callable[[int], bytes | None]
) -> Source:
    _check_socket(sock)
    if is_real_stream_socket(sock):
        return SocketSource(sock, stream)
    return ObjectSource(read)


def _body_source(thing: Any) -> BodySource | None:
    try:
        body = _body.look(thing)
        if body is None:
            return None
        under = source(body.under)
    except (OSError, TypeError, ValueError):  # for the object itself to tell
        return None
    return BodySource(body, under) if type(under) is SocketSource else None


def _socket_read(sock: GeventSocket) -> Callable[[int], bytes | None]:
    if "recv_into" in (own := _gevent.own_data_methods(sock)) and "recv" not in own:
        return _into(sock.recv_into)
    read: Callable[[int], bytes] = sock.recv
    return read


def _reader_source(thing: Any, raw: Any, reader: io.BufferedReader | None) -> Source:
    _check_open(thing)
    if not thing.readable():
        raise TypeError(f"{thing!r} is no source: it is not open for reading")
    _refuse_foreign_socket(_reader.under(raw))
    sock = _reader.socket_of(raw)
    if sock is None or _has_own(thing, READING):
        return ObjectSource(_read_method(thing))
    read = raw.read if reader is None else reader.read1
    return _socket_source(sock, _reader.Reader(raw, reader), read)


def _socket_sink(sock: GeventSocket, writer: io.BufferedWriter | None, thing: Any) -> Sink:
    _check_socket(sock)
    if is_real_stream_socket(sock):
        return SocketSink(sock, writer)
    return ObjectSink(thing, _write_method(thing))


def _written_socket(raw: Any) -> Any:
    """Return the socket that the raw stream *raw* writes to, if it does nothing but that."""
    writes_to_socket = type(raw) is SocketIO and raw.writable()
    # Its write() is sendall(). Asked for by name: socketserver may well not be loaded.
    if f"{type(raw).__module__}.{type(raw).__name__}" == "socketserver._SocketWriter":
        writes_to_socket = True
    if not writes_to_socket or _own_methods.has_own(raw, WRITING):
        return None
    sock = _reader.under(raw)
    _refuse_foreign_socket(sock)
    return sock if isinstance(sock, GeventSocket) else None


def is_real_stream_socket(sock: GeventSocket) -> bool:
    """Return whether the bytes of *sock* are those of its fd."""
    return (
        _gevent.socket_family(sock) in _gevent.STREAM_FAMILIES
        and _gevent.socket_type(sock) == SOCK_STREAM
        and not _gevent.own_data_methods(sock)
    )


def socket_of_end(thing: Any) -> Any:
    """Return the socket of an end of a relay: a socket, or a ``makefile("rb")`` reader on one."""
    if isinstance(thing, GeventSocket):
        return thing
    if type(thing) is SocketSource:
        return thing.socket
    raw: Any = thing.raw if type(thing) is io.BufferedReader else thing
    return _reader.socket_of(raw) or thing


def is_socket_source(thing: Any) -> bool:
    """Return whether *thing* is a socket or a reader on one, whatever its state."""
    sock = socket_of_end(thing)
    if not isinstance(sock, GeventSocket) or not is_real_stream_socket(sock):
        return False
    return sock is thing or not _has_own(thing, READING)


def writes_at_once(thing: Any) -> bool:
    """Return whether *thing* is a ``makefile("wb", 0)`` writer on a socket that can be waited for.

    Its ``write()`` is one ``send()``, which may take less than it is given.
    """
    if type(thing) is not SocketIO:
        return False
    sock = _reader.under(thing)
    return isinstance(sock, GeventSocket) and sock.timeout != 0.0


def regular_file(thing: Any) -> FileSource | None:
    """Return *thing* as a source, if it is a regular file opened in binary mode to be read."""
    try:
        return _file_source(thing)
    except (ValueError, OSError):
        return None


def is_file(thing: Any) -> bool:
    """Return whether *thing* is a file of some kind: at the first look, before any system call."""
    return type(thing) is io.FileIO or type(getattr(thing, "raw", None)) is io.FileIO


def _check_socket(sock: GeventSocket) -> None:
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if _gevent.socket_type(sock) != SOCK_STREAM:
        raise TypeError(
            f"a stream socket (SOCK_STREAM) is needed, not {sock!r}: "
            "the borders between datagrams would be lost"
        )
    if sock.timeout == 0.0:
        raise ValueError(
            f"{sock!r} is in non-blocking mode: call settimeout(None) or setblocking(True) first"
        )
    _gevent.check_thread(sock)


def _refuse_foreign_socket(thing: Any) -> None:
    if isinstance(thing, _socket.socket):
        raise TypeError(
            f"{thing!r} is not managed by gevent: make it with gevent.socket, or call "
            "gevent.monkey.patch_all() before it is made"
        )


def _check_open(stream: Any) -> None:
    if stream.closed:
        raise ValueError("I/O operation on closed file.")


def _has_own(stream: Any, names: tuple[str, ...]) -> bool:
    """Whether a method of *stream* is its own, or one of the raw stream under it."""
    raw = getattr(stream, "raw", stream)
    return _own_methods.has_own(stream, names) or _own_methods.has_own(raw, names)


def _file_source(thing: Any) -> FileSource | None:
    file = _regular_file(thing, READING)
    return FileSource(file) if file is not None and file.readable() else None


def _regular_file(thing: Any, names: tuple[str, ...]) -> BinaryFile | None:
    """Return the file object to use if *thing* is a regular file opened in binary mode.

    It is none where one of its methods *names* is its own.
    """
    if type(thing) is tempfile._TemporaryFileWrapper:
        # It keeps methods of the file in itself, each in a function of its own module.
        if _own_methods.has_own(thing, names):
            return None
        thing = thing.file
    if type(thing) not in (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom):
        return None
    _check_open(thing)
    file: BinaryFile = thing
    if type(getattr(file, "raw", file)) is not io.FileIO:
        return None
    if _has_own(file, names):
        return None
    return file if _kernel.is_regular(file.fileno()) else None


def _read_method(thing: Any) -> Callable[[int], bytes | None]:
    _refuse_text(thing)
    if isinstance(thing, io.IOBase) and not thing.readable():
        raise TypeError(f"{thing!r} is no source: it is not open for reading")
    for name in _read_names(thing):
        method: Callable[[int], bytes | None] | None = getattr(thing, name, None)
        if callable(method):
            return method
    recv_into = getattr(thing, "recv_into", None)
    if callable(recv_into):
        return _into(recv_into)
    raise TypeError(
        f"{type(thing).__name__!r} object is no source: it has no recv_into, recv or read method"
    )


def _read_names(thing: Any) -> tuple[str, ...]:
    """Return the methods to read by, the best first.

    ``read`` of a buffered stream waits until it has all; but where it is nearer to the object than
    ``read1``, in a subclass, say, it may do something to the bytes that ``read1`` does not.
    """
    if _own_methods.level(thing, "read") < _own_methods.level(thing, "read1"):
        return ("recv", "read", "read1")
    return ("recv", "read1", "read")


def _into(recv_into: Callable[[bytearray], int | None]) -> Callable[[int], bytes | None]:
    def receive(limit: int) -> bytes | None:
        buffer = bytearray(limit)
        count = recv_into(buffer)
        if count is not None and not 0 <= count <= limit:
            raise ValueError(f"the source says that it put {count} bytes where {limit} fit")
        return None if count is None else bytes(buffer[:count])

    return receive


def _write_method(thing: Any) -> Callable[[memoryview], Any]:
    _refuse_text(thing)
    if isinstance(thing, io.IOBase) and not thing.writable():
        raise TypeError(f"{thing!r} is no sink: it is not open for writing")
    if isinstance(thing, GeventSocket) and _gevent.inherits_sendall(thing):
        send: Callable[[memoryview], int] = thing.send  # says how much it took, sendall does not
        return send
    for name in ("sendall", "write"):
        method: Callable[[memoryview], Any] | None = getattr(thing, name, None)
        if callable(method):
            return method
    raise TypeError(
        f"{type(thing).__name__!r} object is no sink: it has no sendall or write method"
    )


def _refuse_text(thing: Any) -> None:
    if isinstance(thing, type):
        raise TypeError(f"{thing.__name__!r} is a class: an object of it is needed")
    if isinstance(thing, io.TextIOBase):
        raise TypeError(f"{thing!r} is in text mode: open it in binary mode")
