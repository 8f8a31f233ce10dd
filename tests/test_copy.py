"""`copy`: every kind of source into every kind of sink, and what each is like afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import select
import socketserver
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SocketIO
from typing import Any

import pytest
from gevent import socket
from gevent.fileobject import FileObjectPosix
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    MakeLine,
    Pairs,
    Spawn,
    pattern,
    peeked,
    poll,
    receive,
    send_and_end,
    tls_contexts,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice

DATA = pattern(600_011, 6)
BEFORE = b"what was there before; "

# Subclasses that do something to the bytes: their methods are called, their fd is not touched.


class CountingReceiver(socket.socket):
    """Counts in recv."""

    counted = 0

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        self.counted += len(data)
        return data


class CountingReceiverInto(socket.socket):
    """Counts in recv_into."""

    counted = 0

    def recv_into(self, *args: Any) -> int:
        count: int = super().recv_into(*args)
        self.counted += count
        return count


class CountingSender(socket.socket):
    """Counts in send, which sendall calls; takes no more than 1000 bytes at once."""

    counted = 0

    def send(self, data: Any, *args: Any, **kwargs: Any) -> int:
        sent: int = super().send(memoryview(data)[:1000], *args, **kwargs)
        self.counted += sent
        return sent


class CountingSenderOfAll(socket.socket):
    """Counts in sendall."""

    counted = 0

    def sendall(self, data: Any, flags: int = 0) -> Any:
        self.counted += len(data)
        return super().sendall(data, flags)


class PlainSubclass(socket.socket):
    """Overrides nothing that the bytes go through."""

    def close(self) -> None:
        super().close()


def turned_into(cls: type[socket.socket], sock: socket.socket) -> Any:
    """Return a *cls* on the fd of *sock*, which is closed."""
    family, kind, protocol = sock.family, sock.type, sock.proto
    return cls(family, kind, protocol, fileno=sock.detach())


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


# The kinds of sources: each yields a thing that gives DATA.

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

# The kinds of sinks: each yields a thing, and a function that returns what it has got.


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


SPLICED_SOURCES = ["TCP", "TCP6", "unix", "subclass", "reader", "reader with bytes", "raw reader"]
SENT_SOURCES = ["file", "file to be changed", "raw file", "TemporaryFile", "NamedTemporaryFile"]
SPLICED_SINKS = ["TCP", "TCP6", "unix", "subclass", "writer", "raw writer", "socketserver"]
FILE_SINKS = ["file", "file to be changed", "raw file", "TemporaryFile", "NamedTemporaryFile"]


def expected_to_splice(source: str, sink: str) -> bool:
    """Whether the pair can be spliced, or sent with sendfile."""
    if source in (*SENT_SOURCES, "file to append to"):
        return sink in (*SPLICED_SINKS, "buffered socketserver")
    if source in (*SPLICED_SOURCES, "reader with many bytes", "SocketIO"):
        return sink in (*SPLICED_SINKS, *FILE_SINKS, "buffered socketserver")
    return False


@pytest.mark.parametrize("sink_kind", SINKS)
@pytest.mark.parametrize("source_kind", SOURCES)
def test_any_source_into_any_sink(
    pairs: Pairs, tmp_path: Path, spawn: Spawn, source_kind: str, sink_kind: str
) -> None:
    with (
        SOURCES[source_kind](pairs, tmp_path, spawn) as source,
        SINKS[sink_kind](pairs, tmp_path, spawn) as (sink, got),
    ):
        expected = expected_to_splice(source_kind, sink_kind)
        assert gsplice.can_splice(source, sink) is expected
        before = gsplice.stats().spliced
        assert gsplice.copy(source, sink) == len(DATA)
        assert got() == DATA
        assert (gsplice.stats().spliced > before) is expected


def test_count_of_nothing_asks_nothing_of_the_source(line: MakeLine) -> None:
    _, source, sink, _ = line()
    assert gsplice.copy(source, sink, 0) == 0  # and does not wait for the source
    with source.makefile("rb") as reader:
        assert gsplice.copy(reader, sink, 0) == 0

    class Untouchable:
        def read(self, size: int) -> bytes:
            raise AssertionError("it was read")

        write = read

    assert gsplice.copy(Untouchable(), sink, 0) == 0
    assert gsplice.copy(source, Untouchable(), 0) == 0


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_count_of_nothing_leaves_a_file_where_it_is(
    line: MakeLine, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    _, source, sink, _ = line()
    with open(tmp_path / "file", mode) as file:
        file.seek(11)
        assert gsplice.copy(file, sink, 0) == 0
        assert file.tell() == 11
        if "+" in mode:
            assert gsplice.copy(source, file, 0) == 0
            assert file.tell() == 11


@pytest.mark.parametrize("mode", MODES)
def test_count_of_nothing_leaves_what_is_buffered_where_it_is(
    line: MakeLine, tmp_path: Path, mode: str
) -> None:
    _, source, sink, backend = line()
    (tmp_path / "source").write_bytes(DATA)
    with (
        open(tmp_path / "source", "rb") as file,
        open(tmp_path / "sink", "wb") as sink_file,
        sink.makefile("wb") as writer,
    ):
        for buffering in (sink_file, writer):
            buffering.write(b"buffered")
            for thing in (source, file, io.BytesIO(DATA)):
                assert gsplice.copy(thing, buffering, 0, mode=mode) == 0
                assert gsplice.Transfer(thing, buffering, 0, mode=mode).start().get(timeout=5) == 0
        assert peeked(backend) == (tmp_path / "sink").read_bytes() == b""
    assert receive(backend, 8) == (tmp_path / "sink").read_bytes() == b"buffered"


class Whole:
    """An int by its __index__, as numpy's are."""

    def __index__(self) -> int:
        return 5


