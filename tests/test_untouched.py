"""Promise 9: after `patch_all` everything that worked before works as before."""

from __future__ import annotations

import array
import contextlib
import http.client
import inspect
import io
import mmap
import os
import shutil
import socket as standard_socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import monkey, pywsgi, socket, ssl
from peers import (
    MORE_THAN_BUFFERS,
    MakeLine,
    Pairs,
    Spawn,
    connected,
    error_of,
    pattern,
    peeked,
    poll,
    receive,
    run_alone,
    send_and_end,
    wait_until,
)

import gsplice

DATA = pattern(300_007, 7)
Outcome = tuple[Any, ...]


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Have everything taken over."""
    gsplice.patch_all()
    try:
        yield
    finally:
        gsplice.unpatch_all()


def outcome(function: Callable[[], Any]) -> Outcome:
    """Return what can be told about a call: its result, or its error."""
    try:
        return ("returned", function())
    except Exception as error:
        return (type(error), getattr(error, "errno", None), str(error), error.args)


def before_and_after(scenario: Callable[[], Outcome]) -> tuple[Outcome, Outcome]:
    """Run *scenario* without the takeovers, and with them."""
    before = scenario()
    with patched():
        return before, scenario()


# sendall of what is no source.


def mapped_memory() -> mmap.mmap:
    memory = mmap.mmap(-1, 5)
    memory.write(b"hello")
    memory.seek(2)
    return memory


class Bytes(bytes):
    """A subclass, with a method that a source would have."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("it was taken for a source")


class WithoutMethods:
    pass


class NotCallable:
    read = "not callable"


ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "bytes": lambda: (b"hello",),
    "no bytes": lambda: (b"",),
    "many bytes": lambda: (DATA,),
    "bytearray": lambda: (bytearray(b"hello"),),
    "memoryview": lambda: (memoryview(b"hello"),),
    "memoryview of ints": lambda: (memoryview(array.array("i", [1, 2, 3])),),
    "memoryview with gaps": lambda: (memoryview(b"hello")[::2],),
    "array": lambda: (array.array("H", [1, 2, 3]),),
    "mmap": lambda: (mapped_memory(),),
    "subclass of bytes": lambda: (Bytes(b"hello"),),
    "str": lambda: ("hello",),
    "None": lambda: (None,),
    "int": lambda: (5,),
    "list": lambda: ([b"hello"],),
    "object": lambda: (WithoutMethods(),),
    "attribute that is no method": lambda: (NotCallable(),),
    "flags": lambda: (b"hello", socket.MSG_DONTWAIT),
    "bad flags": lambda: (b"hello", "flags"),
    "unknown flags": lambda: (b"hello", socket.MSG_OOB),
    "nothing": lambda: (),
    "too much": lambda: (b"hello", 0, 0),
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_sendall_of_what_is_no_source(
    pairs: Pairs, spawn: Spawn, kind: str, arguments: Callable[[], tuple[Any, ...]]
) -> None:
    def scenario() -> Outcome:
        sink, backend = pairs(kind)
        received = spawn(receive, backend)
        result = outcome(lambda: sink.sendall(*arguments()))
        sink.shutdown(socket.SHUT_WR)  # close() would reset what TLS has not been read of
        return (result, received.get())

    before, after = before_and_after(scenario)
    assert after == before


@pytest.mark.parametrize("cls", [socket.socket, io.BytesIO, io.FileIO])
def test_sendall_of_a_class_is_refused_as_before(pairs: Pairs, cls: type[Any]) -> None:
    near, _ = pairs()
    before, after = before_and_after(lambda: outcome(lambda: near.sendall(cls)))
    assert after == before
    assert after[0] is TypeError


def test_sendall_by_keyword(pairs: Pairs) -> None:
    sink, backend = pairs()
    with patched():
        sink.sendall(data=b"hello", flags=0)
    assert receive(backend, 5) == b"hello"


