"""gunicorn's ``Response.write_file``: what is spliced, and what goes out all the same."""

from __future__ import annotations

from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gevent import socket
from gunicorn.config import Config
from gunicorn.http.wsgi import FileWrapper, Response
from peers import MakeLine, Spawn, decoded, pattern, receive, segments_received, send_and_end

import gsplice
from gsplice.takeover import unpatch_all

SIZE = 1_200_003
BODY = pattern(SIZE, 41)


def answer(
    sock: socket.socket,
    body: Any,
    length: int | None,
    cls: type[Response] = Response,
    **settings: Any,
) -> None:
    """Answer a request as a worker does, with *body* in a wrapper."""
    configuration = Config()
    for name, value in settings.items():
        configuration.set(name, value)
    request = SimpleNamespace(method="GET", version=(1, 1), should_close=lambda: True)
    response = cls(request, sock, configuration)
    response.start_response("200 OK", [] if length is None else [("Content-Length", str(length))])
    response.write_file(FileWrapper(body))
    response.close()
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("sendfile", [None, False], ids=["", "no-sendfile"])
@pytest.mark.parametrize("length", [SIZE, None], ids=["with-length", "chunked"])
def test_the_setting_that_forbids_sendfile_forbids_to_splice(
    line: MakeLine, spawn: Spawn, length: int | None, sendfile: bool | None
) -> None:
    gsplice.patch_gunicorn()
    peer, source, client, receiver = line()
    spawn(send_and_end, peer, BODY)
    received = spawn(receive, receiver)
    before = gsplice.stats()
    with source.makefile("rb") as body:
        answer(client, body, length, sendfile=sendfile)
    _, _, sent = received.get().partition(b"\r\n\r\n")
    assert (decoded(sent) if length is None else sent) == BODY
    assert (gsplice.stats().spliced > before.spliced) == (sendfile is None)
    unpatch_all()


@pytest.mark.parametrize("length", [0, None], ids=["with-length", "chunked"])
def test_a_backend_that_has_nothing_to_say_is_an_answer_without_a_body(
    line: MakeLine, spawn: Spawn, length: int | None
) -> None:
    gsplice.patch_gunicorn()
    peer, source, client, receiver = line()
    peer.shutdown(socket.SHUT_WR)
    received = spawn(receive, receiver)
    answer(client, source, length)
    head, _, sent = received.get().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert sent == (b"0\r\n\r\n" if length is None else b"")
    unpatch_all()


def test_a_wrapper_whose_blocks_are_made_by_somebody_else_is_asked_for_them(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loud_block(self: FileWrapper) -> bytes:
        return original(self).upper()

    original = FileWrapper.__next__
    monkeypatch.setattr(FileWrapper, "__next__", loud_block)
    gsplice.patch_gunicorn()
    peer, source, client, receiver = line()
    spawn(send_and_end, peer, b"a" * SIZE)
    received = spawn(receive, receiver)
    with source.makefile("rb") as body:
        answer(client, body, SIZE)
    _, _, sent = received.get().partition(b"\r\n\r\n")
    assert sent == b"A" * SIZE
    unpatch_all()


@pytest.mark.parametrize("sendfile", [None, False], ids=["", "no-sendfile"])
def test_a_mode_that_is_none_is_told_of_only_where_something_might_be_spliced(
    line: MakeLine, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, sendfile: bool | None
) -> None:
    gsplice.patch_gunicorn()
    monkeypatch.setenv("GSPLICE_MODE", "fast")
    peer, source, client, receiver = line()
    body = pattern(20_000, 42)
    spawn(send_and_end, peer, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    received = spawn(receive, receiver)
    with HTTPResponse(source) as response:
        response.begin()
        if sendfile is False:
            answer(client, response, len(body), sendfile=sendfile)
        else:
            with pytest.raises(ValueError, match="GSPLICE_MODE must be 'auto'"):
                answer(client, response, len(body))
            client.shutdown(socket.SHUT_WR)
    assert received.get().partition(b"\r\n\r\n")[2] == (body if sendfile is False else b"")
    unpatch_all()


@pytest.mark.parametrize("size", [1000, 20_000])
def test_a_small_file_comes_in_one_segment_with_its_head(
    line: MakeLine, tmp_path: Path, size: int
) -> None:
    gsplice.patch_all()
    _, _, client, receiver = line()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as gunicorn's are
    (tmp_path / "file").write_bytes(BODY[:size])
    with open(tmp_path / "file", "rb") as body:
        answer(client, body, size)
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0
    _, _, sent = receive(receiver).partition(b"\r\n\r\n")
    assert sent == BODY[:size]
    assert segments_received(receiver) == 1
    unpatch_all()


def test_a_small_file_goes_out_at_a_unix_socket_which_knows_no_segments(
    line: MakeLine, tmp_path: Path
) -> None:
    gsplice.patch_gunicorn()
    _, _, client, receiver = line("unix")
    (tmp_path / "file").write_bytes(b"hello")
    with open(tmp_path / "file", "rb") as body:
        answer(client, body, 5)
    assert receive(receiver).endswith(b"\r\n\r\nhello")
    unpatch_all()


def test_a_socket_that_its_owner_has_corked_stays_so(line: MakeLine, tmp_path: Path) -> None:
    gsplice.patch_gunicorn()
    _, _, client, receiver = line()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    (tmp_path / "file").write_bytes(b"hello")
    with open(tmp_path / "file", "rb") as body:
        answer(client, body, 5)
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1
    assert receive(receiver).endswith(b"\r\n\r\nhello")
    unpatch_all()


def test_a_subclass_that_frames_in_its_own_way_sends_a_small_file_as_it_would(
    line: MakeLine, tmp_path: Path
) -> None:
    class Framing(Response):
        def sendfile(self, respiter: FileWrapper) -> bool:
            corked.append(self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
            return bool(super().sendfile(respiter))

    corked: list[int] = []
    gsplice.patch_gunicorn()
    _, _, client, receiver = line()
    (tmp_path / "file").write_bytes(b"hello")
    with open(tmp_path / "file", "rb") as body:
        answer(client, body, 5, Framing)
    assert corked == [0]
    assert receive(receiver).endswith(b"\r\n\r\nhello")
    unpatch_all()
