"""The takeovers, call site by call site: all that changes is who moves the bytes.

Each row is a scenario with the real library, which is run without the takeovers and with them.
What it tells has to be the same: the bytes, what its objects say afterwards, and how the next
exchange on the same connections goes. And the bytes of the body have to be spliced.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import FileWrapper

import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import Spawn, connected, exchange, plain_loop, receive, send_and_end, wait_until
from takeovers import BODY, SIZE, answer, before_and_after, connection_to, with_length
from test_takeover_wsgi import BODY as EXPECTED
from test_takeover_wsgi import client_of, expect_and_send, fetch, serving

import gsplice

DIGEST = hashlib.sha256(BODY).hexdigest().encode()
NEXT = b"the next one"


class Told(NamedTuple):
    """What a row tells: the body that arrived, and what else can be compared."""

    body: bytes
    state: tuple[Any, ...] = ()


def file_in(path: Path, content: bytes = BODY) -> Any:
    """Return an open file with *content*."""
    (path / "file").write_bytes(content)
    return open(path / "file", "rb")


def both_go_on(one: socket.socket, other: socket.socket) -> None:
    """Have two connected sockets make sure that both directions between them still work."""
    for here, there in ((one, other), (other, one)):
        here.sendall(NEXT)
        assert receive(there, len(NEXT)) == NEXT


# sendall and sendfile.


def send_source(kind: str, by: str, spawn: Spawn) -> Told:
    """Send what comes in on a socket, with the loop that one writes where nothing is taken over."""
    client, source = connected()
    sink, backend = connected()
    thing = source if kind == "socket" else source.makefile("rb", 0)
    spawn(send_and_end, client, BODY)
    received = spawn(receive, backend, SIZE)
    if gsplice.is_patched("socket"):
        assert getattr(sink, by)(thing) == (None if by == "sendall" else SIZE)
    else:
        plain_loop(source, sink)
    told = Told(received.get(), (receive(source),))
    both_go_on(sink, backend)
    source.sendall(NEXT)  # which has met the end of what it receives, and no more
    assert receive(client, len(NEXT)) == NEXT
    for to_close in (thing, client, source, sink, backend):
        to_close.close()
    return told


def send_file(path: Path, spawn: Spawn) -> Told:
    sink, backend = connected()
    received = spawn(receive, backend, SIZE)
    with file_in(path, b"before" + BODY + b"after") as file:
        told = Told(b"", (sink.sendfile(file, len(b"before"), SIZE), file.read()))
    told = told._replace(body=received.get())
    both_go_on(sink, backend)
    sink.close()
    backend.close()
    return told


# http.server and http.client.


@contextlib.contextmanager
def http_server(cls: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run a server of the standard library's handlers on gevent's sockets; give its port."""
    server = StreamServer(("127.0.0.1", 0), lambda sock, address: cls(sock, address, None))
    server.start()
    yield server.server_port
    server.stop()


def backend_with(*responses: bytes, spawn: Spawn) -> http.client.HTTPConnection:
    """Return a connection to a backend that answers one request after the other."""
    client, server = connected()

    def serve() -> None:
        with server:
            answer(server, *responses)
            server.recv(1)

    spawn(serve)
    return connection_to(client)


