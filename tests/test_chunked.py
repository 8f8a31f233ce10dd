"""The chunked transfer coding as a sink: each byte in its chunk, whatever the sink has room for."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import (
    MODES,
    MakeLine,
    Spawn,
    decoded,
    error_of,
    pattern,
    receive,
    send_and_end,
    small_buffers,
    wait_until,
    waits_to_write,
)

import gsplice
from gsplice._chunked import LAST_CHUNK, ChunkedSink

TRANSPARENT_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def send_in_chunks(source: Any, sink: socket.socket, mode: str, count: int | None = None) -> int:
    """Send what a server would; return how many bytes went out, as the sink has counted them."""
    chunked = ChunkedSink(sink)
    moved = gsplice.copy(source, chunked, count, mode=mode)
    chunked.end_chunk()
    sink.sendall(LAST_CHUNK)
    sink.shutdown(socket.SHUT_WR)
    return moved + chunked.framing + len(LAST_CHUNK)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, 1, 2, 16_384, 16_385, 3_000_001])
@pytest.mark.parametrize("slow", [False, True], ids=["", "small-buffers"])
def test_from_a_socket(line: MakeLine, spawn: Spawn, size: int, mode: str, slow: bool) -> None:
    client, source, sink, backend = line()
    if slow:
        size //= 2
        small_buffers(sink)  # and not the backend's: TCP would probe its window every 200 ms
    data = pattern(size, 1)
    spawn(send_and_end, client, data)
    received = spawn(receive, backend)
    sent = send_in_chunks(source, sink, mode)
    assert decoded(received.get()) == data
    assert sent == len(received.get())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [None, 1, 70_000])
def test_from_a_file(line: MakeLine, spawn: Spawn, tmp_path: Path, mode: str, count: int) -> None:
    _, _, sink, backend = line()
    small_buffers(sink)
    data = pattern(1_200_000, 2)
    (tmp_path / "file").write_bytes(data)
    received = spawn(receive, backend)
    with open(tmp_path / "file", "rb") as file:
        file.seek(3)
        sent = send_in_chunks(file, sink, mode, count)
    assert decoded(received.get()) == data[3:][:count]
    assert sent == len(received.get())


@pytest.mark.parametrize("mode", MODES)
def test_from_an_object(line: MakeLine, spawn: Spawn, mode: str) -> None:
    _, _, sink, backend = line()
    data = pattern(200_000, 3)
    received = spawn(receive, backend)
    sent = send_in_chunks(io.BytesIO(data), sink, mode)
    assert decoded(received.get()) == data
    assert sent == len(received.get())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["/proc/self/limits", "/proc/cpuinfo", TRANSPARENT_HUGE_PAGES])
def test_a_file_whose_size_is_not_known_to_stat(
    line: MakeLine, spawn: Spawn, name: str, mode: str
) -> None:
    if not os.path.exists(name):
        pytest.skip(f"there is no {name}")
    _, _, sink, backend = line()
    received = spawn(receive, backend)
    with open(name, "rb") as file:
        data = file.read()
        assert len(data) != os.stat(name).st_size
        file.seek(0)
        sent = send_in_chunks(file, sink, mode)
    assert decoded(received.get()) == data
    assert sent == len(received.get())


def test_a_file_that_becomes_shorter_while_it_is_copied_is_no_wrong_chunk(
    line: MakeLine, spawn: Spawn, tmp_path: Path
) -> None:
    _, _, sink, backend = line()
    small_buffers(sink)
    (tmp_path / "file").write_bytes(pattern(400_000, 5))
    with open(tmp_path / "file", "rb+") as file:
        chunked = ChunkedSink(sink)
        transfer = gsplice.Transfer(file, chunked, mode="copy").start()
        wait_until(lambda: waits_to_write(sink))
        file.truncate(0)
        spawn(receive, backend)
        transfer.get(timeout=10)
        error = error_of(chunked.end_chunk)
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO


def test_a_file_that_becomes_shorter_is_an_error_not_a_wrong_chunk(
    line: MakeLine, spawn: Spawn, tmp_path: Path
) -> None:
    _, _, sink, backend = line()
    small_buffers(sink)
    (tmp_path / "file").write_bytes(pattern(400_000, 4))
    with open(tmp_path / "file", "rb+") as file:
        transfer = gsplice.Transfer(file, ChunkedSink(sink)).start()
        first = receive(backend, 1000)
        file.truncate(10_000)
        spawn(receive, backend)
        error = error_of(transfer.get, timeout=10)
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    assert first.startswith(b"61a80\r\n")  # 400,000 bytes were announced
