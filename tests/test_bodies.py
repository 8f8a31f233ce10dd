"""Bodies that are seen through: nothing is lost, and the object knows, however it ends."""

from __future__ import annotations

import functools
import http.client
import io
import urllib.error
from socket import socketpair as standard_socketpair
from typing import Any
from wsgiref.util import FileWrapper

import gunicorn.http.wsgi
import pytest
import urllib3
from bodies import BODY, KINDS_OF_BODY, SIZE, MakeBody, gunicorn_body_on, head, response_on
from gevent import pywsgi, socket
from peers import (
    MORE_THAN_BUFFERS,
    MakeLine,
    Spawn,
    error_of,
    pattern,
    receive,
    reset,
    send_and_end,
    wait_until,
    waits_to_write,
)

import gsplice
from gsplice.takeover.http import ResponseBody


@pytest.mark.parametrize("length", [SIZE, None], ids=["by-length", "until-end-of-file"])
@pytest.mark.parametrize("count", [None, SIZE, SIZE - 1, 100_000, 10])
def test_count_stops_where_it_says(
    line: MakeLine, spawn: Spawn, length: int | None, count: int | None
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(length) + BODY)
    response = response_on(source)
    received = spawn(receive, backend, count or SIZE)
    moved = gsplice.copy(response, sink, count)
    assert moved == (SIZE if count is None else count)
    assert received.get() == BODY[:moved]
    assert response.read() == BODY[moved:]
    assert response.isclosed()


