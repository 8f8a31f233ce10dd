"""Servers on `gevent.pywsgi` that have a file wrapper, and what is wrapped in it."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from gevent.pywsgi import WSGIServer
from peers import Spawn, connected, pattern, send_and_end

import gsplice
import gsplice.pywsgi
from gsplice.takeover import unpatch_all

SIZE = 1_200_003
BODY = pattern(SIZE, 12)
Application = Callable[[dict[str, Any], Any], Any]


class Log(list[str]):
    """What a server writes its access log to."""

    def write(self, line: str) -> None:
        """Keep a line, but for its time."""
        self.append(re.sub(r"\[.*?\]", "[]", line.rsplit(" ", 1)[0]))


@contextlib.contextmanager
def serving(
    application: Application, listener: Any = ("127.0.0.1", 0), **options: Any
) -> Iterator[tuple[int, Log]]:
    """Run a server; its port and its log are given."""
    log = Log()
    server = WSGIServer(listener, application, log=log, **options)
    server.start()
    try:
        yield server.server_port, log
    finally:
        server.stop()


@pytest.fixture(params=["patched", "handler-class"])
def with_wrapper(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Provide a file wrapper in each of the two ways; what `serving` needs for it is given."""
    if request.param == "patched":
        gsplice.patch_pywsgi()
        yield {}
        unpatch_all()
    else:
        yield {"handler_class": gsplice.pywsgi.WSGIHandler}


@contextlib.contextmanager
def client_of(port: int) -> Iterator[http.client.HTTPConnection]:
    """Connect to a server."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection._create_connection = socket.create_connection
    yield connection
    connection.close()


def fetch(
    connection: http.client.HTTPConnection, method: str = "GET", path: str = "/", **request: Any
) -> tuple[int, dict[str, str], bytes]:
    """Make a request; return the status, the headers and the body."""
    connection.request(method, path, **request)
    response = connection.getresponse()
    headers = {name: value for name, value in response.getheaders() if name != "Date"}
    return response.status, headers, response.read()


class Closing:
    """Something to wrap, which tells that it was closed."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.closed = 0

    def read(self, size: int = -1) -> bytes:
        """Read."""
        data: bytes = self.thing.read(size)
        return data

    def close(self) -> None:
        """Close."""
        self.closed += 1
        self.thing.close()


def file_at(path: Path, body: bytes = BODY) -> Any:
    """Return an open file with *body*."""
    (path / "file").write_bytes(body)
    return open(path / "file", "rb")


def response_with(body: bytes, spawn: Spawn) -> http.client.HTTPResponse:
    """Return a backend's response that has arrived up to its head."""
    client, server = connected()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

    def answer() -> None:
        with server, contextlib.suppress(OSError):
            send_and_end(server, head + body)
            server.recv(1)

    spawn(answer)
    response = http.client.HTTPResponse(client)
    response.begin()
    client.close()  # the response has a file of its own on it
    return response


def send_and_close(sock: socket.socket, data: bytes) -> None:
    """Be a peer that sends and is done; whoever reads may want less."""
    with sock, contextlib.suppress(OSError):
        sock.sendall(data)


def wrapped(kind: str, path: Path, spawn: Spawn, body: bytes = BODY) -> Any:
    """Return something to wrap."""
    if kind == "file":
        return file_at(path, body)
    if kind == "socket":
        near, far = connected()
        spawn(send_and_close, near, body)
        return far
    if kind == "object":
        return io.BytesIO(body)
    response = response_with(body, spawn)
    if kind == "response":
        return response
    return urllib.error.HTTPError("http://backend/", 404, "Not Found", response.headers, response)
