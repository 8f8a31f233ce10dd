"""Whose error it is: the object is told of what was met in reading it, and of nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
import urllib3
from bodies import (
    BODY,
    KINDS_OF_BODY,
    SIZE,
    MakeBody,
    gunicorn_body,
    head,
    http_body,
    response_on,
    urllib3_body,
)
from gevent import socket
from gevent.event import Event
from peers import MakeLine, Spawn, receive, reset, send_and_end, wait_until

import gsplice
from gsplice._endpoint import FileSink
from gsplice.takeover.http import ResponseBody


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