def test_a_stopped_transfer_has_told_the_response_of_every_byte(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line()
    data = pattern(MORE_THAN_BUFFERS + SIZE, 6)
    spawn(send_and_end, client, head(len(data)) + data)
    response = response_on(source)
    transfer = gsplice.Transfer(response, sink).start()
    wait_until(lambda: transfer.moved > 0 and waits_to_write(sink))
    transfer.stop()
    taken = transfer.moved + len(transfer.undelivered)
    assert response.length == len(data) - taken
    sink.close()
    assert receive(backend) + transfer.undelivered + response.read() == data


def test_undelivered_bytes_and_the_rest_can_go_elsewhere_after_the_sink_died(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line()
    data = pattern(MORE_THAN_BUFFERS, 7)
    spawn(send_and_end, client, head(len(data)) + data)
    response = response_on(source)
    transfer = gsplice.Transfer(response, sink).start()
    wait_until(lambda: transfer.moved > 0 and waits_to_write(sink))
    reset(backend)
    assert isinstance(error_of(transfer.get, timeout=10), ConnectionError)
    rest = transfer.undelivered + response.read()
    assert rest == data[transfer.moved :]
    assert response.isclosed()


@pytest.mark.parametrize("length", [SIZE, None], ids=["by-length", "until-end-of-file"])
def test_the_response_ends_itself_where_its_socket_ends_too_early(
    line: MakeLine, spawn: Spawn, length: int | None
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(length) + BODY[:-100])
    response = response_on(source)
    received = spawn(receive, backend, SIZE - 100)
    assert gsplice.copy(response, sink) == SIZE - 100
    assert received.get() == BODY[:-100]
    assert response.isclosed()
    assert response.length == (None if length is None else 100)


def test_most_of_a_body_is_spliced(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    response = response_on(source)
    received = spawn(receive, backend, SIZE)
    transfer = gsplice.Transfer(response, sink)
    assert transfer.run() == SIZE
    assert received.get() == BODY
    assert transfer.spliced > SIZE * 0.9


def test_a_small_body_is_just_read_unless_splicing_is_asked_for(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(20_000) + BODY[:20_000])
    response = response_on(source)
    assert not gsplice.can_splice(response, sink)
    transfer = gsplice.Transfer(response, sink, mode="splice")
    assert transfer.run() == 20_000
    assert receive(backend, 20_000) == BODY[:20_000]
    assert transfer.spliced > 0


def test_a_body_on_a_socket_in_non_blocking_mode_is_read_by_its_own_method(line: MakeLine) -> None:
    client, source, sink, backend = line()
    client.sendall(head(5) + b"hello")
    response = response_on(source)
    source.setblocking(False)
    assert not gsplice.can_splice(response, sink)
    assert gsplice.copy(response, sink) == 5
    assert receive(backend, 5) == b"hello"
    response.close()


def test_a_subclass_is_used_by_its_own_methods(line: MakeLine, spawn: Spawn) -> None:
    class Upper(http.client.HTTPResponse):
        def read1(self, n: int = -1) -> bytes:
            return super().read1(n).upper()

    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + b"a" * SIZE)
    response = Upper(source)
    response.begin()
    assert not gsplice.can_splice(response, sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(response, sink) == SIZE
    assert received.get() == b"A" * SIZE
    response.close()


class Shouting:
    """A method that cannot be hashed, so no function of a library's."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._read1 = response.read1

    def __call__(self, n: int = -1) -> bytes:
        return self._read1(n).upper()


@pytest.mark.parametrize("of_the_class", [False, True], ids=["object", "class"])
def test_a_method_replaced_after_a_first_look_is_used(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, of_the_class: bool
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + b"a" * SIZE)
    response = response_on(source)
    assert gsplice.can_splice(response, sink)
    changed = http.client.HTTPResponse if of_the_class else response
    monkeypatch.setattr(changed, "read1", Shouting(response))
    assert not gsplice.can_splice(response, sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(response, sink) == SIZE
    assert received.get() == b"A" * SIZE


def test_an_object_that_is_not_as_expected_is_read_and_counted(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, _ = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    response = response_on(source)
    del response.chunked  # as if the library had given it another name
    response.__dict__["_method"] = "GET"
    before = gsplice.stats().fallbacks.get("http.client.HTTPResponse is not as expected", 0)
    assert not gsplice.can_splice(response, sink)
    after = gsplice.stats().fallbacks["http.client.HTTPResponse is not as expected"]
    assert after == before + 1
    response.close()


def test_an_object_without_what_is_needed_later_is_not_seen_through(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source, sink, _ = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    response = urllib3.HTTPResponse(
        response_on(source), preload_content=False, decode_content=False
    )
    assert gsplice.can_splice(response, sink)
    del response._fp_bytes_read  # as if urllib3 counted elsewhere
    assert not gsplice.can_splice(response, sink)
    body = pywsgi.Input(source.makefile("rb"), SIZE)
    assert gsplice.can_splice(body, sink)
    monkeypatch.delattr(pywsgi.Input, "_send_100_continue")
    assert not gsplice.can_splice(body, sink)
    response.close()
    body.rfile.close()
    body = gunicorn_body_on(source)
    assert gsplice.can_splice(body, sink)
    body.reader.unreader.buf = bytearray()  # as if gunicorn kept them in another way
    assert not gsplice.can_splice(body, sink)


def test_an_object_that_cannot_be_told_is_an_error_and_no_hang(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def took(self: Any, count: int) -> None:
        raise AttributeError("length")

    monkeypatch.setattr(ResponseBody, "took", took)
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    spawn(receive, backend)
    response = response_on(source)
    with pytest.raises(AttributeError, match="length"):
        gsplice.Transfer(response, sink).start().get(timeout=10)
    response.close()


@pytest.mark.parametrize("make", KINDS_OF_BODY)
@pytest.mark.parametrize("where", ["object", "class"])
def test_a_method_that_was_replaced_is_called(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, make: MakeBody, where: str
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    body = make(source)
    assert gsplice.can_splice(body, sink)
    read, seen = body.read, []

    @functools.wraps(read)
    def counting(*args: Any, **options: Any) -> bytes:
        data: bytes = read(*args[where == "class" :], **options)
        seen.append(data)
        return data

    monkeypatch.setattr(body if where == "object" else type(body), "read", counting)
    if where == "class":
        monkeypatch.delattr(type(body), "read1", raising=False)
    assert not gsplice.can_splice(body, sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(body, sink) == SIZE
    assert b"".join(seen) == received.get() == BODY
    if hasattr(body, "close"):
        body.close()


def test_a_method_of_what_is_under_a_body_that_was_replaced_is_called(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    response = response_on(source)
    fp: Any = response.fp
    read1, seen = fp.read1, []
    fp.read1 = lambda limit: seen.append(read1(limit)) or seen[-1]
    assert not gsplice.can_splice(response, sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(response, sink) == SIZE
    assert b"".join(seen) == received.get() == BODY
    response.close()


class PretendedInput:
    """A wrapper of the name that is known, around anything."""

    def __init__(self, filelike: Any) -> None:
        self.filelike = filelike


PretendedInput.__module__, PretendedInput.__qualname__ = "wsgiref.util", "FileWrapper"


def test_a_file_wrapper_stands_for_what_it_wraps(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    wrapper = PretendedInput(response_on(source))
    assert gsplice.can_splice(wrapper, sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(wrapper, sink) == SIZE
    assert received.get() == BODY
    assert gsplice.copy(PretendedInput(io.BytesIO(b"abc")), io.BytesIO()) == 3


def wsgi_input(source: socket.socket) -> pywsgi.Input:
    """Return pywsgi's body of a request: here its head is skipped."""
    assert receive(source, len(head(SIZE))) == head(SIZE)
    return pywsgi.Input(source.makefile("rb"), SIZE)


@pytest.mark.parametrize("make", [*KINDS_OF_BODY, wsgi_input])
@pytest.mark.parametrize("wrapper", [FileWrapper, gunicorn.http.wsgi.FileWrapper])
def test_a_file_wrapper_around_each_kind_of_body_is_seen_through(
    line: MakeLine, spawn: Spawn, wrapper: Any, make: MakeBody
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    body = make(source)
    received = spawn(receive, backend, SIZE)
    transfer = gsplice.Transfer(wrapper(body), sink)
    assert transfer.run() == SIZE
    assert received.get() == BODY
    assert transfer.spliced > SIZE * 0.9
    assert body.read() == b""


def test_wrappers_in_wrappers_are_all_seen_through(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    response = response_on(source)
    error = urllib.error.HTTPError("http://backend/", 404, "Not Found", response.headers, response)
    wrapper = FileWrapper(PretendedInput(error))
    assert gsplice.can_splice(wrapper, sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(wrapper, sink) == SIZE
    assert received.get() == BODY
    error.close()


def test_a_wrapper_around_a_socket_is_the_socket(line: MakeLine, spawn: Spawn) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, BODY)
    assert gsplice.can_splice(FileWrapper(source), sink)
    received = spawn(receive, backend, SIZE)
    assert gsplice.copy(FileWrapper(source), sink) == SIZE
    assert received.get() == BODY


def test_a_wrapper_around_a_socket_of_others_is_refused_as_the_socket_is(line: MakeLine) -> None:
    _, _, sink, _ = line()
    one, other = standard_socketpair()
    with one, other:
        assert not gsplice.can_splice(FileWrapper(one), sink)
        with pytest.raises(TypeError, match="not managed by gevent"):
            gsplice.copy(FileWrapper(one), sink)


def test_a_wrapper_around_nothing_is_used_by_its_own_methods(line: MakeLine) -> None:
    _, _, sink, _ = line()
    assert not gsplice.can_splice(PretendedInput(None), sink)
    with pytest.raises(TypeError, match="PretendedInput"):
        gsplice.copy(PretendedInput(None), sink)
