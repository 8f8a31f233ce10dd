"""Every kind of sink that `copy` takes: each yields a thing, and what tells what it has got."""

from __future__ import annotations

import contextlib
import io
import socketserver
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gevent import socket
from peers import Pairs, Spawn, receive
from sources import BEFORE, DATA, Kind, Source
from subclasses import CountingSender, CountingSenderOfAll, PlainSubclass, turned_into

# Objects with one method each.


class OnlySendall:
    """Like a socket's: says nothing of how much it took."""

    def __init__(self) -> None:
        self.got = bytearray()

    def sendall(self, data: Any) -> None:
        self.got += data


class OnlyWrite:
    """Like a file's."""

    def __init__(self) -> None:
        self.got = bytearray()

    def write(self, data: Any) -> int:
        self.got += data
        return len(data)


class WriteThatSaysNothing(OnlyWrite):
    def write(self, data: Any) -> Any:
        super().write(data)


class WriteOfAFilter(OnlyWrite):
    """Says how much came out of it, which is not how much it took."""

    def write(self, data: Any) -> int:
        super().write(data)
        return len(data) * 2


class ShortRawWrites(io.RawIOBase):
    """A raw stream: its write may take less than it is given."""

    def __init__(self) -> None:
        self.got = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.got += data[:777]
        return len(data[:777])


def socket_sink(kind: str, cls: type[socket.socket] | None = None) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        sink, backend = pairs(kind)
        if cls is not None:
            sink = turned_into(cls, sink)
        received = spawn(receive, backend, len(DATA))
        with sink:
            yield sink, received.get
            assert cls in (None, PlainSubclass) or sink.counted == len(DATA)

    return make


def writer_sink(buffering: int, kind: str = "tcp") -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        sink, backend = pairs(kind)
        received = spawn(receive, backend, len(BEFORE) + len(DATA))
        with sink.makefile("wb", buffering) as writer:
            writer.write(BEFORE)

            def got() -> bytes:
                if kind == "tls":
                    writer.flush()
                data: bytes = received.get(timeout=5)
                assert data.startswith(BEFORE)
                return data[len(BEFORE) :]

            yield writer, got

    return make


@contextlib.contextmanager
def socketserver_sink(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    sink, backend = pairs()
    received = spawn(receive, backend, len(DATA))
    with socketserver._SocketWriter(sink) as writer:
        yield writer, received.get


@contextlib.contextmanager
def buffered_socketserver_sink(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    sink, backend = pairs()
    received = spawn(receive, backend, len(BEFORE) + len(DATA))
    with io.BufferedWriter(socketserver._SocketWriter(sink)) as writer:
        writer.write(BEFORE)
        yield writer, lambda: received.get(timeout=5).removeprefix(BEFORE)


def file_sink(mode: str, buffering: int = -1) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        (path / "sink").write_bytes(b"" if "w" in mode else BEFORE)
        with open(path / "sink", mode, buffering) as file:
            if "w" in mode:
                file.write(BEFORE)  # and it is not flushed
            file.seek(len(BEFORE))

            def got() -> bytes:
                assert file.tell() == len(BEFORE) + len(DATA)
                data = (path / "sink").read_bytes()
                assert data.startswith(BEFORE)
                return data[len(BEFORE) :]

            yield file, got

    return make


def temporary_sink(make_file: Callable[[], Any]) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        with make_file() as file:
            file.write(BEFORE)

            def got() -> bytes:
                assert file.tell() == len(BEFORE) + len(DATA)
                file.seek(len(BEFORE))
                data: bytes = file.read()
                return data

            yield file, got

    return make


def object_sink(make_object: Callable[[], Any]) -> Kind:
    @contextlib.contextmanager
    def make(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
        sink = make_object()
        yield sink, lambda: bytes(sink.got)

    return make


@contextlib.contextmanager
def bytes_io_sink(pairs: Pairs, path: Path, spawn: Spawn) -> Source:
    sink = io.BytesIO()
    yield sink, sink.getvalue


SINKS: dict[str, Kind] = {
    "TCP": socket_sink("tcp"),
    "TCP6": socket_sink("tcp6"),
    "unix": socket_sink("unix"),
    "TLS": socket_sink("tls"),
    "subclass": socket_sink("tcp", PlainSubclass),
    "own send": socket_sink("tcp", CountingSender),
    "own sendall": socket_sink("tcp", CountingSenderOfAll),
    "writer": writer_sink(-1),
    "raw writer": writer_sink(0),
    "TLS writer": writer_sink(-1, "tls"),
    "socketserver": socketserver_sink,
    "buffered socketserver": buffered_socketserver_sink,
    "file": file_sink("wb"),
    "file to be changed": file_sink("r+b"),
    "file to append to": file_sink("ab"),
    "file to append to and read": file_sink("a+b"),
    "raw file": file_sink("wb", 0),
    "TemporaryFile": temporary_sink(tempfile.TemporaryFile),
    "NamedTemporaryFile": temporary_sink(tempfile.NamedTemporaryFile),
    "SpooledTemporaryFile": temporary_sink(tempfile.SpooledTemporaryFile),
    "BytesIO": bytes_io_sink,
    "only sendall": object_sink(OnlySendall),
    "only write": object_sink(OnlyWrite),
    "write that says nothing": object_sink(WriteThatSaysNothing),
    "write of a filter": object_sink(WriteOfAFilter),
    "short raw writes": object_sink(ShortRawWrites),
}
