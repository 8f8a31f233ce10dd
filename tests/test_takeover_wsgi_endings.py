"""``wsgi.file_wrapper`` under `gevent.pywsgi`: clients that go away, backends that fail."""

from __future__ import annotations

import http.client
import io
import select
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIHandler
from peers import connected, poll, receive, reset, wait_until
from wrapped import BODY, SIZE, Closing, client_of, fetch, file_at, serving


def test_close_is_called_when_the_client_goes_away(with_wrapper: dict[str, Any]) -> None:
    class Endless(io.RawIOBase):
        def readinto(self, buffer: Any) -> int:
            return len(buffer)

        def readable(self) -> bool:
            return True

    made: list[Closing] = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        made.append(Closing(Endless()))
        return environ["wsgi.file_wrapper"](made[-1])

    with serving(application, **with_wrapper) as (port, log):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(100)
        wait_until(lambda: log)
        assert made[0].closed == 1


def test_a_backend_that_resets_in_the_middle_is_not_logged_as_an_error_of_the_client(
    with_wrapper: dict[str, Any],
) -> None:
    half_sent = Event()

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        backend, ours = connected()
        backend.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        backend.sendall(BODY[:200_000])

        def fail() -> None:
            half_sent.wait()
            reset(backend)

        gevent.spawn(fail)
        response = http.client.HTTPResponse(ours)
        response.begin()
        ours.close()
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return environ["wsgi.file_wrapper"](response)

    with serving(application, **with_wrapper) as (port, log):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            head, _, body = receive(client, 200_000).partition(b"\r\n\r\n")
            half_sent.set()
            body += receive(client)
        wait_until(lambda: log)
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == BODY[:200_000]
    assert '" 200 ' in log[0]


def test_a_client_that_has_gone_before_the_head_is_told_of_as_for_any_answer(
    with_wrapper: dict[str, Any], tmp_path: Path
) -> None:
    class Telling(with_wrapper.get("handler_class", WSGIHandler)):  # type: ignore[misc]
        def log_request(self) -> None:
            told.append((self.status, self.code))
            super().log_request()

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        sock = environ["wsgi.input"].rfile.raw._sock
        reset(client)
        wait_until(lambda: poll(sock) & select.POLLERR)
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return iter([BODY]) if not told else environ["wsgi.file_wrapper"](file_at(tmp_path))

    told: list[tuple[str, int]] = []
    with serving(application, handler_class=Telling) as (port, log):
        for answers in (1, 2):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            wait_until(lambda: len(log) == answers)  # noqa: B023
    assert log[0] == log[1]
    assert told[0] == told[1]
    assert told[0][0].startswith("socket error: ")


def test_an_error_before_the_first_byte_is_an_answer_of_its_own(
    with_wrapper: dict[str, Any], hub_errors: list[Any]
) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ValueError("broken on purpose")

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "5")])
        return environ["wsgi.file_wrapper"](Broken())

    with serving(application, **with_wrapper) as (port, _), client_of(port) as client:
        assert fetch(client)[0] == 500
    assert [str(error) for _, error in hub_errors] == ["broken on purpose"]
    hub_errors.clear()