class Quiet(BaseHTTPRequestHandler):
    """A handler that keeps connections and does not log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def down_through_http_server(path: Path, spawn: Spawn) -> Told:
    class Proxy(Quiet):
        def do_GET(self) -> None:
            backend.request("GET", "/")
            with backend.getresponse() as response:
                self.send_response(response.status)
                self.send_header("Content-Length", response.headers["Content-Length"])
                self.end_headers()
                shutil.copyfileobj(response, self.wfile)
                ended.append((response.length, response.isclosed()))

    ended: list[Any] = []
    backend = backend_with(with_length(BODY), with_length(NEXT), spawn=spawn)
    with http_server(Proxy) as port, client_of(port) as client:
        body = fetch(client)[2]
        assert fetch(client)[2] == NEXT
    backend.close()
    return Told(body, tuple(ended))


def up_through_http_server(path: Path, spawn: Spawn) -> Told:
    class Proxy(Quiet):
        def do_PUT(self) -> None:
            with backend.makefile("wb") as writer:
                shutil.copyfileobj(self.rfile, writer)
            exchange(backend, NEXT)
            self.wfile.write(self.rfile.read() + b"thank you")

    def take() -> bytes:
        data = receive(far, SIZE)
        far.sendall(receive(far, len(NEXT)))
        return data

    backend, far = connected()
    received = spawn(take)
    with http_server(Proxy) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"PUT / HTTP/1.0\r\n\r\n")
        send_and_end(client, BODY)
        said = receive(client)
    backend.close()
    far.close()
    return Told(received.get(), (said,))


def response_into_file(path: Path, spawn: Spawn) -> Told:
    backend = backend_with(with_length(BODY), with_length(NEXT), spawn=spawn)
    backend.request("GET", "/")
    with backend.getresponse() as response, open(path / "sink", "wb") as sink:
        shutil.copyfileobj(response, sink)
        state = response.length, response.isclosed(), sink.tell()
    backend.request("GET", "/")
    assert backend.getresponse().read() == NEXT
    backend.close()
    return Told((path / "sink").read_bytes(), state)


def taken_application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Be a backend that says what it has got, as a checksum."""
    start_response("200 OK", [])
    return [hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()]


def request_with(kind: str, chunked: bool, path: Path, spawn: Spawn) -> Told:
    if kind == "file":
        body, to_close = file_in(path), []
    elif kind == "response":
        upstream = backend_with(with_length(BODY), spawn=spawn)
        upstream.request("GET", "/")
        body, to_close = upstream.getresponse(), [upstream]
    else:
        peer, source = connected()
        spawn(send_and_end, peer, BODY)
        body, to_close = source.makefile("rb"), [peer, source]
    headers = {} if chunked else {"Content-Length": str(SIZE)}
    with serving(taken_application) as (port, _), client_of(port) as client, body:
        first = fetch(client, "PUT", body=body, headers=headers)
        second = fetch(client, "PUT", body=NEXT)
        state = first[:2], second, body.read()
    for thing in to_close:
        thing.close()
    assert first[2] == DIGEST
    return Told(BODY, state)


def send_of_a_body(path: Path, spawn: Spawn) -> Told:
    with serving(taken_application) as (port, _), client_of(port) as client:
        with file_in(path) as file:
            client.putrequest("PUT", "/")
            client.putheader("Content-Length", str(SIZE))
            client.endheaders()
            client.send(file)
            state = (file.tell(),)
        said = client.getresponse().read()
        assert fetch(client, "PUT", body=BODY)[2] == said == DIGEST
    return Told(BODY, state)


# gevent.pywsgi.


def file_wrapper(kind: str, with_length_: bool, path: Path, spawn: Spawn) -> Told:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))] if with_length_ else [])
        wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
        if kind == "file":
            return wrapper(file_in(path))
        backend.request("GET", "/")
        return wrapper(backend.getresponse())

    answers = [with_length(BODY)] * (2 if kind == "response" else 0)
    backend = backend_with(*answers, spawn=spawn)
    with serving(application) as (port, log), client_of(port) as client:
        first, second = fetch(client), fetch(client)
        wait_until(lambda: len(log) == 2)
    backend.close()
    assert second[2] == BODY
    return Told(first[2], (first[:2], second[:2], list(log) if with_length_ else None))


def request_body(how: str, path: Path) -> Told:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        source = environ["wsgi.input"]
        head = source.read(10) if how == "partly read" else b""
        with open(path / "sink", "wb") as sink:
            sink.write(head)
            shutil.copyfileobj(source, sink)
        start_response("200 OK", [("Content-Length", "0")])
        positions.append((source.position, source.read()))
        return []

    positions: list[Any] = []
    with serving(application) as (port, log), client_of(port) as client:
        for _ in range(2):
            if how == "expect":
                assert expect_and_send(client, port) == b""
            else:
                fetch(client, "PUT", body=EXPECTED)
            assert (path / "sink").read_bytes() == EXPECTED
        wait_until(lambda: len(log) == 2)
    return Told(BODY, (positions, list(log)))


