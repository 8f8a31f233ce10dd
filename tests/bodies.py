"""Bodies of HTTP messages, as the objects that libraries have for them."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any, TypeAlias

import gunicorn.http.body
import gunicorn.http.unreader
import urllib3
from gevent import socket
from peers import pattern, receive

SIZE = 1_000_003
BODY = pattern(SIZE, 5)


def response_on(sock: socket.socket, method: str = "GET") -> http.client.HTTPResponse:
    """Return the response that comes in on *sock*, its head read."""
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return response


def head(length: int | None) -> bytes:
    """Return the head of a response with a body of *length* bytes."""
    framing = "Connection: close" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode()


def gunicorn_body_on(source: socket.socket) -> Any:
    """Return the body of a request of which gunicorn has read the head."""
    unreader = gunicorn.http.unreader.SocketUnreader(source)
    return gunicorn.http.body.Body(gunicorn.http.body.LengthReader(unreader, SIZE))


def http_body(source: socket.socket) -> Any:
    """Return http.client's object for the body that comes in on *source*."""
    return response_on(source)


def urllib3_body(source: socket.socket) -> Any:
    """Return urllib3's."""
    return urllib3.HTTPResponse(response_on(source), preload_content=False, decode_content=False)


def gunicorn_body(source: socket.socket) -> Any:
    """Return gunicorn's, which is that of a request: here its head is skipped."""
    assert receive(source, len(head(SIZE))) == head(SIZE)
    return gunicorn_body_on(source)


MakeBody: TypeAlias = Callable[[socket.socket], Any]
KINDS_OF_BODY = [http_body, urllib3_body, gunicorn_body]
