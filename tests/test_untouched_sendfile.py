"""Promise 9, of ``sendfile``: after `patch_all` what worked before works as before."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import MakeLine, Pairs, Spawn, connected, error_of, pattern, receive, send_and_end
from untouched import DATA, Outcome, before_and_after, outcome, patched

import gsplice


def offset_cases() -> Iterator[tuple[int, int | None, int]]:
    for position in (0, 11):
        for offset in (0, 1, 29, 200_000, 299_999, 300_007, 400_000):
            for count in (None, 1, 100, 200_000, 300_007, 900_000):
                yield offset, count, position


def open_sources(path: Path) -> dict[str, Callable[[], Any]]:
    """Return how to open each kind of file; its content is DATA."""
    path.write_bytes(DATA)

    def temporary() -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        file.write(DATA)
        return file

    return {
        "file": lambda: open(path, "rb"),
        "raw file": lambda: open(path, "rb", 0),
        "file to be changed": lambda: open(path, "r+b"),
        "BytesIO": lambda: io.BytesIO(DATA),
        "TemporaryFile": temporary,
    }


KINDS_OF_FILES = ["file", "raw file", "file to be changed", "BytesIO", "TemporaryFile"]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_sendfile_of_a_part(pairs: Pairs, spawn: Spawn, tmp_path: Path, kind: str) -> None:
    open_source = open_sources(tmp_path / "file")[kind]
    for offset, count, position in offset_cases():

        def scenario(offset: int = offset, count: Any = count, position: int = position) -> Outcome:
            sink, backend = connected("unix")
            received = spawn(receive, backend)
            with open_source() as file, backend:
                file.seek(position)
                result = outcome(lambda: sink.sendfile(file, offset, count))
                sink.close()
                return (result, received.get(), file.tell())

        before, after = before_and_after(scenario)
        assert after == before, (offset, count, position)


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize(
    "arguments", [(0, 0), (0, -1), (0, 1.5), (0, "1"), (-1,), ("1",), (1.5,), (None,)], ids=str
)
def test_bad_arguments_of_sendfile(
    pairs: Pairs, spawn: Spawn, tmp_path: Path, kind: str, arguments: tuple[Any, ...]
) -> None:
    open_source = open_sources(tmp_path / "file")[kind]

    def scenario() -> Outcome:
        sink, backend = connected("unix")
        received = spawn(receive, backend)
        with open_source() as file, backend:
            file.seek(11)
            result = outcome(lambda: sink.sendfile(file, *arguments))
            sink.close()
            return (result, received.get(), file.tell())

    before, after = before_and_after(scenario)
    assert after == before


FILES_REFUSED: dict[str, Callable[[Path], Any]] = {
    "text file": lambda path: path.open(),
    "file to be written": lambda path: path.open("wb"),
    "text": lambda path: io.StringIO("text"),
    "None": lambda path: contextlib.nullcontext(),
    "bytes": lambda path: contextlib.nullcontext(b"bytes"),
    "int": lambda path: contextlib.nullcontext(5),
}


@pytest.mark.parametrize("name", FILES_REFUSED)
def test_what_sendfile_refuses(pairs: Pairs, tmp_path: Path, name: str) -> None:
    def scenario() -> Outcome:
        (tmp_path / "file").write_bytes(b"hello")
        sink, _ = pairs()
        with FILES_REFUSED[name](tmp_path / "file") as file:
            return outcome(lambda: sink.sendfile(file))

    before, after = before_and_after(scenario)
    assert after[:3] == before[:3]


def test_sendfile_of_a_closed_file(pairs: Pairs, tmp_path: Path) -> None:
    def scenario() -> Outcome:
        (tmp_path / "file").write_bytes(b"hello")
        with open(tmp_path / "file", "rb") as file:
            pass
        sink, _ = pairs()
        return outcome(lambda: sink.sendfile(file))

    before, after = before_and_after(scenario)
    assert after == before


@pytest.mark.parametrize("count", [None, 6_000_000])
@pytest.mark.parametrize("state", ["closed", "shut down", "non-blocking", "timed out", "datagram"])
def test_errors_of_sendfile(pairs: Pairs, tmp_path: Path, state: str, count: int | None) -> None:
    def scenario() -> Outcome:
        (tmp_path / "file").write_bytes(bytes(8_000_000))
        kind = socket.SOCK_DGRAM if state == "datagram" else socket.SOCK_STREAM
        sink, backend = socket.socketpair(socket.AF_UNIX, kind)
        if state == "closed":
            sink.close()
        elif state == "shut down":
            sink.shutdown(socket.SHUT_WR)
        elif state != "datagram":
            sink.settimeout(0 if state == "non-blocking" else 0.02)
        with sink, backend, open(tmp_path / "file", "rb") as file:
            result = outcome(lambda: sink.sendfile(file, 0, count))
            return (*result[:3], file.tell())

    before, after = before_and_after(scenario)
    assert after[:3] == before[:3]
    if state != "timed out":
        assert after[3] == 0, "it tells how much was sent; gevent's own what was read"


def test_position_after_sendfile_that_failed_tells_how_much_was_sent(
    pairs: Pairs, tmp_path: Path
) -> None:
    data = pattern(8_000_000)
    (tmp_path / "file").write_bytes(data)
    sink, backend = pairs("unix")
    sink.settimeout(0.02)
    with patched(), open(tmp_path / "file", "rb") as file:
        with pytest.raises(socket.timeout):
            sink.sendfile(file, 1000)
        sent = file.tell() - 1000
    sink.close()
    assert receive(backend) == data[1000 : 1000 + sent]


def test_sendfile_uses_the_system_call(pairs: Pairs, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs()
    received = spawn(receive, backend, len(DATA))
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file) == len(DATA)
    assert received.get() == DATA
    after = gsplice.stats()
    assert (after.spliced - before.spliced, after.copied) == (len(DATA), before.copied)


@pytest.mark.parametrize("mode", ["auto", "copy"])
@pytest.mark.parametrize("size", [1, 53_000, 100_000])
def test_sendfile_does_not_wait_for_room_that_no_byte_needs(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mode: str
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", mode)
    (tmp_path / "file").write_bytes(DATA[:size])
    sink, backend = pairs("unix")
    sink.settimeout(0.5)
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file) == size
    assert receive(backend, size) == DATA[:size]


def test_two_greenlets_that_send_a_file_which_fits_do_not_meet(
    pairs: Pairs, spawn: Spawn, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    sink, backend = pairs("unix")

    def send() -> int:
        with open(tmp_path / "file", "rb") as file:
            return sink.sendfile(file)

    with patched():
        sending = [spawn(send), spawn(send)]
        assert [one.get() for one in sending] == [1, 1]
    assert receive(backend, 2) == b"xx"


@pytest.mark.parametrize(
    ("count", "mode"), [(1, "splice"), (1000, "splice"), (8193, "auto"), (len(DATA), "auto")]
)
def test_sendfile_of_a_known_number_of_bytes_uses_the_system_call_too(
    pairs: Pairs,
    spawn: Spawn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    mode: str,
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", mode)
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs()
    received = spawn(receive, backend, count)
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file, 0, count) == count
        assert file.tell() == count
    assert received.get() == DATA[:count]
    after = gsplice.stats()
    assert (after.spliced - before.spliced, after.copied) == (count, before.copied)


@pytest.mark.parametrize("count", [None, 1000, 20_000])
def test_sendfile_splices_nothing_where_the_process_is_told_to_copy(
    pairs: Pairs,
    spawn: Spawn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int | None,
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", "copy")
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs()
    received = spawn(receive, backend, count or len(DATA))
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file, 0, count) == (count or len(DATA))
    assert received.get() == DATA[:count]
    assert gsplice.stats().spliced == before.spliced


def test_sendfile_over_tls_is_encrypted(pairs: Pairs, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs("tls")
    received = spawn(receive, backend, len(DATA))
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file) == len(DATA)
    assert received.get() == DATA
    assert gsplice.stats().spliced == before.spliced


@pytest.mark.parametrize("count", [None, 100_000])
@pytest.mark.parametrize("as_reader", [False, True], ids=["socket", "reader"])
def test_sendfile_of_a_socket_or_reader_is_spliced(
    line: MakeLine, spawn: Spawn, as_reader: bool, count: int | None
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, DATA)
    expected = count or len(DATA)
    received = spawn(receive, backend, expected)
    before = gsplice.stats().spliced
    with patched(), source.makefile("rb") as reader:
        assert sink.sendfile(reader if as_reader else source, 0, count) == expected
    assert received.get() == DATA[:expected]
    assert gsplice.stats().spliced > before


def test_sendfile_of_a_makefile_reader_delivers_and_does_not_raise(
    line: MakeLine, spawn: Spawn
) -> None:
    """What gevent has delivers, and then fails in its last seek."""
    client, source, sink, backend = line()
    send_and_end(client, b"hello")
    with source.makefile("rb") as reader:
        assert isinstance(error_of(sink.sendfile, reader), io.UnsupportedOperation)
    assert receive(backend, 5) == b"hello"
    client, source, sink, backend = line()
    send_and_end(client, b"hello")
    with patched(), source.makefile("rb") as reader:
        assert sink.sendfile(reader) == 5
    assert receive(backend, 5) == b"hello"