def reverse_proxy(path: Path, spawn: Spawn) -> Told:
    """Pass a request's body on to a backend, and the body of its response back."""

    def backend_application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return [environ["wsgi.input"].read()[::-1]]

    def proxy(environ: dict[str, Any], start_response: Any) -> Any:
        length = {"Content-Length": environ["CONTENT_LENGTH"]}
        backend.request("PUT", "/", environ["wsgi.input"], length)
        response = backend.getresponse()
        start_response("200 OK", [("Content-Length", response.headers["Content-Length"])])
        return environ.get("wsgi.file_wrapper", FileWrapper)(response)

    with (
        serving(backend_application) as (backend_port, backend_log),
        client_of(backend_port) as backend,
        serving(proxy) as (port, log),
        client_of(port) as client,
    ):
        first, second = (fetch(client, "PUT", body=BODY) for _ in range(2))
        wait_until(lambda: len(log) == len(backend_log) == 2)
    assert second[2] == first[2]
    return Told(first[2][::-1], (first[:2], second[:2], list(log), list(backend_log)))


#: What a row is called → its scenario, and how many times over BODY has to be spliced in it.
ROWS: dict[str, tuple[Callable[[Path, Spawn], Told], int]] = {
    "sendall(socket)": (lambda path, spawn: send_source("socket", "sendall", spawn), 1),
    "sendall(reader)": (lambda path, spawn: send_source("reader", "sendall", spawn), 1),
    "sendfile(socket)": (lambda path, spawn: send_source("socket", "sendfile", spawn), 1),
    "sendfile(reader)": (lambda path, spawn: send_source("reader", "sendfile", spawn), 1),
    "sendfile(file)": (send_file, 1),
    "copyfileobj(response, wfile)": (down_through_http_server, 1),
    "copyfileobj(rfile, writer)": (up_through_http_server, 1),
    "copyfileobj(response, file)": (response_into_file, 1),
    "request(body=file)": (lambda path, spawn: request_with("file", False, path, spawn), 1),
    "request(body=file), chunked": (lambda path, spawn: request_with("file", True, path, spawn), 1),
    "request(body=reader)": (lambda path, spawn: request_with("reader", False, path, spawn), 1),
    "request(body=reader), chunked": (
        lambda path, spawn: request_with("reader", True, path, spawn),
        1,
    ),
    "request(body=response)": (lambda path, spawn: request_with("response", False, path, spawn), 1),
    "send(file)": (send_of_a_body, 1),
    "file_wrapper(file)": (lambda path, spawn: file_wrapper("file", True, path, spawn), 2),
    "file_wrapper(file), chunked": (
        lambda path, spawn: file_wrapper("file", False, path, spawn),
        2,
    ),
    "file_wrapper(response)": (lambda path, spawn: file_wrapper("response", True, path, spawn), 2),
    "file_wrapper(response), chunked": (
        lambda path, spawn: file_wrapper("response", False, path, spawn),
        2,
    ),
    "copyfileobj(wsgi.input, file)": (lambda path, spawn: request_body("whole", path), 2),
    "copyfileobj(wsgi.input, file), partly read": (
        lambda path, spawn: request_body("partly read", path),
        2,
    ),
    "copyfileobj(wsgi.input, file), 100-continue": (
        lambda path, spawn: request_body("expect", path),
        2,
    ),
    "request(body=wsgi.input)": (reverse_proxy, 4),
}


@pytest.mark.parametrize(("scenario", "times"), ROWS.values(), ids=ROWS)
def test_a_call_site_does_what_it_did_and_splices(
    scenario: Callable[[Path, Spawn], Told], times: int, tmp_path: Path, spawn: Spawn
) -> None:
    before = gsplice.stats()
    told = before_and_after(lambda: scenario(tmp_path, spawn))
    after = gsplice.stats()
    assert told.body == BODY
    assert after.spliced - before.spliced > times * SIZE * 0.9
    assert after.fallbacks == before.fallbacks
