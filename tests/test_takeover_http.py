"""Takeovers of the standard library: the same bytes, results and end states as without them.

Each scenario is run twice, before and after `patch_all`, and what can be told of it is compared.
"""

from __future__ import annotations

import functools
import http.client
import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import socketpair as standard_socketpair
from typing import Any

import gevent
import pytest
from gevent import socket
from peers import (
    Spawn,
    connected,
    connected_tls,
    decoded,
    error_of,
    pattern,
    receive,
    reset,
    run_alone,
    send_and_end,
)

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
ENDED_BY_CLOSE = {
    "until-close": GOOD + b"Connection: close\r\n\r\n" + BODY,
    "http/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    "too-short": with_length(BODY, SIZE + 1),
    "much-too-short": with_length(b"", SIZE),
    "chunk-too-short": GOOD + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(BODY)[:-100_000],
}
BEFORE = {
    "untouched": lambda response: b"",
    "partly-read": lambda response: response.read(10),
    "peeked": lambda response: response.peek(1) and b"",
    "line-read": lambda response: response.readline(5),
}


def state_of(response: http.client.HTTPResponse) -> tuple[Any, ...]:
    """Return what a user can see of *response*."""
    return response.length, response.isclosed(), response.closed, response.read()


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


#: Before a body of which there is something, other things can have been done.
KINDS_AND_PRELUDES = [
    *((kind, "untouched") for kind in [*RESPONSES, *ENDED_BY_CLOSE]),
    *((kind, prelude) for kind in ("length", "until-close", "chunked") for prelude in BEFORE),
]


@pytest.mark.parametrize("sink_kind", ["file", "tcp", "unix"])
@pytest.mark.parametrize(("kind", "prelude"), KINDS_AND_PRELUDES)
def test_a_response_copied_by_copyfileobj(
    kind: str, prelude: str, sink_kind: str, tmp_path: Path, spawn: Spawn
) -> None:
    def scenario() -> Any:
        client, server = connected()
        sink, received = sink_of(sink_kind, tmp_path)
        connection = connection_to(client)
        connection.request("GET", "/")
        if kind in RESPONSES:
            spawn(answer, server, RESPONSES[kind], with_length(b"the next one"))
        else:
            spawn(send_and_end, server, ENDED_BY_CLOSE[kind])
        with connection.getresponse() as response:
            first = BEFORE[prelude](response)
            result = outcome(lambda: shutil.copyfileobj(response, sink))
            state = state_of(response) if "short" not in kind else response.length
        position = sink.tell() if sink_kind == "file" else None
        sink.close()
        again = b""
        if kind in RESPONSES:
            connection.request("GET", "/")
            again = connection.getresponse().read()
        connection.close()
        server.close()
        return first, result, state, position, received(), again

    _, _, _, _, got, again = before_and_after(scenario)
    if kind == "length":
        assert got in BODY
        assert again == b"the next one"


@pytest.mark.parametrize("sink_kind", ["file", "tcp"])
@pytest.mark.parametrize("kind", ["length", "until-close"])
def test_a_response_is_spliced(kind: str, sink_kind: str, tmp_path: Path, spawn: Spawn) -> None:
    client, server = connected()
    sink, received = sink_of(sink_kind, tmp_path)
    connection = connection_to(client)
    connection.request("GET", "/")
    spawn(send_and_end, server, (RESPONSES | ENDED_BY_CLOSE)[kind])
    gsplice.patch_shutil()
    before = gsplice.stats()
    with connection.getresponse() as response:
        shutil.copyfileobj(response, sink)
    after = gsplice.stats()
    unpatch_all()
    sink.close()
    assert received() == BODY
    assert after.spliced - before.spliced > SIZE * 0.9
    assert after.fallbacks == before.fallbacks
    connection.close()
    server.close()


