"""What goes wrong on the way: each brings a line to where its error is certain.

That is before *move* is at work, or while it is. What comes out has to be what a loop of recv and
sendall would have raised.
"""

from __future__ import annotations

import select
from typing import Any

from gevent import socket
from peers import (
    MORE_THAN_BUFFERS,
    Line,
    Spawn,
    error_of,
    is_readable,
    pattern,
    poll,
    receive,
    reset,
    wait_until,
    waits_to_read,
)

STREAM = pattern(100_000)  # finds room in the buffers, if nobody reads

#: Leaves the session of a TLS socket, which is one too, as it is.
shut_down = socket.socket.shutdown


def source_was_reset(ends: Line, spawn: Spawn) -> None:
    reset(ends.client)
    wait_until(lambda: is_readable(ends.source))


def source_is_reset_while_idle(ends: Line, spawn: Spawn) -> None:
    def strike() -> None:
        wait_until(lambda: waits_to_read(ends.source))
        reset(ends.client)

    spawn(strike)


def source_is_reset_after_bytes(ends: Line, spawn: Spawn) -> None:
    def strike() -> None:
        ends.client.sendall(STREAM)
        receive(ends.backend, len(STREAM))
        reset(ends.client)

    spawn(strike)


def source_ends_with_bytes_unread(ends: Line, spawn: Spawn) -> None:
    ends.source.sendall(b"unread")
    wait_until(lambda: is_readable(ends.client))
    ends.client.close()


def sink_was_reset(ends: Line, spawn: Spawn) -> None:
    ends.client.sendall(b"hello")
    reset(ends.backend)
    wait_until(lambda: poll(ends.sink) & (select.POLLERR | select.POLLHUP))


def sink_was_reset_before_a_stream(ends: Line, spawn: Spawn) -> None:
    spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    reset(ends.backend)
    wait_until(lambda: poll(ends.sink) & (select.POLLERR | select.POLLHUP))


def sink_was_shut_down(ends: Line, spawn: Spawn) -> None:
    ends.client.sendall(b"hello")
    shut_down(ends.sink, socket.SHUT_WR)


def sink_was_shut_down_before_a_stream(ends: Line, spawn: Spawn) -> None:
    spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    shut_down(ends.sink, socket.SHUT_WR)


def source_was_shut_down(ends: Line, spawn: Spawn) -> None:
    shut_down(ends.source, socket.SHUT_RD)


MISHAPS = {
    function.__name__.replace("_", " "): function
    for function in (
        source_was_reset,
        source_is_reset_while_idle,
        source_is_reset_after_bytes,
        source_ends_with_bytes_unread,
        sink_was_reset,
        sink_was_reset_before_a_stream,
        sink_was_shut_down,
        sink_was_shut_down_before_a_stream,
        source_was_shut_down,
    )
}


def described(error: BaseException | None) -> tuple[Any, ...]:
    """Return what a caller can tell about *error*."""
    return (type(error), getattr(error, "errno", None), str(error))
