"""Responses of http.client's: the same bytes, results and end states as without the takeovers.

Each scenario is run twice, before and after `patch_all`, and what can be told of it is compared.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import shutil
from pathlib import Path
from typing import Any

import gevent
import pytest
from peers import (
    Spawn,
    connected,
    connected_tls,
    error_of,
    receive,
    reset,
    send_and_end,
    small_buffers,
)
from takeovers import (
    BODY,
    GOOD,
    RESPONSES,
    SIZE,
    answer,
    before_and_after,
    connection_to,
    in_chunks,
    outcome,
    sink_of,
    with_length,
)

import gsplice
from gsplice.takeover import unpatch_all

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


@pytest.mark.parametrize("mode", ["auto", "copy"])
@pytest.mark.parametrize("kind", ["chunked response", "reader", "object", "file"])
def test_copyfileobj_to_a_writer_that_may_take_less_than_it_is_given_loses_nothing(
    kind: str, mode: str, spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original would: a write() of ``makefile("wb", 0)`` is one send()."""
    monkeypatch.setenv("GSPLICE_MODE", mode)
    (tmp_path / "body").write_bytes(BODY)
    sink, backend = connected("unix")
    small_buffers(sink)
    received = spawn(receive, backend)
    gsplice.patch_shutil()
    with contextlib.ExitStack() as stack:
        source: Any = io.BytesIO(BODY)
        if kind == "chunked response":
            near, far = (stack.enter_context(one) for one in connected())
            spawn(answer, far, RESPONSES["chunked"])
            connection = connection_to(near)
            connection.request("GET", "/")
            source = stack.enter_context(connection.getresponse())
        elif kind == "reader":
            client, sock = (stack.enter_context(one) for one in connected("unix"))
            spawn(send_and_end, client, BODY)
            source = stack.enter_context(sock.makefile("rb"))
        elif kind == "file":
            source = stack.enter_context(open(tmp_path / "body", "rb"))
        with sink.makefile("wb", 0) as writer:
            shutil.copyfileobj(source, writer)
    unpatch_all()
    sink.close()
    assert received.get() == BODY
    backend.close()


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
