"""``wsgi.file_wrapper`` under `gevent.pywsgi`, where a body is not as long as its head says."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import Spawn, receive
from wrapped import BODY, SIZE, Closing, client_of, fetch, file_at, serving, wrapped


@pytest.mark.parametrize("kind", ["file", "response", "object", "socket"])
@pytest.mark.parametrize("said", [0, 5, 20_000, SIZE - 1])
def test_no_byte_past_content_length(
    kind: str, said: int, with_wrapper: dict[str, Any], tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(said))])
        return environ["wsgi.file_wrapper"](wrapped(kind, tmp_path, spawn))

    with serving(application, **with_wrapper) as (port, _), client_of(port) as client:
        assert fetch(client)[2] == BODY[:said]
        assert fetch(client)[2] == BODY[:said]


@pytest.mark.parametrize("kind", ["file", "response", "object"])
@pytest.mark.parametrize("size", [-1, None, 1000])
def test_no_byte_past_content_length_whatever_the_blocks(
    kind: str, size: Any, with_wrapper: dict[str, Any], tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "20000")])
        return environ["wsgi.file_wrapper"](wrapped(kind, tmp_path, spawn), size)

    with serving(application, **with_wrapper) as (port, _), client_of(port) as client:
        assert fetch(client)[2] == BODY[:20_000]
        assert fetch(client)[2] == BODY[:20_000]


def test_blocks_of_no_bytes_are_a_body_that_is_too_short(
    with_wrapper: dict[str, Any], tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return environ["wsgi.file_wrapper"](wrapped("file", tmp_path, spawn), 0)

    with (
        serving(application, **with_wrapper) as (port, _),
        client_of(port) as client,
        pytest.raises(http.client.IncompleteRead) as short,
    ):
        fetch(client)
    assert short.value.partial == b""


@pytest.mark.parametrize("kind", ["file", "response", "object", "socket"])
def test_a_body_shorter_than_content_length_ends_the_connection(
    kind: str, with_wrapper: dict[str, Any], tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE + 1))])
        return environ["wsgi.file_wrapper"](wrapped(kind, tmp_path, spawn))

    with (
        serving(application, **with_wrapper) as (port, _),
        client_of(port) as client,
        pytest.raises(http.client.IncompleteRead) as short,
    ):
        fetch(client)
    assert short.value.partial == BODY


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No"), ("GET", "304 Not")]
)
def test_nothing_follows_the_head_of_an_answer_without_a_body(
    method: str, status: str, with_wrapper: dict[str, Any], tmp_path: Path
) -> None:
    made: list[Closing] = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, [])
        made.append(Closing(file_at(tmp_path)))
        return environ["wsgi.file_wrapper"](made[-1])

    with serving(application, **with_wrapper) as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"{method} / HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            head, _, rest = receive(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status[:3].encode())
        assert rest == b""
        assert [thing.closed for thing in made] == [1]


def test_a_negative_content_length_is_passed_on_as_it_is(
    with_wrapper: dict[str, Any], tmp_path: Path
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "-1")])
        return iter([BODY]) if plain else environ["wsgi.file_wrapper"](file_at(tmp_path))

    def raw_answer() -> bytes:
        with (
            serving(application, **with_wrapper) as (port, _),
            socket.create_connection(("127.0.0.1", port)) as client,
        ):
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return re.sub(rb"Date: .*", b"", receive(client))

    plain = True
    expected = raw_answer()
    plain = False
    assert raw_answer() == expected
    assert expected.endswith(BODY)
