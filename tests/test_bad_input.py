"""Bad input is refused in plain words, and nothing is taken from what it stands beside."""

from __future__ import annotations

import _socket
import errno
import io
import os
import socket as standard_socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import MakeLine, Pairs, peeked, receive, waits_to_read

import gsplice

CALLS: dict[str, Callable[..., Any]] = {
    "copy": gsplice.copy,
    "relay": gsplice.relay,
    "Transfer": gsplice.Transfer,
    "Relay": gsplice.Relay,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
one_way = pytest.mark.parametrize(
    "call", [gsplice.copy, gsplice.Transfer], ids=["copy", "Transfer"]
)


# Arguments.


@each_call
@pytest.mark.parametrize("mode", ["fast", "", None, 1, "Auto"])
def test_bad_mode(line: MakeLine, call: Callable[..., Any], mode: Any) -> None:
    _, a, b, _ = line()
    with pytest.raises(ValueError, match=r"mode must be 'auto', 'splice' or 'copy', not "):
        call(a, b, mode=mode)


@each_call
def test_bad_mode_in_the_environment(
    line: MakeLine, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", "fast")
    _, a, b, _ = line()
    with pytest.raises(ValueError, match=r"GSPLICE_MODE must be .* not 'fast'"):
        call(a, b)


@one_way
@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (-1, ValueError, "count must not be negative: -1"),
        (1.0, TypeError, "count must be an int or None, not 1.0"),
        ("3", TypeError, "count must be an int or None, not '3'"),
        (b"3", TypeError, "count must be an int or None, not b'3'"),
    ],
)
def test_bad_count(
    line: MakeLine, call: Callable[..., Any], count: Any, error: type[Exception], message: str
) -> None:
    client, source, sink, _ = line()
    client.sendall(b"hello")
    with pytest.raises(error, match=message):
        call(source, sink, count)
    assert receive(source, 5) == b"hello"


@pytest.mark.parametrize("call", [gsplice.relay, gsplice.Relay, gsplice.Transfer])
@pytest.mark.parametrize(
    ("idle_timeout", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)]
)
def test_bad_idle_timeout(
    line: MakeLine, call: Callable[..., Any], idle_timeout: Any, error: type[Exception]
) -> None:
    _, a, b, _ = line()
    with pytest.raises(error, match="idle_timeout must be"):
        call(a, b, idle_timeout=idle_timeout)


@each_call
@pytest.mark.parametrize(("moderation", "error"), [(-1, ValueError), ("1", TypeError)])
def test_bad_moderation(
    line: MakeLine, call: Callable[..., Any], moderation: Any, error: type[Exception]
) -> None:
    _, a, b, _ = line()
    with pytest.raises(error, match="moderation must"):
        call(a, b, moderation=moderation)


# Things that are no source or no sink. Each entry makes one, and says how it is refused.


def unmanaged(pairs: Pairs) -> Iterator[Any]:
    near, far = standard_socket.socketpair()
    with near, far:
        yield near


def reader_of_unmanaged(pairs: Pairs) -> Iterator[Any]:
    near, far = standard_socket.socketpair()
    with near, far, near.makefile("rwb", buffering=0) as raw:
        yield raw


def lowest_socket(pairs: Pairs) -> Iterator[Any]:
    sock = _socket.socket()
    yield sock
    sock.close()


def of_type(family: int, kind: int) -> Callable[[Pairs], Iterator[Any]]:
    def make(pairs: Pairs) -> Iterator[Any]:
        with socket.socket(family, kind) as sock:
            yield sock

    return make


def non_blocking(pairs: Pairs) -> Iterator[Any]:
    sock, _ = pairs()
    sock.setblocking(False)
    yield sock


def closed(pairs: Pairs) -> Iterator[Any]:
    sock, _ = pairs()
    sock.close()
    yield sock


def closed_tls(pairs: Pairs) -> Iterator[Any]:
    sock, _ = pairs("tls")
    sock.close()
    yield sock


def detached(pairs: Pairs) -> Iterator[Any]:
    sock, _ = pairs()
    fd = sock.detach()
    yield sock
    os.close(fd)


def text_file(pairs: Pairs) -> Iterator[Any]:
    with open(os.devnull, "r+") as file:
        yield file


def text(pairs: Pairs) -> Iterator[Any]:
    yield io.StringIO("text")


def closed_file(pairs: Pairs) -> Iterator[Any]:
    with open(__file__, "rb") as file:
        pass
    yield file


def closed_reader(pairs: Pairs) -> Iterator[Any]:
    file = pairs()[0].makefile("rb")
    file.close()
    yield file


def closed_writer(pairs: Pairs) -> Iterator[Any]:
    file = pairs()[0].makefile("wb")
    file.close()
    yield file


def thing(value: Any) -> Callable[[Pairs], Iterator[Any]]:
    def make(pairs: Pairs) -> Iterator[Any]:
        yield value

    return make


def readable_only(pairs: Pairs) -> Iterator[Any]:
    with open(__file__, "rb") as file:
        yield file


def reader(pairs: Pairs) -> Iterator[Any]:
    with pairs()[0].makefile("rb") as file:
        yield file


def raw_reader(pairs: Pairs) -> Iterator[Any]:
    with pairs()[0].makefile("rb", buffering=0) as file:
        yield file


def writable_only(pairs: Pairs) -> Iterator[Any]:
    with open(os.devnull, "wb") as file:
        yield file


def writer(pairs: Pairs) -> Iterator[Any]:
    with pairs()[0].makefile("wb") as file:
        yield file


def raw_writer(pairs: Pairs) -> Iterator[Any]:
    with pairs()[0].makefile("wb", buffering=0) as file:
        yield file