def test_errors_of_a_backend_that_resets(tmp_path: Path) -> None:
    def scenario() -> Any:
        client, server = connected()
        connection = connection_to(client)
        connection.request("GET", "/")
        server.sendall(with_length(BODY[:100_000], SIZE))
        response = connection.getresponse()
        head = response.read(100_000)
        reset(server)
        with open(tmp_path / "sink", "wb") as sink:
            result = outcome(lambda: shutil.copyfileobj(response, sink))
        state = response.length, response.isclosed()
        response.close()
        connection.close()
        return len(head), result, state

    _, result, _ = before_and_after(scenario)
    assert result[0] is ConnectionResetError


def test_a_backend_that_is_silent_times_out_and_the_reader_is_of_no_more_use(
    tmp_path: Path,
) -> None:
    def scenario() -> Any:
        client, server = connected()
        client.settimeout(0.05)
        connection = connection_to(client)
        connection.request("GET", "/")
        server.sendall(with_length(BODY[:100_000], SIZE))
        response = connection.getresponse()
        with open(tmp_path / "sink", "wb") as sink:
            result = outcome(lambda: shutil.copyfileobj(response, sink))
        again = outcome(lambda: response.read(10))
        response.close()
        connection.close()
        server.close()
        return result, again

    result, again = before_and_after(scenario)
    assert result[0] is TimeoutError
    assert again[2] == "cannot read from timed out object"


def test_copyfileobj_takes_sockets_as_they_are(spawn: Spawn) -> None:
    client, source = connected()
    sink, backend = connected()
    spawn(send_and_end, client, BODY)
    received = spawn(receive, backend, SIZE)
    assert isinstance(error_of(shutil.copyfileobj, source, sink), AttributeError)
    gsplice.patch_shutil()
    assert shutil.copyfileobj(source, sink) is None
    unpatch_all()
    assert received.get() == BODY
    for sock in (client, source, sink, backend):
        sock.close()


@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_copyfileobj_of_other_things_is_as_before(length: int, tmp_path: Path) -> None:
    def scenario() -> Any:
        (tmp_path / "source").write_bytes(BODY)
        with open(tmp_path / "source", "rb") as source, open(tmp_path / "sink", "wb") as sink:
            shutil.copyfileobj(source, sink, length)
        text, copied = io.StringIO("text"), io.StringIO()
        shutil.copyfileobj(text, copied, length)
        return (tmp_path / "sink").read_bytes(), copied.getvalue()

    assert before_and_after(scenario) == (BODY, "text")


def test_copyfileobj_of_what_cannot_be_copied_fails_as_before() -> None:
    before_and_after(lambda: outcome(lambda: shutil.copyfileobj(1, 2)))
    before_and_after(lambda: outcome(lambda: shutil.copyfileobj(io.BytesIO(b"x"), io.StringIO())))
    before_and_after(lambda: outcome(lambda: shutil.copyfileobj(io.BytesIO(), io.BytesIO(), "x")))


def source_of(kind: str, path: Path, spawn: Spawn) -> tuple[Any, list[Any]]:
    """Return a request's body of *kind*, and what has to be closed."""
    if kind == "file":
        (path / "body").write_bytes(BODY)
        file = open(path / "body", "rb")  # noqa: SIM115 - the caller closes it
        file.seek(3)
        return file, [file]
    if kind == "text":
        (path / "body").write_text("text " * 10_000)
        text = open(path / "body")  # noqa: SIM115
        return text, [text]
    if kind in ("reader", "response"):
        client, source = connected()
        spawn(send_and_end, client, BODY if kind == "reader" else with_length(BODY))
        if kind == "reader":
            reader = source.makefile("rb")
            return reader, [reader, source, client]
        response = http.client.HTTPResponse(source)
        response.begin()
        return response, [response, source, client]
    values = {"bytes": BODY, "str": "text", "none": None, "iterable": [b"a", b"", b"b"]}
    return values[kind], []


