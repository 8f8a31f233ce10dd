"""`copy`: every kind of source into every kind of sink, and what each is like afterwards."""

from __future__ import annotations

import io
import select
from pathlib import Path

import pytest
from gevent import socket
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
    wait_until,
    waits_to_read,
    waits_to_write,
)
from sinks import SINKS
from sources import DATA, SOURCES

import gsplice

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
