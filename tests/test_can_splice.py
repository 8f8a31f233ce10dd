"""`can_splice`: it says no to what is no end, and asking changes nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import MakeLine, Pairs, receive, tls_contexts, waits_to_read
from sources import DATA

import gsplice


def test_tls_socket_before_and_after_its_session_is_not_spliced(pairs: Pairs) -> None:
    near, _ = pairs()
    client, _ = tls_contexts()
    _, sink = pairs()
    with client.wrap_socket(
        near, server_hostname="localhost", do_handshake_on_connect=False
    ) as tls:
        assert not gsplice.can_splice(tls, sink)
        assert not gsplice.can_splice(sink, tls)
    near, _ = pairs("tls")
    near.shutdown(socket.SHUT_WR)  # drops the session
    assert not gsplice.can_splice(near, sink)


def test_can_splice_has_no_side_effect(line: MakeLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    client, source, sink, backend = line()
    client.sendall(b"hello")
    with (
        open(tmp_path / "file", "r+b") as file,
        source.makefile("rb") as reader,
        sink.makefile("wb") as writer,
    ):
        file.seek(11)
        writer.write(b"unflushed")
        assert gsplice.can_splice(reader, writer)
        assert gsplice.can_splice(file, writer)
        assert gsplice.can_splice(reader, file)
        assert file.tell() == 11
        assert not waits_to_read(source)
        assert reader.read(5) == b"hello"
    assert receive(backend, 9) == b"unflushed"


@pytest.mark.parametrize("bad", [None, 5, object(), "text", b"bytes", io.StringIO()])
def test_can_splice_says_no_to_what_is_no_end(line: MakeLine, bad: Any) -> None:
    _, source, sink, _ = line()
    assert gsplice.can_splice(bad, sink) is False
    assert gsplice.can_splice(source, bad) is False


@pytest.mark.parametrize("cls", [socket.socket, io.BytesIO, io.FileIO])
def test_a_class_is_no_end(line: MakeLine, cls: type[Any]) -> None:
    _, source, sink, _ = line()
    assert not gsplice.can_splice(cls, sink)
    assert not gsplice.can_splice(source, cls)
    with pytest.raises(TypeError, match="is a class"):
        gsplice.copy(cls, sink)
    with pytest.raises(TypeError, match="is a class"):
        gsplice.copy(source, cls)
