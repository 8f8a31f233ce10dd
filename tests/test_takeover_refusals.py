"""What the takeovers refuse to splice is copied: the same bytes, results and next requests."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
import urllib3
from gevent import socket
from peers import Spawn, connected, connected_tls, receive, send_and_end, tls_contexts
from takeovers import BODY, GOOD, SIZE, before_and_after, connection_to, with_length
from test_takeover_wsgi import fetch, serving

import gsplice


def encoded_response(coding: str, body: bytes) -> bytes:
    """Return a response whose body is encoded."""
    head = b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(body))
    return GOOD + head + body


@pytest.mark.parametrize(
    ("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("decode", [True, False], ids=["decoded", "as-it-is"])
def test_a_body_that_is_decoded_on_the_way_is_copied(
    coding: str, encode: Callable[[bytes], bytes], decode: bool, spawn: Spawn
) -> None:
    encoded = encode(BODY)

    def scenario() -> bytes:
        client, server = connected()
        sink, backend = connected()
        spawn(send_and_end, server, encoded_response(coding, encoded))
        response = http.client.HTTPResponse(client)
        response.begin()
        headers = dict(response.getheaders())
        body = urllib3.HTTPResponse(response, headers, preload_content=False, decode_content=decode)
        received = spawn(receive, backend)
        with sink.makefile("wb") as writer:
            shutil.copyfileobj(body, writer)
        for sock in (client, server, sink):
            sock.close()
        with backend:
            return received.get()

    before = gsplice.stats().spliced
    assert before_and_after(scenario) == (BODY if decode else encoded)
    spliced = gsplice.stats().spliced - before
    assert spliced == 0 if decode else spliced > len(encoded) * 0.9


def test_text_is_copied(tmp_path: Path, spawn: Spawn) -> None:
    (tmp_path / "text").write_text("täxt\n" * 100_000, "utf-8")

    def scenario() -> tuple[bytes, ...]:
        sink, backend = connected()
        received = spawn(receive, backend)
        with (
            open(tmp_path / "text", encoding="utf-8") as source,
            sink.makefile("w", encoding="latin-1") as writer,
        ):
            shutil.copyfileobj(source, writer)
        connection = connection_to(sink)
        with open(tmp_path / "text", encoding="latin-1") as source:
            connection.send(source)
        connection.close()
        with backend:
            return (received.get(),)

    before = gsplice.stats().spliced
    (sent,) = before_and_after(scenario)
    assert sent == "täxt\n".encode("latin-1") * 100_000 + "täxt\n".encode() * 100_000
    assert gsplice.stats().spliced == before


@pytest.mark.parametrize(
    ("kind", "tls"), [("file", "client"), ("response", "client"), ("response", "backend")]
)
def test_what_is_wrapped_for_pywsgi_is_copied_where_tls_is_on_either_side(
    kind: str, tls: str, tmp_path: Path, spawn: Spawn
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(SIZE))])
        wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
        if kind == "file":
            return wrapper(open(tmp_path / "file", "rb"))
        near, far = connected_tls() if tls == "backend" else connected()
        to_close.extend((near, far))
        spawn(far.sendall, with_length(BODY))
        response = http.client.HTTPResponse(near)
        response.begin()
        return wrapper(response)

    (tmp_path / "file").write_bytes(BODY)
    for_client, for_server = tls_contexts()
    options = {"ssl_context": for_server} if tls == "client" else {}
    to_close: list[Any] = []

    def scenario() -> Any:
        with serving(application, **options) as (port, _):
            sock = socket.create_connection(("127.0.0.1", port))
            if tls == "client":
                sock = for_client.wrap_socket(sock, server_hostname="localhost")
            with contextlib.closing(connection_to(sock)) as client:
                return fetch(client), fetch(client)

    before = gsplice.stats().spliced
    first, second = before_and_after(scenario)
    assert first[2] == second[2] == BODY
    assert gsplice.stats().spliced == before
    for sock in to_close:
        sock.close()
