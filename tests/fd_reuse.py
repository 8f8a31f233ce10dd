"""The number of an fd that was closed is used again, by a connection that nobody may touch."""

from __future__ import annotations

import os

import gevent
from gevent import socket
from peers import Pair, connected, peeked, receive, wait_until

OTHERS_BYTES = b"of another connection"


def close_and_reuse(sock: socket.socket) -> Pair:
    """Close *sock*, and use its number for a connection that has bytes to read."""
    near, far = connected("tcp")  # made before: its own numbers have to be others
    far.sendall(OTHERS_BYTES)
    fd = sock.fileno()
    sock.close()
    wait_until(lambda: is_free(fd))
    os.dup2(near.fileno(), fd)
    near.close()
    return socket.socket(far.family, far.type, far.proto, fileno=fd), far


def is_free(fd: int) -> bool:
    """Whether nothing has the number *fd*."""
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def assert_untouched(near: socket.socket, far: socket.socket) -> None:
    """Check that nobody has read from the connection or written to it; close it."""
    try:
        wait_until(lambda: peeked(near) == OTHERS_BYTES)
        gevent.sleep(0)
        assert receive(near, len(OTHERS_BYTES)) == OTHERS_BYTES
        near.shutdown(socket.SHUT_WR)
        assert receive(far) == b"", "bytes of a transfer went to another's connection"
    finally:
        near.close()
        far.close()