@pytest.mark.parametrize("in_length", [True, False], ids=["with-length", "chunked"])
@pytest.mark.parametrize(
    "kind", ["file", "text", "reader", "response", "bytes", "str", "none", "iterable"]
)
def test_a_request_with_a_body(kind: str, in_length: bool, tmp_path: Path, spawn: Spawn) -> None:
    sizes = {"file": SIZE - 3, "text": 50_000, "str": 4, "none": 0, "iterable": 2}
    headers = {"Content-Length": str(sizes.get(kind, SIZE))} if in_length else {}

    def scenario() -> Any:
        client, server = connected()
        connection = connection_to(client)
        body, opened = source_of(kind, tmp_path, spawn)
        received = spawn(receive, server)
        result = outcome(lambda: connection.request("PUT", "/", body=body, headers=headers))
        position = body.tell() if kind == "file" else None
        connection.close()
        for thing in opened:
            thing.close()
        wire = received.get()
        server.close()
        head, _, sent = wire.partition(b"\r\n\r\n")
        if b"Transfer-Encoding" in head:
            sent = decoded(sent)
        return result, position, head, sent

    assert before_and_after(scenario)[0] == ("returned", None)


@pytest.mark.parametrize("over", ["tcp", "tls"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with-length"])
def test_a_socket_as_a_body(over: str, chunked: bool, spawn: Spawn) -> None:
    peer, source = connected()
    spawn(send_and_end, peer, BODY)
    client, server = connected_tls() if over == "tls" else connected()
    received = spawn(receive, server)
    connection = connection_to(client)
    gsplice.patch_http()
    before = gsplice.stats().spliced
    headers = {} if chunked else {"Content-Length": str(SIZE)}
    connection.request("PUT", "/", body=source, headers=headers)
    spliced = gsplice.stats().spliced - before
    unpatch_all()
    client.shutdown(socket.SHUT_WR)  # close() would reset it: there are TLS tickets to read
    head, _, sent = received.get().partition(b"\r\n\r\n")
    connection.close()
    assert (b"Transfer-Encoding: chunked" in head) is chunked
    assert (decoded(sent) if chunked else sent) == BODY
    assert (spliced > SIZE * 0.9) is (over == "tcp")
    for sock in (peer, source, server):
        sock.close()


@pytest.mark.parametrize("in_length", [True, False], ids=["with-length", "chunked"])
@pytest.mark.parametrize("kind", ["file", "reader", "response", "bytes", "socket"])
@pytest.mark.parametrize("where", ["subclass", "object"])
def test_a_send_of_the_users_own_sees_every_block_of_a_body(
    where: str, kind: str, in_length: bool, tmp_path: Path, spawn: Spawn
) -> None:
    class Recording(http.client.HTTPConnection):
        def send(self, data: Any) -> None:
            seen.append(bytes(data))
            super().send(data)

    def record(data: Any) -> None:
        seen.append(bytes(data))
        http.client.HTTPConnection.send(connection, data)

    def scenario() -> Any:
        if kind == "socket":
            peer, body = connected()
            spawn(send_and_end, peer, BODY)
            to_close = [peer, body]
        else:
            body, to_close = source_of(kind, tmp_path, spawn)
        client, server = connected()
        received = spawn(receive, server)
        connection.sock = client
        connection.request("PUT", "/", body, {"Content-Length": str(SIZE)} if in_length else {})
        connection.close()
        sent = received.get()
        for thing in [*to_close, server]:
            thing.close()
        assert b"".join(seen) == sent
        seen.clear()
        return sent

    seen: list[bytes] = []
    connection = (Recording if where == "subclass" else http.client.HTTPConnection)("127.0.0.1")
    if where == "object":
        connection.send = record  # type: ignore[method-assign]
    if kind == "socket":
        gsplice.patch_http()  # without it, that is an error
        sent = scenario()
        unpatch_all()
    else:
        sent = before_and_after(scenario)
    body = sent.partition(b"\r\n\r\n")[2]
    chunked = b"Transfer-Encoding: chunked" in sent
    assert (decoded(body) if chunked else body) == (BODY[3:] if kind == "file" else BODY)


@pytest.mark.parametrize("kind", ["file", "text", "reader", "response", "bytes"])
def test_send_of_a_body_on_a_connection_that_is_there(
    kind: str, tmp_path: Path, spawn: Spawn
) -> None:
    def scenario() -> Any:
        client, server = connected()
        connection = connection_to(client)
        received = spawn(receive, server)
        body, opened = source_of(kind, tmp_path, spawn)
        result = outcome(lambda: connection.send(body))
        position = body.tell() if kind == "file" else None
        connection.close()
        sent = received.get()
        for thing in [*opened, server]:
            thing.close()
        return result, position, sent

    result, _, sent = before_and_after(scenario)
    assert result == ("returned", None)
    assert kind == "text" or sent == (BODY[3:] if kind == "file" else BODY)


@pytest.mark.parametrize("why", ["it prints what it sends", "its socket is not gevent's"])
def test_a_connection_that_has_to_see_each_block_itself_does(
    why: str, tmp_path: Path, spawn: Spawn, capsys: pytest.CaptureFixture[str]
) -> None:
    def scenario() -> Any:
        client, server = standard_socketpair() if "gevent" in why else connected()
        connection = connection_to(client)
        connection.set_debuglevel(int("prints" in why))
        body, opened = source_of("file", tmp_path, spawn)
        with ThreadPoolExecutor(1) as beside:
            received = (beside.submit if "gevent" in why else spawn)(receive, server)
            connection.request("PUT", "/", body, {"Content-Length": str(SIZE - 3)})
            connection.close()
            sent = (received.result if "gevent" in why else received.get)()
        for thing in [*opened, server]:
            thing.close()
        return sent, capsys.readouterr().out

    sent, printed = before_and_after(scenario)
    assert sent.partition(b"\r\n\r\n")[2] == BODY[3:]
    assert bool(printed) == ("prints" in why)


def test_send_connects_by_itself_or_says_why_not(tmp_path: Path, spawn: Spawn) -> None:
    def scenario() -> Any:
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))
            port = refusing.getsockname()[1]
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection._create_connection = socket.create_connection
            (tmp_path / "body").write_bytes(BODY)
            with open(tmp_path / "body", "rb") as body:
                refused = outcome(lambda: connection.send(body))[:2]
                again = outcome(lambda: connection.request("PUT", "/", body=body))[:2]
                left = list(connection._buffer), body.tell()
                connection.auto_open = 0
                connection.close()
                return refused, again, left, outcome(lambda: connection.send(body))

    refused, _, left, not_connected = before_and_after(scenario)
    assert refused[0] is ConnectionRefusedError
    assert left == ([], 0)
    assert not_connected[0] is http.client.NotConnected


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


