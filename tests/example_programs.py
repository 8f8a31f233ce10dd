"""Examples as processes of their own, and the peers around them, whose sockets block."""

from __future__ import annotations

import random
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from programs import PATIENCE, REPOSITORY, Program, python, wait_until

EXAMPLES = REPOSITORY / "examples"
PAYLOAD = random.Random(80).randbytes(5_000_003)  # many times what any socket buffers
LOCALHOST = "127.0.0.1"


@contextmanager
def example(
    name: str, *arguments: str, end: signal.Signals = signal.SIGTERM
) -> Iterator[tuple[Program, int]]:
    """The running example and its port; that it ends without a traceback is checked here."""
    with python(EXAMPLES / name, *arguments) as program:
        yield program, int(program.expect(r"listening on \S+:(\d+)")[1])
        program.stop(end)
        assert "Traceback" not in program.output


@contextmanager
def listening(host: str = LOCALHOST) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@contextmanager
def refusing() -> Iterator[socket.socket]:
    """A socket that holds its port and accepts nobody, until the test calls its listen()."""
    with socket.socket() as bound:
        bound.settimeout(PATIENCE)
        bound.bind((LOCALHOST, 0))
        yield bound


def port_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def connect(port: int) -> socket.socket:
    return socket.create_connection((LOCALHOST, port), PATIENCE)


def accept(listener: socket.socket) -> socket.socket:
    peer, _ = listener.accept()
    peer.settimeout(PATIENCE)
    return peer


def receive(sock: socket.socket, count: int | None = None) -> bytes:
    """Count bytes, or all of them up to the end of file."""
    data = bytearray()
    while count is None or len(data) < count:
        piece = sock.recv(65536 if count is None else count - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def send(sock: socket.socket, data: bytes, *, end: bool) -> None:
    sock.sendall(data)
    if end:
        sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_cut_off(sock: socket.socket) -> bool:
    """Waits for the end, polite or not, of a connection on which nothing may arrive any more."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Runs what a peer does while the test does something else."""
    with ThreadPoolExecutor() as pool:
        yield pool


def assert_holds_no_more_files_after(program: Program, visit, times: int = 5) -> None:
    visit()  # the first one also opens what the hub and the resolver keep
    before = program.open_files()
    for _ in range(times):
        visit()
    wait_until(lambda: program.open_files() <= before, f"{program.command} holds {before} files")
