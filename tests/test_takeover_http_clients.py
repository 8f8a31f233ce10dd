"""Clients that others made over http.client or beside it: as before the takeovers."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gevent import socket
from peers import Spawn, run_alone
from takeovers import BODY, RESPONSES, SIZE, answer, before_and_after, outcome, sink_of, with_length

import gsplice
from gsplice.takeover import unpatch_all


def urllib3_scenarios() -> None:
    """Compare urllib3 and requests before and after, in a process of its own that is patched."""
    from gevent import monkey

    monkey.patch_all()
    import gzip

    import requests
    import urllib3
    from gevent.pywsgi import WSGIServer

    zipped = gzip.compress(BODY)

    def application(environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        headers = [("Content-Length", str(SIZE))]
        if path == "/gzip":
            headers = [("Content-Encoding", "gzip"), ("Content-Length", str(len(zipped)))]
        if path == "/chunked":
            headers = []
        if path == "/short":
            headers = [("Content-Length", str(SIZE + 5)), ("Connection", "close")]
        start_response("200 OK", headers)
        return [zipped if path == "/gzip" else BODY] if path != "/chunked" else iter([BODY])

    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    address = f"http://127.0.0.1:{server.server_port}"

    def by_urllib3(path: str, decode: bool, prelude: int) -> Any:
        with urllib3.HTTPConnectionPool("127.0.0.1", server.server_port) as pool:
            response = pool.request("GET", path, preload_content=False, decode_content=decode)
            first, sink = response.read(prelude), socket_pair()
            result = outcome(lambda: shutil.copyfileobj(response, sink[0]))
            state = (
                response.tell(),
                response.length_remaining,
                response.isclosed(),
                response.connection is None,
                pool.pool.qsize(),
                pool.num_connections,
            )
            sink[0].close()
            got = sink[1]()
            if path == "/short":
                # read() with an error has kept a part of the last block for itself.
                return first, result, state, BODY.startswith(first + got)
            assert pool.request("GET", "/").data == BODY
            return first, result, state, got, pool.num_connections

    def by_requests(path: str) -> Any:
        with requests.Session() as session:
            response = session.get(address + path, stream=True)
            sink = socket_pair()
            shutil.copyfileobj(response.raw, sink[0])
            sink[0].close()
            assert session.get(address + "/").content == BODY
            return response.raw.tell(), response.raw.isclosed(), sink[1]()

    def socket_pair() -> tuple[Any, Callable[[], bytes]]:
        return sink_of("tcp", Path())

    def decoded(how: str) -> Any:
        with requests.Session() as session:
            response = session.get(address + "/gzip", stream=True)
            if how == "replaced":
                response.raw.read = functools.partial(response.raw.read, decode_content=True)
            else:
                next(response.iter_content(1000))
            sink = socket_pair()
            result = outcome(lambda: shutil.copyfileobj(response.raw, sink[0]))
            sink[0].close()
            return result, sink[1]()

    assert before_and_after(lambda: decoded("replaced")) == (("returned", None), BODY)
    result, sent = before_and_after(lambda: decoded("in part"))
    assert sent == b""
    assert result[0] is RuntimeError
    for path in ("/", "/gzip", "/chunked", "/short"):
        for decode in (False, True):
            for prelude in (0, 10):
                _, result, *_ = before_and_after(lambda: by_urllib3(path, decode, prelude))  # noqa: B023
                assert (result[0] == "returned") is (path != "/short"), result
        if path != "/short":
            before_and_after(lambda: by_requests(path))  # noqa: B023
    before = gsplice.stats().spliced
    gsplice.patch_all()
    by_urllib3("/", True, 0)
    by_requests("/gzip")
    unpatch_all()
    assert gsplice.stats().spliced - before > SIZE * 0.9 + len(zipped) * 0.9
    assert not gsplice.stats().fallbacks
    server.stop()
    print("compared")


def test_urllib3_and_requests() -> None:
    assert run_alone(urllib3_scenarios) == "compared\n"


def test_geventhttpclient_is_read_by_its_own_methods(tmp_path: Path, spawn: Spawn) -> None:
    from geventhttpclient import HTTPClient

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def serve() -> None:
        server, _ = listener.accept()
        with server:
            answer(server, RESPONSES["length"], with_length(b"the next one"))
            server.recv(1)

    def scenario() -> Any:
        spawn(serve)
        client = HTTPClient("127.0.0.1", listener.getsockname()[1])
        with open(tmp_path / "sink", "wb") as sink:
            shutil.copyfileobj(client.get("/"), sink)
        again = client.get("/").read()
        client.close()
        return (tmp_path / "sink").read_bytes(), bytes(again)

    before = gsplice.stats().spliced
    assert before_and_after(scenario) == (BODY, b"the next one")
    assert gsplice.stats().spliced == before
    listener.close()
