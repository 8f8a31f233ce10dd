"""Scenarios that are run without takeovers and with them, and what HTTP says in them."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from peers import connected, pattern, receive

import gsplice
from gsplice.takeover import unpatch_all

SIZE = 1_200_003
BODY = pattern(SIZE, 9)
GOOD = b"HTTP/1.1 200 OK\r\n"


def in_chunks(body: bytes, size: int = 50_000) -> bytes:
    """Return *body* in the chunked transfer coding."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def with_length(body: bytes, length: int | None = None) -> bytes:
    """Return a response with *body*, and the Content-Length of it, or another one."""
    return GOOD + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


RESPONSES = {
    "length": with_length(BODY),
    "empty": with_length(b""),
    "one-byte": with_length(b"x"),
    "as-much-as-a-buffer": with_length(BODY[:8192]),
    "one-more-than-a-buffer": with_length(BODY[:8193]),
    "just-worth-while": with_length(BODY[:131_072]),
    "chunked": GOOD + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(BODY),
    "no-content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not-modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
}


def outcome(function: Callable[[], Any]) -> tuple[Any, ...]:
    """Return what can be told about a call: its result, or its error."""
    try:
        return "returned", function()
    except Exception as error:
        return type(error), getattr(error, "errno", None), str(error)


def before_and_after(scenario: Callable[[], Any]) -> Any:
    """Run *scenario* without and with the takeovers; return the result of both, if it is one."""
    before = scenario()
    gsplice.patch_all()
    try:
        after = scenario()
    finally:
        unpatch_all()
    assert after == before
    return after


def answer(sock: socket.socket, *responses: bytes) -> None:
    """Answer one request after the other."""
    for response in responses:
        request = b""
        while b"\r\n\r\n" not in request:
            request += sock.recv(65536)
        sock.sendall(response)


def connection_to(sock: socket.socket) -> http.client.HTTPConnection:
    """Return a connection of http.client's that is connected already."""
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = sock
    return connection


def sink_of(kind: str, path: Path) -> tuple[Any, Callable[[], bytes]]:
    """Return something to copy to, and what tells what it has got, once it is closed."""
    if kind == "file":
        return open(path / "sink", "wb"), (path / "sink").read_bytes
    near, far = connected("unix" if kind == "unix" else "tcp")
    reading = gevent.spawn(receive, far)

    def received() -> bytes:
        near.close()
        data: bytes = reading.get()
        far.close()
        return data

    return near.makefile("wb"), received
