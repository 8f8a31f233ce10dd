"""`stop` of a `Transfer` and of a `Relay`: at once, once, and with every byte accounted for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket
from peers import (
    Line,
    MakeLine,
    Pairs,
    Spawn,
    error_of,
    pattern,
    receive,
    small_buffers,
    wait_until,
    waits_to_read,
    waits_to_write,
)
from tasks import MakeTask, each_task, end_both

import gsplice


@contextlib.contextmanager
def unflushed(ends: Line) -> Iterator[gsplice.Transfer]:
    """Make a transfer to a writer that has 900,000 bytes to flush first; nobody reads them yet."""
    small_buffers(ends.sink)
    with ends.sink.makefile("wb", 1_000_000) as writer:
        writer.write(pattern(900_000))
        ends.client.sendall(b"hello")
        yield gsplice.Transfer(ends.source, writer)


@each_task
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_stop_while_idle(line: MakeLine, make: MakeTask, kind: str) -> None:
    ends = line(kind)
    task = make(ends.source, ends.sink).start()
    task.stop()
    assert task.ready()
    assert not task.successful()
    assert isinstance(task.exception, gsplice.TransferStopped)
    with pytest.raises(gsplice.TransferStopped):
        task.get()
    assert (task.moved, task.undelivered) == (0, b"")
    ends.client.sendall(b"hello")
    assert receive(ends.source, 5) == b"hello", "the sockets are free for others at once"
    assert gsplice.stats().active == 0


@each_task
def test_stop_before_start(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    ends.client.sendall(b"hello")
    task = make(ends.source, ends.sink)
    task.stop()
    assert task.ready()
    task.start()
    with pytest.raises(gsplice.TransferStopped):
        task.get()
    assert receive(ends.source, 5) == b"hello"


@each_task
def test_stop_of_what_has_ended_does_nothing(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    end_both(ends)
    result = task.get()
    task.stop()
    assert task.successful()
    assert task.get() == result


@each_task
def test_second_stop_does_nothing(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    task.stop()
    first = task.exception
    task.stop()
    assert task.exception is first


@each_task
@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("is_started", [True, False], ids=["started", "run by its caller"])
def test_several_who_stop_it_at_once_have_the_sockets_free_each(
    line: MakeLine, spawn: Spawn, make: MakeTask, kind: str, is_started: bool
) -> None:
    ends = line(kind)
    task = make(ends.source, ends.sink)
    waiting = spawn(error_of, (task.start() if is_started else task).run)
    wait_until(lambda: waits_to_read(ends.source))

    def stop() -> bool:
        task.stop()
        return waits_to_read(ends.source)

    stopping = [spawn(stop) for _ in range(3)]
    assert [greenlet.get(timeout=5) for greenlet in stopping] == [False] * 3
    assert isinstance(waiting.get(timeout=5), gsplice.TransferStopped)


@each_task
@pytest.mark.parametrize("is_started", [True, False], ids=["started", "run by its caller"])
def test_who_is_interrupted_while_it_is_stopped_stops_it_again(
    line: MakeLine, spawn: Spawn, make: MakeTask, is_started: bool
) -> None:
    """A time-out that strikes the caller of a copy, and a kill right behind it, do just that."""
    ends = line("tls")
    task = make(ends.source, ends.sink)
    waiting = spawn(error_of, (task.start() if is_started else task).run)
    wait_until(lambda: waits_to_read(ends.source))
    interrupt = gevent.getcurrent().throw
    gevent.get_hub().loop.run_callback(interrupt, gevent.GreenletExit)
    with pytest.raises(gevent.GreenletExit):
        task.stop()
    assert waits_to_read(ends.source), "it was interrupted too late"
    task.stop()
    assert not waits_to_read(ends.source)
    assert isinstance(waiting.get(timeout=5), gsplice.TransferStopped)


@each_task
def test_stop_tells_those_who_wait(line: MakeLine, spawn: Spawn, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    waiting = spawn(error_of, task.get)
    gevent.sleep(0)
    task.stop()
    assert waiting.get(timeout=5) is task.exception


def test_stop_of_a_legs_relay_and_of_a_leg(line: MakeLine) -> None:
    ends = line()
    relay = gsplice.Relay(ends.source, ends.sink).start()
    relay.up.stop()
    with pytest.raises(gsplice.TransferStopped):
        relay.get(timeout=5)
    assert relay.down.ready()


def test_stop_from_a_link_of_another(line: MakeLine) -> None:
    first, second = line(), line()
    one = gsplice.Transfer(first.source, first.sink).start()
    two = gsplice.Transfer(second.source, second.sink).start()
    one.rawlink(lambda _: two.stop())
    first.client.shutdown(socket.SHUT_WR)
    with pytest.raises(gsplice.TransferStopped):
        two.get(timeout=5)


def test_stop_while_start_still_flushes_the_writer(
    line: MakeLine, pairs: Pairs, spawn: Spawn
) -> None:
    ends = line("unix")
    with unflushed(ends) as transfer:
        starting = spawn(transfer.start)
        wait_until(lambda: waits_to_write(ends.sink))
        transfer.stop()
        assert receive(ends.backend, 900_000) == pattern(900_000)
        starting.get(timeout=5)
        with pytest.raises(gsplice.TransferStopped):
            transfer.get()
        assert (transfer.moved, transfer.undelivered) == (0, b"")
        assert receive(ends.source, 5) == b"hello"
        assert gsplice.stats().active == 0


def test_kill_of_a_caller_while_the_writer_is_still_flushed_ends_it(
    line: MakeLine, spawn: Spawn
) -> None:
    ends = line("unix")
    with unflushed(ends) as transfer:
        caller = spawn(transfer.run)
        wait_until(lambda: waits_to_write(ends.sink))
        caller.kill(timeout=5)
        assert isinstance(caller.value, gevent.GreenletExit)
        assert isinstance(transfer.exception, gevent.GreenletExit)
        assert receive(ends.source, 5) == b"hello"
        assert gsplice.stats().active == 0
        spawn(receive, ends.backend)  # what is left in the writer goes out as it is closed


def test_stop_leaves_a_file_where_the_last_byte_was(line: MakeLine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pattern(5_000_000))
    ends = line("unix")
    with open(path, "rb") as file:
        file.seek(11)
        transfer = gsplice.Transfer(file, ends.sink).start()
        wait_until(lambda: waits_to_write(ends.sink))
        transfer.stop()
        assert file.tell() == 11 + transfer.moved
        assert transfer.undelivered == b""
        assert receive(ends.backend, transfer.moved) == pattern(5_000_000)[11 : file.tell()]


def test_stop_before_start_leaves_a_file_where_it_was(line: MakeLine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pattern(100))
    ends = line()
    with open(path, "r+b") as file:
        file.seek(11)
        gsplice.Transfer(file, ends.sink).stop()
        assert file.tell() == 11
        gsplice.Transfer(ends.source, file).stop()
        assert file.tell() == 11
