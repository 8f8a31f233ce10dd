"""Promise 2: the errors that come, and that nothing is lost or left by them."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import get_hub, socket
from gevent.exceptions import InvalidThreadUseError
from mishaps import MISHAPS, described
from peers import (
    MODES,
    MakeLine,
    Pairs,
    Spawn,
    connected,
    error_of,
    pattern,
    plain_loop,
    receive,
    reset,
    run_alone,
    send_and_end,
)

import gsplice


def test_raw_stream_in_non_blocking_mode_that_has_nothing(line: MakeLine) -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    _, _, sink, _ = line()
    with (
        open(write_fd, "wb"),
        open(read_fd, "rb", buffering=0) as source,
        pytest.raises(BlockingIOError, match="non-blocking"),
    ):
        gsplice.copy(source, sink)


def test_raw_stream_in_non_blocking_mode_that_takes_nothing(line: MakeLine, spawn: Spawn) -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    client, source, _, _ = line()
    data = pattern(500_000)
    sender = spawn(client.sendall, data)
    with open(read_fd, "rb") as reader, open(write_fd, "wb", buffering=0) as sink:
        transfer = gsplice.Transfer(source, sink).start()
        with pytest.raises(BlockingIOError, match="non-blocking"):
            transfer.get()
        arrived = reader.read(transfer.moved)
    rest = receive(source, len(data) - transfer.moved - len(transfer.undelivered))
    sender.get()
    assert arrived + transfer.undelivered + rest == data


def use_socket_of_another_thread() -> None:
    """Give a socket of this thread's hub to another one's (see the test below)."""
    sockets = (*connected(), *connected())
    errors: list[Any] = []

    def elsewhere() -> None:
        errors.append(error_of(gsplice.copy, sockets[1], sockets[2]))
        errors.append(error_of(gsplice.relay, sockets[1], sockets[2]))
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    for sock in sockets:
        sock.close()
    for error in errors:
        assert isinstance(error, InvalidThreadUseError), error
        assert "thread" in str(error)
    assert len(errors) == 2


def test_socket_of_another_threads_hub() -> None:
    run_alone(use_socket_of_another_thread)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["source", "sink"])
def test_same_error_as_from_a_plain_loop_for_a_socket_that_is_not_connected(
    line: MakeLine, spawn: Spawn, which: str, mode: str
) -> None:
    found = []
    for move in (plain_loop, lambda *ends: gsplice.copy(*ends, mode=mode)):
        client, source, sink, _ = line()
        client.sendall(b"hello")
        with socket.socket() as lonely:
            ends = (lonely, sink) if which == "source" else (source, lonely)
            found.append(described(error_of(move, *ends)))
    assert found[0] == found[1]
    assert found[1][0] is not type(None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in MISHAPS if "source was shut" not in name])
def test_error_in_one_direction_ends_a_relay_and_is_raised(
    line: MakeLine, spawn: Spawn, name: str, mode: str
) -> None:
    ends = line()
    MISHAPS[name](ends, spawn)
    error = error_of(gsplice.relay, ends.source, ends.sink, mode=mode)
    assert isinstance(error, ConnectionError)
    assert ends.source.fileno() >= 0
    assert ends.sink.fileno() >= 0
    assert gsplice.stats().active == 0


@pytest.fixture
def largest_file() -> Iterator[int]:
    """Let no file grow over this many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("mode", MODES)
def test_file_that_may_not_grow_keeps_what_it_got(
    line: MakeLine, spawn: Spawn, tmp_path: Path, largest_file: int, mode: str
) -> None:
    client, source, _, _ = line()
    data = pattern(400_000)
    sender = spawn(send_and_end, client, data)
    with open(tmp_path / "file", "wb") as file:
        transfer = gsplice.Transfer(source, file, mode=mode).start()
        with pytest.raises(OSError, match="File too large") as caught:
            transfer.get()
        assert caught.value.errno == errno.EFBIG
        assert file.tell() == transfer.moved == largest_file
    arrived = (tmp_path / "file").read_bytes()
    assert arrived + transfer.undelivered + receive(source) == data
    sender.get()


def test_error_of_an_objects_own_method_comes_out_as_it_is(line: MakeLine) -> None:
    class Failing:
        def read(self, size: int) -> bytes:
            raise LookupError("my own")

        def write(self, data: Any) -> int:
            raise LookupError("my own")

    client, source, sink, _ = line()
    with pytest.raises(LookupError, match="my own"):
        gsplice.copy(Failing(), sink)
    client.sendall(b"hello")
    transfer = gsplice.Transfer(source, Failing()).start()
    with pytest.raises(LookupError, match="my own"):
        transfer.get()
    assert (transfer.moved, transfer.undelivered) == (0, b"hello")


@pytest.mark.parametrize("mode", MODES)
def test_an_error_keeps_no_socket_open(pairs: Pairs, mode: str) -> None:
    client, source = pairs()
    sink, _ = pairs()
    reset(client)
    errors = [error_of(gsplice.copy, source, sink, mode=mode)]
    fd = source.fileno()
    source.close()
    assert errors[0] is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
