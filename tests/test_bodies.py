"""Bodies that are seen through: nothing is lost, and the object knows, however it ends."""

from __future__ import annotations

import errno
import functools
import http.client
import io
import urllib.error
from collections.abc import Callable
from pathlib import Path
from socket import socketpair as standard_socketpair
from typing import Any, TypeAlias
from wsgiref.util import FileWrapper

import gevent
import gunicorn.http.body
import gunicorn.http.unreader
import pytest
import urllib3
from gevent import pywsgi, socket
from gevent.event import Event
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
from gsplice._endpoint import FileSink
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


def gunicorn_body_on(source: socket.socket) -> Any:
    """Return the body of a request of which gunicorn has read the head."""
    unreader = gunicorn.http.unreader.SocketUnreader(source)
    return gunicorn.http.body.Body(gunicorn.http.body.LengthReader(unreader, SIZE))


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


# Whose error it is: the object is told of what was met in reading it, and of nothing else.


def http_body(source: socket.socket) -> Any:
    """Return http.client's object for the body that comes in on *source*."""
    return response_on(source)


def urllib3_body(source: socket.socket) -> Any:
    """Return urllib3's."""
    return urllib3.HTTPResponse(response_on(source), preload_content=False, decode_content=False)


def gunicorn_body(source: socket.socket) -> Any:
    """Return gunicorn's, which is that of a request: here its head is skipped."""
    assert receive(source, len(head(SIZE))) == head(SIZE)
    return gunicorn_body_on(source)


MakeBody: TypeAlias = Callable[[socket.socket], Any]
KINDS_OF_BODY = [http_body, urllib3_body, gunicorn_body]


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


@pytest.mark.parametrize("make", KINDS_OF_BODY)
def test_a_writer_that_cannot_be_flushed_is_not_the_bodys_error(
    line: MakeLine, spawn: Spawn, make: MakeBody
) -> None:
    client, source, sink, _ = line()
    sending = spawn(send_and_end, client, head(SIZE) + BODY)
    body, writer = make(source), sink.makefile("wb")
    writer.write(b"written before")
    sink.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        gsplice.copy(body, writer)
    assert not getattr(body, "failed", False)
    assert body.read() == BODY
    sending.get()
    with pytest.raises(BrokenPipeError):
        writer.close()


@pytest.mark.parametrize("make", KINDS_OF_BODY)
def test_a_disk_that_is_full_at_the_end_is_not_the_bodys_error(
    line: MakeLine, spawn: Spawn, tmp_path: Path, make: MakeBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: FileSink) -> None:
        raise OSError(errno.ENOSPC, "no space left on the device")

    client, source, _, _ = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    body = make(source)
    monkeypatch.setattr(FileSink, "settle", full)
    with open(tmp_path / "sink", "wb") as sink, pytest.raises(OSError, match="no space"):
        gsplice.copy(body, sink)
    assert not getattr(body, "failed", False)
    assert body.read() == b""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (http_body, TimeoutError),
        (urllib3_body, urllib3.exceptions.ReadTimeoutError),
        (gunicorn_body, TimeoutError),
    ],
)
def test_a_silent_peer_is_the_bodys_own_error(
    line: MakeLine, make: MakeBody, expected: type[Exception]
) -> None:
    client, source, sink, backend = line()
    source.settimeout(0.05)
    client.sendall(head(SIZE) + BODY[:100_000])
    body = make(source)
    with pytest.raises(expected):
        gsplice.copy(body, sink)
    assert receive(backend, 100_000) == BODY[:100_000]
    assert getattr(body, "failed", True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (http_body, ConnectionResetError),
        (urllib3_body, urllib3.exceptions.ProtocolError),
        (gunicorn_body, ConnectionResetError),
    ],
)
def test_a_peer_that_resets_is_the_bodys_own_error(
    line: MakeLine, make: MakeBody, expected: type[Exception]
) -> None:
    client, source, sink, backend = line()
    client.sendall(head(SIZE) + BODY[:100_000])
    body = make(source)
    transfer = gsplice.Transfer(body, sink).start()
    assert receive(backend, 100_000) == BODY[:100_000]
    wait_until(lambda: transfer.moved == 100_000)
    reset(client)
    with pytest.raises(expected):
        transfer.get(timeout=10)
    assert getattr(body, "failed", True)


# What the second engine does: it asks the object, once its bytes have been taken.


def delayed(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """Have http.client's object wait before it is read by its own method."""
    original = ResponseBody.read

    def read(self: ResponseBody, limit: int) -> bytes:
        wait()
        return original(self, limit)

    monkeypatch.setattr(ResponseBody, "read", read)


def test_a_sockets_timeout_does_not_bound_what_the_object_does_at_its_end(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source, sink, backend = line()
    source.settimeout(0.2)
    sink.settimeout(0.2)
    spawn(send_and_end, client, head(SIZE) + BODY)
    received = spawn(receive, backend, SIZE)
    delayed(monkeypatch, lambda: gevent.sleep(0.5))
    assert gsplice.copy(response_on(source), sink) == SIZE
    assert received.get() == BODY


def test_the_idle_timeout_bounds_it(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    spawn(receive, backend, SIZE)
    delayed(monkeypatch, Event().wait)
    response = response_on(source)
    transfer = gsplice.Transfer(response, sink, idle_timeout=0.2).start()
    with pytest.raises(TimeoutError):
        transfer.get(timeout=10)
    assert (transfer.moved, transfer.undelivered) == (SIZE, b"")
    response.close()


def test_stop_while_the_object_is_asked_for_its_end(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, head(SIZE) + BODY)
    received = spawn(receive, backend, SIZE)
    asked = Event()
    delayed(monkeypatch, lambda: (asked.set(), Event().wait()))
    response = response_on(source)
    transfer = gsplice.Transfer(response, sink).start()
    asked.wait()
    assert transfer.moved == SIZE
    transfer.stop()
    with pytest.raises(gsplice.TransferStopped):
        transfer.get()
    assert received.get() == BODY
    assert (transfer.moved, transfer.undelivered, response.length) == (SIZE, b"", 0)
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


def test_an_error_in_telling_the_object_of_an_error_does_not_hide_it(
    line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(self: Any, error: OSError) -> Exception:
        raise AttributeError("failed")

    monkeypatch.setattr(ResponseBody, "failed", failed)
    client, source, sink, _ = line()
    source.settimeout(0.05)
    client.sendall(head(SIZE))
    with pytest.raises(TimeoutError):
        gsplice.copy(response_on(source), sink)