def test_count_may_be_anything_that_is_whole(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    client.sendall(b"hello, world")
    assert gsplice.copy(source, sink, Whole()) == 5  # type: ignore[arg-type]
    assert receive(backend, 5) == b"hello"


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix", "tls"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [None, 250_000])
def test_echo(pairs: Pairs, spawn: Spawn, kind: str, mode: str, count: int | None) -> None:
    client, sock = pairs(kind)
    expected = count or len(DATA)
    sending = spawn(client.sendall, DATA)
    received = spawn(receive, client, expected)
    if count is None and kind != "tls":
        sending.rawlink(lambda _: client.shutdown(socket.SHUT_WR))
    elif count is None:
        count = expected
    assert gsplice.copy(sock, sock, count, mode=mode) == expected
    assert received.get() == DATA[:expected]


def test_reader_is_left_for_its_owner_to_go_on(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, b"header\n" + DATA + b"trailer\nrest")
    with source.makefile("rb") as reader:
        assert reader.readline() == b"header\n"
        received = spawn(receive, backend, len(DATA))
        assert gsplice.copy(reader, sink, len(DATA)) == len(DATA)
        assert received.get() == DATA
        assert reader.readline() == b"trailer\n"
        assert reader.read() == b"rest"


def test_part_of_what_a_reader_has_buffered(line: MakeLine) -> None:
    client, source, sink, backend = line()
    client.sendall(b"one two three four")
    with source.makefile("rb") as reader:
        assert reader.read(4) == b"one "
        assert gsplice.copy(reader, sink, 4) == 4
        assert receive(backend, 4) == b"two "
        assert reader.peek() == b"three four"
        assert gsplice.copy(reader, sink, 10) == 10
        assert receive(backend, 10) == b"three four"
        transfer = gsplice.Transfer(reader, sink).start()
        wait_until(lambda: waits_to_read(source))
        client.sendall(b" five")
        assert receive(backend, 5) == b" five"
        transfer.stop()


def test_reader_that_has_met_the_end(line: MakeLine) -> None:
    client, source, sink, _ = line()
    send_and_end(client, b"hello")
    with source.makefile("rb") as reader:
        assert reader.read() == b"hello"
        assert gsplice.copy(reader, sink) == 0


def test_writer_can_be_written_to_afterwards(line: MakeLine) -> None:
    client, source, sink, backend = line()
    with sink.makefile("wb") as writer:
        writer.write(b"one ")
        send_and_end(client, b"two ")
        assert gsplice.copy(source, writer) == 4
        writer.write(b"three")
    sink.close()
    assert receive(backend) == b"one two three"


# Regular files, whose position is the transfer's own.


def test_file_with_changes_that_are_not_written_yet(line: MakeLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    _, _, sink, backend = line()
    with open(tmp_path / "file", "r+b") as file:
        assert file.read(10) == b"0123456789"
        file.seek(0)
        file.write(b"ab")
        file.seek(0)
        assert gsplice.copy(file, sink) == 10
        assert receive(backend, 10) == b"ab23456789"


def test_file_that_was_read_ahead_is_written_where_its_reader_is(
    line: MakeLine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    client, source, _, _ = line()
    with open(tmp_path / "file", "r+b") as file:
        assert file.read(2) == b"01"
        send_and_end(client, b"abc")
        assert gsplice.copy(source, file) == 3
        assert file.tell() == 5
        assert file.read() == b"56789"
        file.seek(0)
        assert file.read() == b"01abc56789"


@pytest.mark.parametrize("mode", ["ab", "a+b"])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_append_goes_to_the_end_wherever_the_position_is(
    line: MakeLine, spawn: Spawn, tmp_path: Path, mode: str, buffering: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    client, source, _, _ = line()
    spawn(send_and_end, client, DATA)
    with open(path, mode, buffering) as file:
        file.seek(3)
        assert gsplice.copy(source, file) == len(DATA)
        assert file.tell() == 10 + len(DATA), "as after a write"
        file.write(b"!")
    assert path.read_bytes() == b"0123456789" + DATA + b"!"


def test_file_past_its_end_is_extended_with_a_hole(line: MakeLine, tmp_path: Path) -> None:
    client, source, _, _ = line()
    send_and_end(client, b"end")
    with open(tmp_path / "file", "wb") as file:
        file.seek(5)
        assert gsplice.copy(source, file) == 3
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"end"


def test_position_at_or_past_the_end_of_a_file_gives_nothing(
    line: MakeLine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    _, _, sink, _ = line()
    with open(tmp_path / "file", "rb") as file:
        for position in (10, 25):
            file.seek(position)
            assert gsplice.copy(file, sink) == 0
            assert file.tell() == position


def test_file_that_is_cut_while_it_is_sent_ends_there(
    line: MakeLine, spawn: Spawn, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MORE_THAN_BUFFERS))
    _, _, sink, backend = line("unix")
    with open(path, "rb") as file:
        transfer = gsplice.Transfer(file, sink).start()
        wait_until(lambda: sink._write_event.active)
        os.truncate(path, 0)
        spawn(receive, backend)
        assert transfer.get(timeout=5) == transfer.moved == file.tell()
        assert transfer.moved < MORE_THAN_BUFFERS


@pytest.mark.parametrize("mode", MODES)
def test_file_longer_than_any_round(
    line: MakeLine, spawn: Spawn, tmp_path: Path, mode: str
) -> None:
    data = pattern(5_000_003)
    (tmp_path / "file").write_bytes(data)
    _, _, sink, backend = line()
    received = spawn(receive, backend, len(data))
    with open(tmp_path / "file", "rb") as file:
        assert gsplice.copy(file, sink, mode=mode) == len(data)
    assert received.get() == data


def test_character_device_is_read_by_its_own_method(line: MakeLine) -> None:
    _, _, sink, backend = line()
    with open("/dev/zero", "rb") as file:
        assert gsplice.copy(file, sink, 100_000) == 100_000
    assert receive(backend, 100_000) == bytes(100_000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("cls", "which"),
    [
        (CountingReceiver, "source"),
        (CountingReceiverInto, "source"),
        (CountingSender, "sink"),
        (CountingSenderOfAll, "sink"),
    ],
)
def test_overridden_method_sees_every_byte_though_the_mode_says_splice(
    line: MakeLine, spawn: Spawn, cls: type[Any], which: str, mode: str
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, DATA)
    received = spawn(receive, backend, len(DATA))
    ends = {"source": source, "sink": sink}
    with turned_into(cls, ends[which]) as special:
        ends[which] = special
        assert not gsplice.can_splice(*ends.values())
        before = gsplice.stats().spliced
        assert gsplice.copy(*ends.values(), mode=mode) == len(DATA)
        assert special.counted == len(DATA)
        assert gsplice.stats().spliced == before
    assert received.get() == DATA


def test_method_replaced_on_one_socket_alone_is_called(line: MakeLine) -> None:
    class Open(socket.socket):
        """Has a __dict__."""

    client, source, sink, backend = line()
    seen: list[bytes] = []
    with turned_into(Open, source) as source:
        original = source.recv

        def recv(*args: Any) -> bytes:
            seen.append(original(*args))
            return seen[-1]

        source.recv = recv
        send_and_end(client, b"hello")
        assert not gsplice.can_splice(source, sink)
        assert gsplice.copy(source, sink) == 5
        assert b"".join(seen) == receive(backend, 5) == b"hello"


def upper(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what does the same as *method*, in capital letters."""

    def changed(argument: Any = -1) -> Any:
        if isinstance(argument, int):
            return method(argument).upper()
        return method(bytes(argument).upper())

    return changed


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
@pytest.mark.parametrize("kind", ["file", "reader"])
def test_method_replaced_on_one_stream_alone_is_called_to_read(
    line: MakeLine, spawn: Spawn, tmp_path: Path, kind: str, buffering: int
) -> None:
    client, source, sink, backend = line()
    (tmp_path / "file").write_bytes(b"hello" * 1000)
    spawn(send_and_end, client, b"hello" * 1000)
    file = open(tmp_path / "file", "rb", buffering)  # noqa: SIM115
    with file if kind == "file" else source.makefile("rb", buffering) as stream:
        assert gsplice.can_splice(stream, sink)
        stream.read = upper(stream.read)  # type: ignore[method-assign]
        assert not gsplice.can_splice(stream, sink)
        assert gsplice.copy(stream, sink) == 5000
    file.close()
    assert receive(backend, 5000) == b"HELLO" * 1000


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
@pytest.mark.parametrize("kind", ["file", "writer"])
def test_method_replaced_on_one_stream_alone_is_called_to_write(
    line: MakeLine, spawn: Spawn, tmp_path: Path, kind: str, buffering: int
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, b"hello" * 1000)
    file = open(tmp_path / "file", "wb", buffering)  # noqa: SIM115
    with file if kind == "file" else sink.makefile("wb", buffering) as stream:
        assert gsplice.can_splice(source, stream)
        stream.write = upper(stream.write)  # type: ignore[method-assign]
        assert not gsplice.can_splice(source, stream)
        assert gsplice.copy(source, stream) == 5000
    file.close()
    written = (tmp_path / "file").read_bytes() if kind == "file" else receive(backend, 5000)
    assert written == b"HELLO" * 1000


def test_method_replaced_on_the_raw_stream_under_a_reader_is_called(line: MakeLine) -> None:
    client, source, sink, backend = line()
    seen: list[int] = []
    send_and_end(client, b"hello")
    with source.makefile("rb") as reader:
        raw: Any = reader.raw
        readinto = raw.readinto
        raw.readinto = lambda buffer: seen.append(readinto(buffer)) or seen[-1]
        assert not gsplice.can_splice(reader, sink)
        assert gsplice.copy(reader, sink) == 5
    assert seen == [5, 0]
    assert receive(backend, 5) == b"hello"


def test_temporary_file_that_keeps_its_methods_is_still_a_file(line: MakeLine) -> None:
    _, _, sink, backend = line()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"hello")
        file.seek(0)
        assert file.read() == b"hello"
        assert "read" in vars(file)
        file.seek(0)
        assert gsplice.can_splice(file, sink)
        file.read = upper(file.read)  # type: ignore[method-assign]
        assert not gsplice.can_splice(file, sink)
        assert gsplice.copy(file, sink) == 5
    assert receive(backend, 5) == b"HELLO"


@pytest.mark.parametrize("own", ["read", "read1"])
def test_the_method_that_a_subclass_overrides_is_the_one_to_read_by(own: str) -> None:
    changed = {own: lambda self, size=-1: getattr(io.BufferedReader, own)(self, size).upper()}
    reader = type("Upper", (io.BufferedReader,), changed)(io.BytesIO(b"hello"))
    sink = io.BytesIO()
    assert gsplice.copy(reader, sink) == 5
    assert sink.getvalue() == b"HELLO"


def test_a_wrapper_that_overrides_read_alone_is_read_by_it() -> None:
    class Upper:
        def __init__(self) -> None:
            self._file = io.BytesIO(b"hello")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def read(self, size: int = -1) -> bytes:
            return self._file.read(size).upper()

    sink = io.BytesIO()
    assert gsplice.copy(Upper(), sink) == 5
    assert sink.getvalue() == b"HELLO"


def test_tls_socket_before_and_after_its_session_is_not_spliced(pairs: Pairs) -> None:
    near, _ = pairs()
    client, _ = tls_contexts()
    _, sink = pairs()
    with client.wrap_socket(
        near, server_hostname="localhost", do_handshake_on_connect=False
    ) as tls:
        assert not gsplice.can_splice(tls, sink)
        assert not gsplice.can_splice(sink, tls)
    near, _ = pairs("tls")
    near.shutdown(socket.SHUT_WR)  # drops the session
    assert not gsplice.can_splice(near, sink)


def test_can_splice_has_no_side_effect(line: MakeLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    client, source, sink, backend = line()
    client.sendall(b"hello")
    with (
        open(tmp_path / "file", "r+b") as file,
        source.makefile("rb") as reader,
        sink.makefile("wb") as writer,
    ):
        file.seek(11)
        writer.write(b"unflushed")
        assert gsplice.can_splice(reader, writer)
        assert gsplice.can_splice(file, writer)
        assert gsplice.can_splice(reader, file)
        assert file.tell() == 11
        assert not waits_to_read(source)
        assert reader.read(5) == b"hello"
    assert receive(backend, 9) == b"unflushed"


@pytest.mark.parametrize("bad", [None, 5, object(), "text", b"bytes", io.StringIO()])
def test_can_splice_says_no_to_what_is_no_end(line: MakeLine, bad: Any) -> None:
    _, source, sink, _ = line()
    assert gsplice.can_splice(bad, sink) is False
    assert gsplice.can_splice(source, bad) is False


@pytest.mark.parametrize("cls", [socket.socket, io.BytesIO, io.FileIO])
def test_a_class_is_no_end(line: MakeLine, cls: type[Any]) -> None:
    _, source, sink, _ = line()
    assert not gsplice.can_splice(cls, sink)
    assert not gsplice.can_splice(source, cls)
    with pytest.raises(TypeError, match="is a class"):
        gsplice.copy(cls, sink)
    with pytest.raises(TypeError, match="is a class"):
        gsplice.copy(source, cls)


class Generous(io.BytesIO):
    """A source that gives more than it is asked for."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(-1)


def test_a_source_that_gives_too_much_is_an_error_that_loses_nothing() -> None:
    assert gsplice.copy(Generous(b"all of it"), io.BytesIO()) == 9
    transfer = gsplice.Transfer(Generous(b"all of it"), io.BytesIO(), 3)
    with pytest.raises(ValueError, match="gave 9 bytes, asked for at most 3"):
        transfer.run()
    assert (transfer.moved, transfer.undelivered) == (0, b"all of it")


@pytest.mark.parametrize("said", [-1, 4])
def test_a_sink_that_miscounts_is_an_error(said: int) -> None:
    class Miscounting(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return said

    with pytest.raises(ValueError, match=f"says that it took {said} of 3 bytes"):
        gsplice.copy(io.BytesIO(b"abc"), Miscounting())


@pytest.mark.parametrize("said", [-1, 1 << 20])
def test_a_source_that_miscounts_is_an_error(said: int) -> None:
    class Miscounting:
        def recv_into(self, buffer: bytearray) -> int:
            return said

    with pytest.raises(ValueError, match=f"says that it put {said} bytes"):
        gsplice.copy(Miscounting(), io.BytesIO())


# The number of an option and of a flag that the socket module lacks (linux/socket.h).
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000


def with_a_notice(sender: socket.socket, receiver: socket.socket) -> None:
    """Have a notice in the error queue of *sender*: its owner has sent without a copy, before."""
    sender.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    sender.send(b"x", MSG_ZEROCOPY)
    assert receive(receiver, 1) == b"x"
    wait_until(lambda: poll(sender) & select.POLLERR)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["socket", "file"])
def test_a_notice_in_the_error_queue_of_a_socket_is_no_error_of_it(
    line: MakeLine, spawn: Spawn, tmp_path: Path, kind: str, mode: str
) -> None:
    client, source, sink, backend = line()
    with_a_notice(source, client)
    with_a_notice(sink, backend)
    data = pattern(MORE_THAN_BUFFERS)
    (tmp_path / "file").write_bytes(data)
    spawn(send_and_end, client, data)
    with open(tmp_path / "file", "rb") as file:
        transfer = gsplice.Transfer(source if kind == "socket" else file, sink, mode=mode).start()
        wait_until(lambda: waits_to_write(sink))
        assert receive(backend, len(data)) == data
        assert transfer.get(timeout=5) == len(data)
        if kind == "file":
            receive(source)
