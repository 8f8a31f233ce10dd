"""``wsgi.file_wrapper`` and ``wsgi.input`` under `gevent.pywsgi`: what goes out, what is left."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import gevent
import pytest
from gevent import socket
from gevent.pywsgi import WSGIHandler, WSGIServer
from peers import Spawn, segments_received, wait_until
from wrapped import BODY, SIZE, Log, client_of, fetch, file_at, response_with, serving, wrapped

import gsplice
import gsplice.pywsgi
from gsplice._addresses import bound
from gsplice.takeover import unpatch_all


def without_delay(no_delay: int = 1) -> socket.socket:
    """Listen for connections on which a server's small writes wait for no acknowledgement."""
    listener = bound(socket.AF_INET, ("127.0.0.1", 0), 5)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, no_delay)
    return listener


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 16_384, 16_385, 131_072, SIZE])
@pytest.mark.parametrize("length", ["with-length", "chunked"])
@pytest.mark.parametrize("kind", ["file", "response", "object"])
def test_a_wrapper_sends_what_a_plain_iterable_does(
    kind: str, length: str, size: int, tmp_path: Path, spawn: Spawn
) -> None:
    headers = [("Content-Length", str(size))] if length == "with-length" else []

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", headers)
        thing = wrapped(kind, tmp_path, spawn, BODY[:size])
        with contextlib.closing(thing):
            yield from iter(lambda: thing.read(8192), b"")

    def wrapping(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", headers)
        return environ["wsgi.file_wrapper"](wrapped(kind, tmp_path, spawn, BODY[:size]))

    with serving(plain, without_delay()) as (port, log), client_of(port) as client:
        before = [fetch(client), fetch(client)]
        wait_until(lambda: len(log) == 2)
    gsplice.patch_pywsgi()
    with serving(wrapping) as (port, after_log), client_of(port) as client:
        assert [fetch(client), fetch(client)] == before
        wait_until(lambda: len(after_log) == 2)
    unpatch_all()
    assert before[0][2] == BODY[:size]
    if length == "with-length":  # the number of chunks, and so of bytes, may be another
        assert after_log == log


@pytest.mark.parametrize("length", ["with-length", "chunked"])
@pytest.mark.parametrize("kind", ["file", "response", "error", "socket"])
def test_a_wrapped_body_is_spliced(
    kind: str, length: str, with_wrapper: dict[str, Any], tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))] if length != "chunked" else [])
        return environ["wsgi.file_wrapper"](wrapped(kind, tmp_path, spawn))

    with serving(application, **with_wrapper) as (port, _), client_of(port) as client:
        before = gsplice.stats().spliced
        assert fetch(client)[2] == BODY
        assert gsplice.stats().spliced - before > (SIZE - 1 if kind == "file" else SIZE * 0.9)
        assert fetch(client)[2] == BODY


def test_a_file_whose_size_is_not_known_to_stat(with_wrapper: dict[str, Any]) -> None:
    name = "/proc/self/limits"
    if not os.path.exists(name):
        pytest.skip(f"there is no {name}")

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "POST":
            start_response("200 OK", [])
            return [environ["wsgi.input"].read()]
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(name, "rb"))

    data = Path(name).read_bytes()
    gsplice.patch_http()
    try:
        with serving(application, **with_wrapper) as (port, _), client_of(port) as connection:
            assert fetch(connection)[2] == data
            with open(name, "rb") as body:
                assert fetch(connection, "POST", body=body)[2] == data
    finally:
        unpatch_all()


@pytest.mark.parametrize("base", [WSGIHandler, gsplice.pywsgi.WSGIHandler])
@pytest.mark.parametrize("method", ["write", "_write", "_sendall"])
@pytest.mark.parametrize("with_length", [True, False], ids=["with-length", "chunked"])
def test_a_handler_that_writes_in_its_own_way_writes_it_all(
    base: type[Any], method: str, with_length: bool, tmp_path: Path
) -> None:
    seen: list[bytes] = []

    def counting(self: Any, data: Any) -> None:
        seen.append(bytes(data))
        getattr(base, method)(self, data)

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))] if with_length else [])
        return FileWrapper(file_at(tmp_path))

    handler = type("Handler", (base,), {method: counting})
    gsplice.patch_pywsgi()
    try:
        with serving(application, handler_class=handler) as (port, _), client_of(port) as client:
            assert fetch(client)[2] == BODY
    finally:
        unpatch_all()
    assert len(b"".join(seen)) >= SIZE


