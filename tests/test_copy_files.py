"""`copy` from and into regular files, whose position is the transfer's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    MakeLine,
    Spawn,
    pattern,
    receive,
    send_and_end,
    wait_until,
)
from sources import DATA

import gsplice


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