@pytest.mark.parametrize("tls", ["source", "sink", "both"])
def test_tls_on_either_side_is_copied(tls: str, spawn: Spawn) -> None:
    client, source = connected_tls() if tls != "sink" else connected()
    sink, backend = connected_tls() if tls != "source" else connected()
    spawn(client.sendall, with_length(BODY))
    response = http.client.HTTPResponse(source)
    response.begin()
    received = spawn(receive, backend, SIZE)
    before = gsplice.stats()
    gsplice.patch_shutil()
    shutil.copyfileobj(response, sink)
    unpatch_all()
    assert received.get() == BODY
    after = gsplice.stats()
    assert (after.spliced, after.copied) == (before.spliced, before.copied + SIZE)
    for sock in (client, source, sink, backend):
        sock.close()
    response.close()


def test_a_response_that_another_greenlet_reads_fails_as_before(
    tmp_path: Path, spawn: Spawn
) -> None:
    def scenario() -> Any:
        client, server = connected()
        server.sendall(with_length(BODY[:1000], SIZE))
        response = http.client.HTTPResponse(client)
        response.begin()
        reading = spawn(response.read, SIZE)
        gevent.idle()  # it waits for more now
        with open(tmp_path / "sink", "wb") as sink:
            result = outcome(lambda: shutil.copyfileobj(response, sink))
        server.sendall(BODY[1000:])
        assert reading.get() == BODY
        response.close()
        client.close()
        server.close()
        return result[0], (tmp_path / "sink").read_bytes()

    assert before_and_after(scenario) == (RuntimeError, b"")