@pytest.mark.parametrize("size", [1000, 20_000])
@pytest.mark.parametrize("no_delay", [0, 1], ids=["", "no-delay"])
def test_a_small_file_comes_in_one_segment_with_its_head(
    with_wrapper: dict[str, Any], no_delay: int, size: int, tmp_path: Path
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(size))])
        return environ["wsgi.file_wrapper"](file_at(tmp_path, BODY[:size]))

    listener = without_delay(no_delay)
    with serving(application, listener, **with_wrapper) as (port, _), client_of(port) as client:
        for answers in (1, 2, 3):
            assert fetch(client)[2] == BODY[:size]
            assert segments_received(client.sock) == answers


@pytest.mark.parametrize(("size", "sent"), [(0, b""), (-1, BODY), (1000, BODY)])
@pytest.mark.parametrize("kind", ["file", "response"])
def test_a_block_size_is_what_the_wrapper_reads_by(
    with_wrapper: dict[str, Any], kind: str, size: int, sent: bytes, tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        made.append(file_at(tmp_path) if kind == "file" else response_with(BODY, spawn))
        return environ["wsgi.file_wrapper"](made[-1], size)

    made: list[Any] = []
    with serving(application, **with_wrapper) as (port, _), client_of(port) as client:
        assert fetch(client)[2] == sent
    made[-1].close()


def test_a_server_at_a_unix_socket_sends_a_file_and_answers_the_next_request(
    with_wrapper: dict[str, Any], tmp_path: Path
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return environ["wsgi.file_wrapper"](file_at(tmp_path))

    listener = bound(socket.AF_UNIX, str(tmp_path / "socket"), 5)
    server = WSGIServer(listener, application, log=Log(), **with_wrapper)
    server.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "socket"))
        for _ in range(2):
            before = gsplice.stats().spliced
            sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert response.read() == BODY
            assert gsplice.stats().spliced - before == SIZE
    server.stop()


def test_the_wrapper_is_valid_and_an_own_one_is_left_alone(with_wrapper: dict[str, Any]) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"valid"))

    with serving(validator(application), **with_wrapper) as (port, _), client_of(port) as client:
        assert fetch(client)[2] == b"valid"

    def own(thing: Any, size: int = 0) -> list[bytes]:
        return [b"own"]

    options = with_wrapper | {"environ": {"wsgi.file_wrapper": own}}
    with serving(application, **options) as (port, _), client_of(port) as client:
        assert fetch(client)[2] == b"own"


def test_bytes_written_before_the_wrapper_come_first(with_wrapper: dict[str, Any]) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])(b"first, ")
        return environ["wsgi.file_wrapper"](io.BytesIO(b"second"))

    with serving(application, **with_wrapper) as (port, _), client_of(port) as client:
        assert fetch(client)[2] == b"first, second"


@pytest.mark.parametrize("taken", [0, 10, 100_000, SIZE])
@pytest.mark.parametrize("framing", ["with-length", "chunked", "expect"])
def test_request_bodies_and_the_request_after(
    taken: int, framing: str, tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        source = environ["wsgi.input"]
        with open(tmp_path / "sink", "wb") as sink:
            head = source.read(3) if taken else b""
            moved = gsplice.copy(source, sink, max(taken - 3, 0)) if taken else 0
            position = None if source.chunked_input else source.position
        start_response("200 OK", [])
        return [repr((head, moved, position)).encode()]

    with serving(application) as (port, _), client_of(port) as client:
        for _ in range(2):
            before = gsplice.stats().spliced
            if framing == "expect":
                answer = expect_and_send(client, port)
            else:
                body = iter([BODY]) if framing == "chunked" else BODY
                answer = fetch(client, "PUT", body=body)[2]
            position = None if framing == "chunked" else taken
            assert (
                answer == repr((BODY[:3] if taken else b"", max(taken - 3, 0), position)).encode()
            )
            assert (tmp_path / "sink").read_bytes() == BODY[3 : max(taken, 3)]
            if taken == SIZE and framing != "chunked":
                assert gsplice.stats().spliced - before > SIZE * 0.9


def expect_and_send(client: http.client.HTTPConnection, port: int) -> bytes:
    """Send a body only when the server has asked for it, or has answered without it."""
    if client.sock is None:
        client.connect()
    head = f"PUT / HTTP/1.1\r\nContent-Length: {SIZE}\r\nExpect: 100-continue\r\n\r\n"
    client.sock.sendall(head.encode())
    reader = client.sock.makefile("rb")
    line = reader.readline()
    if line == b"HTTP/1.1 100 Continue\r\n":
        assert reader.readline() == b"\r\n"
        sending = gevent.spawn(client.sock.sendall, BODY)
        line = reader.readline()
        sending.get()
    else:
        client.sock.sendall(BODY)  # it was not wanted, but has been announced
    assert line == b"HTTP/1.1 200 OK\r\n"
    length = 0
    chunked = False
    while line := reader.readline().strip():
        chunked = chunked or line == b"Transfer-Encoding: chunked"
        if line.startswith(b"Content-Length:"):
            length = int(line.split()[1])
    assert not chunked
    return reader.read(length)
