"""What the client sends, and how it is checked that just this arrived."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from gsplice.demo import backend
from gsplice.demo.deadline import DemoError
from gsplice.demo.processes import Forwarder

#: Bytes of randomness, from which all traffic is cut.
_POOL_SIZE: Final = 32 * 1024 * 1024
#: How far apart two writes begin. It is prime, so that none begins where another one did for long:
#: a write that is lost, doubled, swapped or torn changes the SHA-256.
_STRIDE: Final = 1_299_709
#: Bytes of one write in a stream that is in a hurry.
STREAM_WRITE: Final = 256 * 1024
#: Bytes between two calls that tell of progress.
_PORTION: Final = 4 * 1000 * 1000

#: Told how much has been done since the last call.
Moved: TypeAlias = Callable[[float], None]


class Payload:
    """Random bytes: nothing on the way can shorten them."""

    def __init__(self) -> None:
        self._pool = memoryview(os.urandom(_POOL_SIZE))

    def writes(self, total: int, size: int) -> Iterator[memoryview]:
        """Yield *total* bytes in pieces of *size*, the same ones each time."""
        pool, last = self._pool, _POOL_SIZE - size
        offset = 0
        for _ in range(total // size):
            yield pool[offset : offset + size]
            offset = (offset + _STRIDE) % last
        if total % size:
            yield pool[offset : offset + total % size]


def send(sock: socket.socket, writes: Iterator[memoryview], moved: Moved) -> None:
    """Send all *writes*, each by itself, and tell *moved* now and then how much it was."""
    untold = 0
    for write in writes:
        sock.sendall(write)
        untold += len(write)
        if untold >= _PORTION:
            moved(untold)
            untold = 0
    moved(untold)


def verify(forwarder: Forwarder, payload: Payload, total: int, moved: Moved) -> None:
    """Send *total* bytes through *forwarder*, and compare their SHA-256 at the far end."""
    expected = hashlib.sha256()

    def hashed(writes: Iterator[memoryview]) -> Iterator[memoryview]:
        for write in writes:
            expected.update(write)
            yield write

    with forwarder.connect() as sock:
        sock.sendall(backend.HASH)
        send(sock, hashed(payload.writes(total, STREAM_WRITE)), moved)
        sock.shutdown(socket.SHUT_WR)
        digest = sock.recv(expected.digest_size, socket.MSG_WAITALL)
    if digest != expected.digest():
        raise DemoError(
            f"{forwarder.title}: the SHA-256 at the far end is {digest.hex() or 'missing'}, "
            f"and should be {expected.hexdigest()}"
        )
