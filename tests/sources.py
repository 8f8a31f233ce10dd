"""Every kind of source that `copy` takes: each yields a thing that gives `DATA`."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SocketIO
from typing import Any

from gevent import socket
from gevent.fileobject import FileObjectPosix
from peers import Pairs, Spawn, pattern, send_and_end
from subclasses import CountingReceiver, CountingReceiverInto, PlainSubclass, turned_into

DATA = pattern(600_011, 6)
BEFORE = b"what was there before; "


# Objects with one method each.


class OnlyRecv:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def recv(self, size: int) -> bytes:
        return self._file.read(size)


class OnlyRecvInto:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def recv_into(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)


class ReadOfBytearrays(OnlyRead):
    def read(self, size: int) -> Any:
        return bytearray(super().read(size))


#: What makes one, as a context.
Kind = Callable[[Pairs, Path, Spawn], Any]
Source = Iterator[Any]


def socket_source(kind: str, cls: type[socket.socket] | None = None) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        client, source = pairs(kind)
        if cls is not None:
            source = turned_into(cls, source)
        spawn(send_and_end, client, DATA)
        with source:
            yield source
            assert cls in (None, PlainSubclass) or source.counted == len(DATA)

    return make


def reader_source(buffering: int, first: int) -> Kind:
    """Return a reader of which the *first* bytes have been read, so that more are buffered."""

    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        client, source = pairs()
        spawn(send_and_end, client, BEFORE[:first] + DATA)
        with source.makefile("rb", buffering) as reader:
            assert reader.read(first) == BEFORE[:first]
            yield reader

    return make


@contextlib.contextmanager
def socket_io_source(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    client, source = pairs()
    spawn(send_and_end, client, DATA)
    source._io_refs += 1  # as makefile does
    with SocketIO(source, "r") as raw:
        yield raw


@contextlib.contextmanager
def tls_reader_source(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    client, source = pairs("tls")
    spawn(send_and_end, client, BEFORE + DATA)
    with source.makefile("rb") as reader:
        assert reader.read(len(BEFORE)) == BEFORE
        yield reader


@contextlib.contextmanager
def read_write_pair_source(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    client, source = pairs()
    spawn(send_and_end, client, BEFORE + DATA)
    with source.makefile("rwb") as stream:
        assert stream.read(len(BEFORE)) == BEFORE
        yield stream


def file_source(mode: str, buffering: int = -1) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        (path / "source").write_bytes(BEFORE + DATA)
        with open(path / "source", mode, buffering) as file:
            file.seek(0)
            assert file.read(len(BEFORE)) == BEFORE
            yield file
            assert file.tell() == len(BEFORE) + len(DATA)
            assert file.read(1) == b""

    return make


def temporary_source(make_file: Callable[[], Any]) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        with make_file() as file:
            file.write(BEFORE + DATA)
            file.seek(len(BEFORE))
            yield file
            assert file.tell() == len(BEFORE) + len(DATA)

    return make


def object_source(make_object: Callable[[bytes], Any]) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        yield make_object(DATA)

    return make


@contextlib.contextmanager
def pipe_source(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    read_fd, write_fd = os.pipe()

    def write() -> None:
        with FileObjectPosix(write_fd, "wb", 0) as file:
            rest = memoryview(DATA)
            while rest:
                rest = rest[file.write(rest) :]

    spawn(write)
    with FileObjectPosix(read_fd, "rb") as file:
        yield file


SOURCES: dict[str, Kind] = {
    "TCP": socket_source("tcp"),
    "TCP6": socket_source("tcp6"),
    "unix": socket_source("unix"),
    "TLS": socket_source("tls"),
    "subclass": socket_source("tcp", PlainSubclass),
    "own recv": socket_source("tcp", CountingReceiver),
    "own recv_into": socket_source("tcp", CountingReceiverInto),
    "reader": reader_source(-1, 0),
    "reader with bytes": reader_source(-1, 7),
    "reader with many bytes": reader_source(200_000, 7),
    "raw reader": reader_source(0, 0),
    "SocketIO": socket_io_source,
    "TLS reader": tls_reader_source,
    "both ways": read_write_pair_source,
    "file": file_source("rb"),
    "file to be changed": file_source("r+b"),
    "file to append to": file_source("a+b"),
    "raw file": file_source("rb", 0),
    "TemporaryFile": temporary_source(tempfile.TemporaryFile),
    "NamedTemporaryFile": temporary_source(tempfile.NamedTemporaryFile),
    "SpooledTemporaryFile": temporary_source(tempfile.SpooledTemporaryFile),
    "BytesIO": object_source(io.BytesIO),
    "only recv": object_source(OnlyRecv),
    "only recv_into": object_source(OnlyRecvInto),
    "only read": object_source(OnlyRead),
    "read of bytearrays": object_source(ReadOfBytearrays),
    "pipe": pipe_source,
}
