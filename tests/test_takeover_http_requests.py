"""Requests of http.client's with a body: the same on the wire as without the takeovers."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import socketpair as standard_socketpair
from typing import Any

import pytest
from gevent import socket
from peers import Spawn, connected, connected_tls, decoded, receive, send_and_end
from takeovers import BODY, SIZE, before_and_after, connection_to, outcome, with_length

import gsplice
from gsplice.takeover import unpatch_all


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
