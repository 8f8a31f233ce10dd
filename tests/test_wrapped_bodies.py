"""What is wrapped for `gevent.pywsgi`: closed once, however its answer ends, and logged right."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from gevent import socket
from gevent.event import Event
from peers import Spawn, connected, receive, reset, wait_until
from takeovers import GOOD, SIZE
from test_takeover_wsgi import Log, serving

import gsplice

FAR_TOO_MUCH = 1 << 30
ZEROS = bytes(1 << 16)
MakeWrapped: TypeAlias = Callable[[int], Any]


def send_zeros(sock: socket.socket, size: int) -> None:
    """Be a backend whose body is *size* zeros, for as long as somebody wants them."""
    with sock, contextlib.suppress(OSError):
        sock.sendall(GOOD + b"Content-Length: %d\r\n\r\n" % size)
        for start in range(0, size, len(ZEROS)):
            sock.sendall(ZEROS[: size - start])
        sock.recv(1)


@pytest.fixture(params=["file", "response"])
def make_wrapped(request: pytest.FixtureRequest, tmp_path: Path, spawn: Spawn) -> MakeWrapped:
    """Make something to wrap that gives zeros, and is spliced."""

    def make(size: int) -> Any:
        if request.param == "file":
            with open(tmp_path / "zeros", "wb") as file:
                file.truncate(size)
            return open(tmp_path / "zeros", "rb")
        near, far = connected()
        spawn(send_zeros, far, size)
        response = http.client.HTTPResponse(near)
        response.begin()
        near.close()  # the response has a file of its own on it
        return response

    return make


class Application:
    """Wraps what it has made, and counts how often that is closed."""

    def __init__(self, make: MakeWrapped, size: int, status: str, headers: list[Any]) -> None:
        self.make, self.size, self.status, self.headers = make, size, status, headers
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        def close() -> None:
            self.closed += 1
            original()

        thing = self.make(self.size)
        original = thing.close
        thing.close = close
        start_response(self.status, self.headers)
        return environ["wsgi.file_wrapper"](thing)


@pytest.fixture(autouse=True)
def _patched() -> Iterator[None]:
    gsplice.patch_pywsgi()
    yield
    gsplice.unpatch_all()


def answer_to(port: int, method: str = "GET") -> bytes:
    """Return all that is sent in answer to a request, until the end of file."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{method} / HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        return receive(client)


def length_logged(log: Log) -> int:
    """Return how many bytes the only line of *log* says that the answer had."""
    (line,) = wait_until(lambda: log)
    return int(line.split()[-1])


@pytest.mark.parametrize("length", [SIZE, None], ids=["with-length", "chunked"])
def test_an_answer_that_is_sent_closes_once_and_logs_what_was_on_the_wire(
    make_wrapped: MakeWrapped, length: int | None
) -> None:
    headers = [] if length is None else [("Content-Length", str(length))]
    application = Application(make_wrapped, SIZE, "200 OK", headers)
    before = gsplice.stats().spliced
    with serving(application) as (port, log):
        sent = answer_to(port)
        assert length_logged(log) == len(sent) > SIZE
    assert application.closed == 1
    assert gsplice.stats().spliced - before > SIZE * 0.9


@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")],
)
def test_an_answer_without_a_body_closes_once(
    make_wrapped: MakeWrapped, method: str, status: str
) -> None:
    application = Application(make_wrapped, SIZE, status, [])
    with serving(application) as (port, log):
        sent = answer_to(port, method)
        assert length_logged(log) == len(sent)
    assert sent.endswith(b"\r\n\r\n")
    assert application.closed == 1


@pytest.mark.parametrize("length", [FAR_TOO_MUCH, None], ids=["with-length", "chunked"])
def test_a_client_that_resets_in_the_middle_closes_once_and_is_logged(
    make_wrapped: MakeWrapped, length: int | None
) -> None:
    headers = [] if length is None else [("Content-Length", str(length))]
    application = Application(make_wrapped, FAR_TOO_MUCH, "200 OK", headers)
    before = gsplice.stats().spliced
    with serving(application) as (port, log):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        got = len(receive(client, 300_000))
        reset(client)
        assert got <= length_logged(log) < FAR_TOO_MUCH
    assert application.closed == 1
    assert gsplice.stats().spliced - before > got * 0.9


@pytest.mark.parametrize("length", [SIZE, None], ids=["with-length", "chunked"])
def test_a_backend_that_resets_in_the_middle_closes_once(length: int | None, spawn: Spawn) -> None:
    half_sent = Event()

    def make(size: int) -> http.client.HTTPResponse:
        backend, near = connected()

        def fail() -> None:
            backend.sendall(GOOD + b"Content-Length: %d\r\n\r\n" % size + ZEROS * 4)
            half_sent.wait()
            reset(backend)

        spawn(fail)
        response = http.client.HTTPResponse(near)
        response.begin()
        near.close()
        return response

    headers = [] if length is None else [("Content-Length", str(length))]
    application = Application(make, SIZE, "200 OK", headers)
    with serving(application) as (port, log):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            sent = receive(client, 4 * len(ZEROS))
            half_sent.set()
            sent += receive(client)
        assert length_logged(log) == len(sent)
    assert application.closed == 1
