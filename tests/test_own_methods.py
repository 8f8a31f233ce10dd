"""Methods that somebody overrode or replaced see every byte, and are held to what they say."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import MODES, MakeLine, Spawn, receive, send_and_end
from sources import DATA
from subclasses import (
    CountingReceiver,
    CountingReceiverInto,
    CountingSender,
    CountingSenderOfAll,
    turned_into,
)

import gsplice


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
