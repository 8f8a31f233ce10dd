"""Bodies that are seen through: nothing is lost, and the object knows, however it ends."""

from __future__ import annotations

import http.client
import io
from typing import Any

import pytest
import urllib3
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

SIZE = 1_000_003
BODY = pattern(SIZE, 5)


def response_on(sock: socket.socket, method: str = "GET") -> http.client.HTTPResponse:
    """Return the response that comes in on *sock*, its head read."""
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return response


def head(length: int | None) -> bytes:
    """Return the head of a response with a body of *length* bytes."""
    framing = "Connection: close" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode()


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