@pytest.mark.parametrize("state", ["closed", "shut down", "non-blocking", "timed out", "datagram"])
@pytest.mark.parametrize(
    "argument", [b"hello", bytes(8_000_000), "text"], ids=["few", "many", "str"]
)
def test_errors_of_sendall(pairs: Pairs, state: str, argument: Any) -> None:
    def scenario() -> Outcome:
        if state == "datagram":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
                return outcome(lambda: sink.sendall(argument))
        sink, _ = pairs()
        if state == "closed":
            sink.close()
        elif state == "shut down":
            sink.shutdown(socket.SHUT_WR)
        else:
            sink.settimeout(0 if state == "non-blocking" else 0.02)
        return outcome(lambda: sink.sendall(argument))

    before, after = before_and_after(scenario)
    assert after[:3] == before[:3]


@pytest.mark.parametrize("cls", [bytes, bytearray, memoryview])
def test_sendall_of_more_than_there_is_room_for(
    pairs: Pairs, spawn: Spawn, cls: Callable[[bytes], Any]
) -> None:
    sink, backend = pairs()
    data = pattern(MORE_THAN_BUFFERS)
    with patched():
        sending = spawn(sink.sendall, cls(data))
        assert receive(backend, len(data)) == data
        assert sending.get() is None


def test_sendall_calls_a_send_that_was_put_in_the_place_of_gevents(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scenario() -> Outcome:
        calls: list[bytes] = []
        original = socket.socket.send

        def traced(self: socket.socket, data: Any, *arguments: Any, **names: Any) -> int:
            calls.append(bytes(data))
            return original(self, data, *arguments, **names)

        sink, backend = pairs()
        with monkeypatch.context() as context:
            context.setattr(socket.socket, "send", traced)
            sink.sendall(b"hello")
        return (receive(backend, 5), *calls)

    before, after = before_and_after(scenario)
    assert after == before == (b"hello", b"hello")


def test_sendall_of_a_subclass_that_calls_it(pairs: Pairs) -> None:
    class Loud(socket.socket):
        def sendall(self, data: Any, flags: int = 0) -> Any:
            return super().sendall(data.upper(), flags)

    def scenario() -> Outcome:
        sink, backend = connected()
        with Loud(sink.family, sink.type, sink.proto, fileno=sink.detach()) as loud:
            result = outcome(lambda: loud.sendall(b"hello"))
        with backend:
            return (result, receive(backend))

    before, after = before_and_after(scenario)
    assert after == before == (("returned", None), b"HELLO")


# sendall of a source.


def sources(line: MakeLine, spawn: Spawn, path: Path, name: str) -> Any:
    """Return a source called *name* that gives DATA."""
    if name in ("BytesIO", "file"):
        if name == "BytesIO":
            return io.BytesIO(DATA)
        (path / "file").write_bytes(DATA)
        return open(path / "file", "rb")
    client, source, _, _ = line("tls" if name == "TLS" else "tcp")
    spawn(send_and_end, client, DATA)
    return source.makefile("rb") if name == "reader" else source


@pytest.mark.parametrize("name", ["socket", "reader", "TLS", "file", "BytesIO"])
@pytest.mark.parametrize("sink_kind", ["tcp", "unix", "tls"])
def test_sendall_of_a_source_sends_it_all(
    line: MakeLine, pairs: Pairs, spawn: Spawn, tmp_path: Path, sink_kind: str, name: str
) -> None:
    sink, backend = pairs(sink_kind)
    received = spawn(receive, backend, len(DATA))
    with patched(), sources(line, spawn, tmp_path, name) as source:
        before = gsplice.stats()
        assert sink.sendall(source) is None
        after = gsplice.stats()
    assert received.get() == DATA
    assert after.spliced + after.copied - before.spliced - before.copied == len(DATA)
    spliced = sink_kind != "tls" and name in ("socket", "reader", "file")
    assert (after.spliced > before.spliced) is spliced


@pytest.mark.parametrize("name", ["socket", "reader", "file", "BytesIO"])
def test_sendall_of_a_source_without_the_takeover(
    line: MakeLine, pairs: Pairs, spawn: Spawn, tmp_path: Path, name: str
) -> None:
    sink, backend = pairs()
    with sources(line, spawn, tmp_path, name) as source, pytest.raises(TypeError):
        sink.sendall(source)
    assert peeked(backend) == b""


def test_sendall_of_a_source_is_bounded_by_its_timeout(pairs: Pairs) -> None:
    _, source = pairs()
    sink, _ = pairs()
    source.settimeout(0.02)
    with patched(), pytest.raises(socket.timeout):
        sink.sendall(source)


def test_sendall_of_a_source_with_flags_is_refused_as_before(pairs: Pairs) -> None:
    _, source = pairs()
    sink, _ = pairs()
    before = outcome(lambda: sink.sendall(source, socket.MSG_DONTWAIT))
    with patched():
        after = outcome(lambda: sink.sendall(source, socket.MSG_DONTWAIT))
    assert before[0] is after[0] is TypeError
    assert before[2] == after[2]


# sendfile.


def offset_cases() -> Iterator[tuple[int, int | None, int]]:
    for position in (0, 11):
        for offset in (0, 1, 29, 200_000, 299_999, 300_007, 400_000):
            for count in (None, 1, 100, 200_000, 300_007, 900_000):
                yield offset, count, position


def open_sources(path: Path) -> dict[str, Callable[[], Any]]:
    """Return how to open each kind of file; its content is DATA."""
    path.write_bytes(DATA)

    def temporary() -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        file.write(DATA)
        return file

    return {
        "file": lambda: open(path, "rb"),
        "raw file": lambda: open(path, "rb", 0),
        "file to be changed": lambda: open(path, "r+b"),
        "BytesIO": lambda: io.BytesIO(DATA),
        "TemporaryFile": temporary,
    }


KINDS_OF_FILES = ["file", "raw file", "file to be changed", "BytesIO", "TemporaryFile"]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_sendfile_of_a_part(pairs: Pairs, spawn: Spawn, tmp_path: Path, kind: str) -> None:
    open_source = open_sources(tmp_path / "file")[kind]
    for offset, count, position in offset_cases():

        def scenario(offset: int = offset, count: Any = count, position: int = position) -> Outcome:
            sink, backend = connected("unix")
            received = spawn(receive, backend)
            with open_source() as file, backend:
                file.seek(position)
                result = outcome(lambda: sink.sendfile(file, offset, count))
                sink.close()
                return (result, received.get(), file.tell())

        before, after = before_and_after(scenario)
        assert after == before, (offset, count, position)


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize(
    "arguments", [(0, 0), (0, -1), (0, 1.5), (0, "1"), (-1,), ("1",), (1.5,), (None,)], ids=str
)
def test_bad_arguments_of_sendfile(
    pairs: Pairs, spawn: Spawn, tmp_path: Path, kind: str, arguments: tuple[Any, ...]
) -> None:
    open_source = open_sources(tmp_path / "file")[kind]

    def scenario() -> Outcome:
        sink, backend = connected("unix")
        received = spawn(receive, backend)
        with open_source() as file, backend:
            file.seek(11)
            result = outcome(lambda: sink.sendfile(file, *arguments))
            sink.close()
            return (result, received.get(), file.tell())

    before, after = before_and_after(scenario)
    assert after == before


FILES_REFUSED: dict[str, Callable[[Path], Any]] = {
    "text file": lambda path: path.open(),
    "file to be written": lambda path: path.open("wb"),
    "text": lambda path: io.StringIO("text"),
    "None": lambda path: contextlib.nullcontext(),
    "bytes": lambda path: contextlib.nullcontext(b"bytes"),
    "int": lambda path: contextlib.nullcontext(5),
}


@pytest.mark.parametrize("name", FILES_REFUSED)
def test_what_sendfile_refuses(pairs: Pairs, tmp_path: Path, name: str) -> None:
    def scenario() -> Outcome:
        (tmp_path / "file").write_bytes(b"hello")
        sink, _ = pairs()
        with FILES_REFUSED[name](tmp_path / "file") as file:
            return outcome(lambda: sink.sendfile(file))

    before, after = before_and_after(scenario)
    assert after[:3] == before[:3]


def test_sendfile_of_a_closed_file(pairs: Pairs, tmp_path: Path) -> None:
    def scenario() -> Outcome:
        (tmp_path / "file").write_bytes(b"hello")
        with open(tmp_path / "file", "rb") as file:
            pass
        sink, _ = pairs()
        return outcome(lambda: sink.sendfile(file))

    before, after = before_and_after(scenario)
    assert after == before


@pytest.mark.parametrize("count", [None, 6_000_000])
@pytest.mark.parametrize("state", ["closed", "shut down", "non-blocking", "timed out", "datagram"])
def test_errors_of_sendfile(pairs: Pairs, tmp_path: Path, state: str, count: int | None) -> None:
    def scenario() -> Outcome:
        (tmp_path / "file").write_bytes(bytes(8_000_000))
        kind = socket.SOCK_DGRAM if state == "datagram" else socket.SOCK_STREAM
        sink, backend = socket.socketpair(socket.AF_UNIX, kind)
        if state == "closed":
            sink.close()
        elif state == "shut down":
            sink.shutdown(socket.SHUT_WR)
        elif state != "datagram":
            sink.settimeout(0 if state == "non-blocking" else 0.02)
        with sink, backend, open(tmp_path / "file", "rb") as file:
            result = outcome(lambda: sink.sendfile(file, 0, count))
            return (*result[:3], file.tell())

    before, after = before_and_after(scenario)
    assert after[:3] == before[:3]
    if state != "timed out":
        assert after[3] == 0, "it tells how much was sent; gevent's own what was read"


def test_position_after_sendfile_that_failed_tells_how_much_was_sent(
    pairs: Pairs, tmp_path: Path
) -> None:
    data = pattern(8_000_000)
    (tmp_path / "file").write_bytes(data)
    sink, backend = pairs("unix")
    sink.settimeout(0.02)
    with patched(), open(tmp_path / "file", "rb") as file:
        with pytest.raises(socket.timeout):
            sink.sendfile(file, 1000)
        sent = file.tell() - 1000
    sink.close()
    assert receive(backend) == data[1000 : 1000 + sent]


def test_sendfile_uses_the_system_call(pairs: Pairs, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs()
    received = spawn(receive, backend, len(DATA))
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file) == len(DATA)
    assert received.get() == DATA
    after = gsplice.stats()
    assert (after.spliced - before.spliced, after.copied) == (len(DATA), before.copied)


@pytest.mark.parametrize("mode", ["auto", "copy"])
@pytest.mark.parametrize("size", [1, 53_000, 100_000])
def test_sendfile_does_not_wait_for_room_that_no_byte_needs(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mode: str
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", mode)
    (tmp_path / "file").write_bytes(DATA[:size])
    sink, backend = pairs("unix")
    sink.settimeout(0.5)
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file) == size
    assert receive(backend, size) == DATA[:size]


def test_two_greenlets_that_send_a_file_which_fits_do_not_meet(
    pairs: Pairs, spawn: Spawn, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    sink, backend = pairs("unix")

    def send() -> int:
        with open(tmp_path / "file", "rb") as file:
            return sink.sendfile(file)

    with patched():
        sending = [spawn(send), spawn(send)]
        assert [one.get() for one in sending] == [1, 1]
    assert receive(backend, 2) == b"xx"


@pytest.mark.parametrize(
    ("count", "mode"), [(1, "splice"), (1000, "splice"), (8193, "auto"), (len(DATA), "auto")]
)
def test_sendfile_of_a_known_number_of_bytes_uses_the_system_call_too(
    pairs: Pairs,
    spawn: Spawn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    mode: str,
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", mode)
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs()
    received = spawn(receive, backend, count)
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file, 0, count) == count
        assert file.tell() == count
    assert received.get() == DATA[:count]
    after = gsplice.stats()
    assert (after.spliced - before.spliced, after.copied) == (count, before.copied)


@pytest.mark.parametrize("count", [None, 1000, 20_000])
def test_sendfile_splices_nothing_where_the_process_is_told_to_copy(
    pairs: Pairs,
    spawn: Spawn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int | None,
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", "copy")
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs()
    received = spawn(receive, backend, count or len(DATA))
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file, 0, count) == (count or len(DATA))
    assert received.get() == DATA[:count]
    assert gsplice.stats().spliced == before.spliced


def test_sendfile_over_tls_is_encrypted(pairs: Pairs, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    sink, backend = pairs("tls")
    received = spawn(receive, backend, len(DATA))
    before = gsplice.stats()
    with patched(), open(tmp_path / "file", "rb") as file:
        assert sink.sendfile(file) == len(DATA)
    assert received.get() == DATA
    assert gsplice.stats().spliced == before.spliced


@pytest.mark.parametrize("count", [None, 100_000])
@pytest.mark.parametrize("as_reader", [False, True], ids=["socket", "reader"])
def test_sendfile_of_a_socket_or_reader_is_spliced(
    line: MakeLine, spawn: Spawn, as_reader: bool, count: int | None
) -> None:
    client, source, sink, backend = line()
    spawn(send_and_end, client, DATA)
    expected = count or len(DATA)
    received = spawn(receive, backend, expected)
    before = gsplice.stats().spliced
    with patched(), source.makefile("rb") as reader:
        assert sink.sendfile(reader if as_reader else source, 0, count) == expected
    assert received.get() == DATA[:expected]
    assert gsplice.stats().spliced > before


def test_sendfile_of_a_makefile_reader_delivers_and_does_not_raise(
    line: MakeLine, spawn: Spawn
) -> None:
    """What gevent has delivers, and then fails in its last seek."""
    client, source, sink, backend = line()
    send_and_end(client, b"hello")
    with source.makefile("rb") as reader:
        assert isinstance(error_of(sink.sendfile, reader), io.UnsupportedOperation)
    assert receive(backend, 5) == b"hello"
    client, source, sink, backend = line()
    send_and_end(client, b"hello")
    with patched(), source.makefile("rb") as reader:
        assert sink.sendfile(reader) == 5
    assert receive(backend, 5) == b"hello"


# What is replaced, and how it comes back.

OWNERS: tuple[Any, ...] = (
    socket.socket,
    ssl.SSLSocket,
    shutil,
    http.client.HTTPConnection,
    http.client.HTTPResponse,
    pywsgi.WSGIHandler,
    pywsgi.WSGIServer,
)


def attributes() -> list[dict[str, Any]]:
    return [dict(vars(owner)) for owner in OWNERS]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    return all(
        one.keys() == other.keys() and all(one[name] is other[name] for name in one)
        for one, other in zip(before, after, strict=True)
    )


def test_importing_gsplice_replaces_nothing() -> None:
    run_alone(import_and_look)


def import_and_look() -> None:
    """See that an import alone changes nothing (for the test above)."""
    # The module has imported gsplice already; gevent's own are what their code says they are.
    for name in ("sendall", "sendfile"):
        assert getattr(socket.socket, name).__module__.startswith("gevent.")
    assert not gsplice.is_patched("socket")


def test_unpatch_brings_back_every_original_by_identity() -> None:
    before = attributes()
    gsplice.patch_all()
    assert not same(before, attributes())
    gsplice.unpatch_all()
    assert same(before, attributes())
    gsplice.unpatch_all()
    assert same(before, attributes()), "a second one does nothing"


def test_patching_twice_is_as_patching_once() -> None:
    before = attributes()
    gsplice.patch_all()
    once = attributes()
    gsplice.patch_all()
    gsplice.patch_socket()
    assert same(once, attributes())
    gsplice.unpatch_all()
    assert same(before, attributes())


def test_patches_add_up() -> None:
    before = attributes()
    gsplice.patch_all(socket=False)
    assert not gsplice.is_patched("socket")
    gsplice.patch_socket()
    assert gsplice.is_patched("socket")
    gsplice.patch_all(socket=False)
    assert gsplice.is_patched("socket"), "false means: leave it as it is"
    gsplice.unpatch_all()
    assert not gsplice.is_patched("socket")
    assert same(before, attributes())


def test_is_patched_knows_its_words() -> None:
    assert gsplice.is_patched("socket") is False
    for bad in ("sockets", "", None, ["http"]):
        with pytest.raises(ValueError, match="socket"):
            gsplice.is_patched(bad)  # type: ignore[arg-type]


def test_what_is_replaced_looks_like_what_it_replaces() -> None:
    originals = {name: getattr(socket.socket, name) for name in ("sendall", "sendfile")}
    with patched():
        for name, original in originals.items():
            new = getattr(socket.socket, name)
            assert new is not original
            assert new.__name__ == original.__name__
            assert new.__doc__ == original.__doc__
            assert inspect.signature(new) == inspect.signature(original)


def test_sockets_made_before_are_taken_over_too(line: MakeLine) -> None:
    client, source, sink, backend = line()
    send_and_end(client, b"hello")
    with patched():
        sink.sendall(source)
    assert receive(backend, 5) == b"hello"


def check_patched_program() -> None:
    """Send a source with ``socket.socket.sendall`` in a monkey-patched program."""
    assert standard_socket.socket is socket.socket
    client, source = standard_socket.socketpair()
    sink, backend = standard_socket.socketpair()
    with client, source, sink, backend:
        send_and_end(client, b"hello")
        sink.sendall(source)
        assert receive(backend, 5) == b"hello"
    gsplice.unpatch_all()
    assert not gsplice.is_patched("socket")
    assert standard_socket.socket is socket.socket


def patch_before_monkey() -> None:
    """Be turned on first (for the test below)."""
    gsplice.patch_all()
    monkey.patch_all()
    check_patched_program()


def patch_after_monkey() -> None:
    """Be turned on last (for the test below)."""
    monkey.patch_all()
    gsplice.patch_all()
    check_patched_program()


@pytest.mark.parametrize("program", [patch_before_monkey, patch_after_monkey])
def test_order_of_monkey_patching_does_not_matter(program: Callable[[], None]) -> None:
    run_alone(program)


def patch_and_list_modules() -> None:
    """Say what `patch_all` imports (for the test below)."""
    before = set(sys.modules)
    gsplice.patch_all()
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not loaded & {"gunicorn", "urllib3", "requests"}, loaded


def test_patching_imports_no_package_that_is_not_loaded() -> None:
    run_alone(patch_and_list_modules)


# The rest of gevent goes on as before.


def test_servers_of_gevent_go_on(tmp_path: Path) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello, ", environ["wsgi.input"].read()]

    with patched():
        server = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None)
        server.start()
        try:
            with socket.create_connection(server.address) as client:
                client.sendall(b"POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 5\r\n\r\nworld")
                assert receive(client).endswith(b"\r\n\r\nhello, world")
        finally:
            server.stop()


def test_close_and_kill_in_the_middle_of_a_patched_sendall(pairs: Pairs, spawn: Spawn) -> None:
    def scenario() -> Outcome:
        results = []
        for strike in ("close", "kill", "shutdown"):
            sink, backend = pairs()
            sending = spawn(outcome, lambda sink=sink: sink.sendall(bytes(8_000_000)))
            wait_until(lambda sink=sink: sink._write_event.active)
            if strike == "close":
                sink.close()
            elif strike == "shutdown":
                sink.shutdown(socket.SHUT_RDWR)
            else:
                sending.kill(block=False)
            value = sending.get()
            results.append(type(value) if strike == "kill" else value[:3])
            backend.close()
        return tuple(results)

    before, after = before_and_after(scenario)
    assert after == before


def test_unread_source_of_a_broken_sink_raises_as_sendall_does(line: MakeLine) -> None:
    client, source, sink, backend = line("unix")
    send_and_end(client, b"hello")
    backend.close()
    assert poll(sink)
    with patched():
        assert isinstance(error_of(sink.sendall, source), BrokenPipeError)


def test_forwarder_of_one_line(line: MakeLine, spawn: Spawn) -> None:
    client, a, b, backend = line()
    with patched():
        forwarding = [spawn(b.sendall, a), spawn(a.sendall, b)]
        send_and_end(client, DATA)
        assert receive(backend, len(DATA)) == DATA
        send_and_end(backend, b"answer")
        assert receive(client, 6) == b"answer"
        gevent.joinall(forwarding, raise_error=True)


def test_fd_of_a_source_stays_open(line: MakeLine) -> None:
    client, source, sink, _ = line()
    send_and_end(client, b"hello")
    with patched():
        sink.sendall(source)
    os.fstat(source.fileno())
    os.fstat(sink.fileno())
