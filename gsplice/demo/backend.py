"""The far end: a process that hashes, discards or echoes, as a connection's first byte asks.

It is no part of what is measured, and so does as little as it can: one thread, plain sockets, and
for a timed stream not even the copy to user space.
"""

from __future__ import annotations

import hashlib
import selectors
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from gsplice.demo import processes

#: What a connection may ask for in its first byte. The answer to the first two is sent at the end
#: of file: a SHA-256, or how many bytes there were (8 bytes, big-endian).
HASH: Final = b"H"
COUNT: Final = b"C"
ECHO: Final = b"E"

_BUFFER_SIZE: Final = 1024 * 1024
#: tcp(7): what is received is counted and thrown away. Other systems copy it, for nothing.
_DISCARD: Final = socket.MSG_TRUNC if sys.platform == "linux" else 0

_buffer = memoryview(bytearray(_BUFFER_SIZE))


class _Connection:
    """One connection; `serve` is called when it has something, and returns False at its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._hash = hashlib.sha256()
        self._count = 0
        self.serve: Callable[[], bool] = self._begin

    def _begin(self) -> bool:
        serve = {HASH: self._update, COUNT: self._discard, ECHO: self._echo}.get(self._sock.recv(1))
        if serve is None:
            return False
        self.serve = serve
        return True

    def _update(self) -> bool:
        received = self._sock.recv_into(_buffer)
        self._hash.update(_buffer[:received])
        return bool(received) or self._answer(self._hash.digest())

    def _discard(self) -> bool:
        received = self._sock.recv_into(_buffer, _BUFFER_SIZE, _DISCARD)
        self._count += received
        return bool(received) or self._answer(self._count.to_bytes(8, "big"))

    def _echo(self) -> bool:
        received = self._sock.recv_into(_buffer)
        self._sock.sendall(_buffer[:received])
        return bool(received)

    def _answer(self, answer: bytes) -> bool:
        self._sock.sendall(answer)
        return False


def serve() -> None:
    """Serve all connections until the parent has gone."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ, _Connection(sock))

    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    processes.announce(listener.getsockname()[1])
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                accept()
            elif key.fileobj is sys.stdin:
                return
            else:
                _serve_connection(selector, key.fileobj, key.data)


def _serve_connection(selector: Any, sock: Any, connection: _Connection) -> None:
    try:
        goes_on = connection.serve()
    except OSError:  # the client, or the forwarder, has gone: it will say why
        goes_on = False
    if not goes_on:
        selector.unregister(sock)
        sock.close()


if __name__ == "__main__":
    serve()