SEQPACKET = of_type(socket.AF_UNIX, socket.SOCK_SEQPACKET)
NO_ENDS: dict[str, tuple[Callable[[Pairs], Iterator[Any]], type[BaseException], str]] = {
    "socket gevent does not manage": (unmanaged, TypeError, r"gevent\.socket.*patch_all"),
    "stream on such a socket": (reader_of_unmanaged, TypeError, r"gevent\.socket.*patch_all"),
    "_socket.socket": (lowest_socket, TypeError, r"gevent\.socket.*patch_all"),
    "UDP socket": (of_type(socket.AF_INET, socket.SOCK_DGRAM), TypeError, "SOCK_STREAM"),
    "UDP6 socket": (of_type(socket.AF_INET6, socket.SOCK_DGRAM), TypeError, "SOCK_STREAM"),
    "unix datagram socket": (of_type(socket.AF_UNIX, socket.SOCK_DGRAM), TypeError, "SOCK_STREAM"),
    "seqpacket socket": (SEQPACKET, TypeError, "SOCK_STREAM"),
    "non-blocking socket": (non_blocking, ValueError, r"settimeout\(None\)"),
    "closed socket": (closed, OSError, "Bad file descriptor"),
    "closed TLS socket": (closed_tls, OSError, "Bad file descriptor"),
    "detached socket": (detached, OSError, "Bad file descriptor"),
    "text file": (text_file, TypeError, "binary mode"),
    "text": (text, TypeError, "binary mode"),
    "closed file": (closed_file, ValueError, "closed file"),
    "object": (thing(object()), TypeError, "'object' object is no "),
    "None": (thing(None), TypeError, "'NoneType' object is no "),
    "int": (thing(5), TypeError, "'int' object is no "),
    "bytes": (thing(b"bytes"), TypeError, "'bytes' object is no "),
    "str": (thing("str"), TypeError, "'str' object is no "),
}
NO_SOURCES = {
    **NO_ENDS,
    "closed reader": (closed_reader, ValueError, "closed"),
    "file opened to be written": (writable_only, TypeError, "no source"),
    "writer": (writer, TypeError, "no source"),
    "raw writer": (raw_writer, TypeError, "no source"),
}
NO_SINKS = {
    **NO_ENDS,
    "closed writer": (closed_writer, ValueError, "closed"),
    "file opened to be read": (readable_only, TypeError, "no sink"),
    "reader": (reader, TypeError, "no sink"),
    "raw reader": (raw_reader, TypeError, "no sink"),
}


@pytest.fixture
def refused(request: pytest.FixtureRequest, pairs: Pairs) -> Iterator[tuple[Any, Any, str]]:
    """Make what is to be refused, and say how."""
    make, error, message = request.param
    made = make(pairs)
    yield next(made), error, message
    for _ in made:
        pass


@pytest.mark.parametrize("refused", NO_SOURCES.values(), ids=NO_SOURCES, indirect=True)
@one_way
def test_no_source(
    line: MakeLine, call: Callable[..., Any], refused: tuple[Any, type[BaseException], str]
) -> None:
    bad, error, message = refused
    _, _, sink, backend = line()
    with pytest.raises(error, match=message) as caught:
        call(bad, sink)
    if error is OSError:
        assert caught.value.errno == errno.EBADF
    assert not gsplice.can_splice(bad, sink)
    sink.sendall(b"still usable")
    assert receive(backend, 12) == b"still usable"


@pytest.mark.parametrize("refused", NO_SINKS.values(), ids=NO_SINKS, indirect=True)
@pytest.mark.parametrize("source_is", ["socket", "reader", "file", "object"])
@one_way
def test_no_sink_takes_nothing_from_the_source(
    line: MakeLine,
    tmp_path: Path,
    call: Callable[..., Any],
    source_is: str,
    refused: tuple[Any, type[BaseException], str],
) -> None:
    bad, error, message = refused
    client, sock, _, _ = line()
    client.sendall(b"hello")
    (tmp_path / "file").write_bytes(b"hello")
    with sock.makefile("rb") as reader, open(tmp_path / "file", "rb") as file:
        sources = {"socket": sock, "reader": reader, "file": file, "object": io.BytesIO(b"hello")}
        source = sources[source_is]
        with pytest.raises(error, match=message):
            call(source, bad)
        assert not gsplice.can_splice(source, bad)
        assert (source.recv if source is sock else source.read)(5) == b"hello"


@pytest.mark.parametrize("refused", NO_ENDS.values(), ids=NO_ENDS, indirect=True)
@pytest.mark.parametrize("call", [gsplice.relay, gsplice.Relay], ids=["relay", "Relay"])
@pytest.mark.parametrize("swapped", [False, True], ids=["first", "second"])
def test_no_end_of_a_relay_leaves_the_other_as_it_was(
    line: MakeLine,
    call: Callable[..., Any],
    refused: tuple[Any, type[BaseException], str],
    swapped: bool,
) -> None:
    bad, error, message = refused
    client, good, _, _ = line()
    good.settimeout(9)
    client.sendall(b"hello")
    with pytest.raises(error, match=message):
        call(*((good, bad) if swapped else (bad, good)))
    assert good.gettimeout() == 9
    assert receive(good, 5) == b"hello"
    assert not waits_to_read(good)


def test_source_that_gives_text(line: MakeLine) -> None:
    class Texts:
        def read(self, size: int) -> str:
            return "text"

    _, _, sink, backend = line()
    with pytest.raises(TypeError, match="binary mode"):
        gsplice.copy(Texts(), sink)
    assert peeked(backend) == b""
