"""Promise 9, of ``sendall``: after `patch_all` what worked before works as before."""

from __future__ import annotations

import array
import io
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import (
    MORE_THAN_BUFFERS,
    MakeLine,
    Pairs,
    Spawn,
    connected,
    fill,
    pattern,
    peeked,
    receive,
    send_and_end,
    wait_until,
    waits_to_write,
)
from untouched import DATA, Outcome, before_and_after, outcome, patched

import gsplice

# What is no source.


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


@pytest.mark.parametrize("cls", [bytes, bytearray, memoryview])
def test_sendall_where_there_is_no_room_at_all(
    pairs: Pairs, spawn: Spawn, cls: Callable[[bytes], Any]
) -> None:
    sink, backend = pairs()
    filled = fill(sink)
    with patched():
        sending = spawn(sink.sendall, cls(b"hello"))
        wait_until(lambda: waits_to_write(sink))
        assert receive(backend, filled + 5).endswith(b"\0hello")
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


# A source.


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
