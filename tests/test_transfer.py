"""`Transfer`: gevent's result protocol, `stop`, and what was moved and what was not."""

from __future__ import annotations

import gc
import random
from typing import Any

import gevent
import pytest
from gevent import socket
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    MakeLine,
    Pairs,
    Spawn,
    fill,
    pattern,
    receive,
    send_and_end,
    wait_until,
    waits_to_read,
    waits_to_write,
)
from tasks import MakeTask, each_task, end_both

import gsplice

# The life of a task.


@each_task
def test_nothing_happens_before_start(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    ends.client.sendall(b"hello")
    task = make(ends.source, ends.sink)
    gevent.sleep(0)
    assert not task.ready()
    assert not task.successful()
    assert task.exception is None
    assert not waits_to_read(ends.source)
    assert receive(ends.source, 5) == b"hello"


@each_task
def test_start_returns_the_task_and_does_not_wait(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink)
    assert task.start() is task
    assert not task.ready()
    assert task.start() is task, "a second start does nothing"
    end_both(ends)
    task.get()


@each_task
def test_clean_end(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    ends.client.sendall(b"hello")
    end_both(ends)
    assert task.get() == (5 if make is gsplice.Transfer else (5, 0))
    assert task.get() == task.value, "it may be asked twice"
    assert task.ready()
    assert task.successful()
    assert task.exception is None
    assert (task.moved, task.undelivered) == (5, b"")


@each_task
def test_error(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    ends.sink.shutdown(socket.SHUT_WR)
    task = make(ends.source, ends.sink).start()
    ends.client.sendall(b"hello")
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            task.get()
    assert task.ready()
    assert not task.successful()
    assert isinstance(task.exception, BrokenPipeError)
    assert (task.moved, task.undelivered) == (0, b"hello")


@each_task
@pytest.mark.parametrize("wait", ["wait", "get"])
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_timeout_of_the_wait_leaves_it_running(
    line: MakeLine, make: MakeTask, wait: str, timeout: float
) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    if wait == "get":
        with pytest.raises(gevent.Timeout):
            task.get(timeout=timeout)
    else:
        assert task.wait(timeout=timeout) is None
    assert not task.ready()
    ends.client.sendall(b"hello")
    assert receive(ends.backend, 5) == b"hello"
    end_both(ends)
    task.get()


@each_task
def test_outer_timeout_comes_out_of_the_wait(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.01) as outer:
        task.get(timeout=30)
    assert caught.value is outer
    assert not task.ready()
    task.stop()


@each_task
def test_several_greenlets_wait(line: MakeLine, spawn: Spawn, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    waiting = [spawn(task.get) for _ in range(5)]
    gevent.sleep(0)
    end_both(ends)
    assert len({greenlet.get() for greenlet in waiting}) == 1


@each_task
def test_gevent_wait_and_iwait_take_it(line: MakeLine, make: MakeTask) -> None:
    lines = [line() for _ in range(3)]
    tasks = [make(ends.source, ends.sink).start() for ends in lines]
    assert gevent.wait(tasks, timeout=0.01) == []
    order = gevent.iwait(tasks, timeout=5)
    for number in (1, 2, 0):
        end_both(lines[number])
        assert next(order) is tasks[number]
    assert set(gevent.wait(tasks, timeout=5)) == set(tasks)


@each_task
def test_link(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink)
    told: list[Any] = []
    task.rawlink(told.append)
    task.start()
    assert told == []
    end_both(ends)
    task.get()
    wait_until(lambda: told == [task])
    task.rawlink(told.append)  # what has ended tells at once
    wait_until(lambda: told == [task, task])


@each_task
def test_what_is_linked_may_ask_for_the_result(line: MakeLine, make: MakeTask) -> None:
    """It is called in the hub, where nobody can wait."""
    ends = line()
    task = make(ends.source, ends.sink)
    results: list[Any] = []
    task.rawlink(lambda ended: results.append(ended.get()))
    task.start()
    end_both(ends)
    result = task.get()
    wait_until(lambda: results == [result])


@each_task
def test_link_that_was_taken_off_is_not_told(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    task = make(ends.source, ends.sink).start()
    told: list[Any] = []
    link = told.append
    task.rawlink(link)
    task.unlink(link)
    end_both(ends)
    task.get()
    gevent.sleep(0)
    assert told == []


@each_task
def test_task_that_nobody_keeps_goes_on(line: MakeLine, make: MakeTask) -> None:
    ends = line()
    make(ends.source, ends.sink).start()
    gc.collect()
    ends.client.sendall(b"hello")
    assert receive(ends.backend, 5) == b"hello"
    end_both(ends)
    wait_until(lambda: gsplice.stats().active == 0)


# What has left the source is moved or undelivered, always.


@pytest.mark.parametrize(
    "kinds", [("tcp", "tcp"), ("unix", "unix"), ("tls", "tcp"), ("tcp", "tls")]
)
@pytest.mark.parametrize("mode", MODES)
def test_stop_at_random_instants_loses_nothing(
    line: MakeLine, pairs: Pairs, spawn: Spawn, mode: str, kinds: tuple[str, str]
) -> None:
    """One stream through many backends, each of which stalls: the next gets what the last did not.

    It runs until the end of the stream, and every byte must be somewhere, once.
    """
    chance = random.Random(f"{mode} {kinds}")
    data = pattern(6_000_000)
    client, source = pairs(kinds[0])
    spawn(send_and_end, client, data)
    arrived = bytearray()
    undelivered = b""
    while len(arrived) + len(undelivered) < len(data):
        sink, backend = pairs(kinds[1])
        if undelivered:
            spawn(sink.sendall, undelivered)
            arrived += receive(backend, len(undelivered))
        transfer = gsplice.Transfer(source, sink, mode=mode).start()
        accepts = chance.choice([0, 1, 1000, 100_000, 400_000])
        taken = bytearray()

        def accept_some(backend: Any = backend, taken: Any = taken, some: int = accepts) -> None:
            while len(taken) < some and (piece := backend.recv(min(65536, some - len(taken)))):
                taken.extend(piece)

        accepting = spawn(accept_some)
        for _ in range(chance.randrange(12)):
            gevent.sleep(chance.choice([0, 0, 0.001]))  # 0 lets callbacks run, but no I/O
        transfer.stop()
        accepting.kill()
        undelivered = transfer.undelivered
        sink.shutdown(socket.SHUT_WR)  # close() would discard what TLS has not been read of
        taken += receive(backend)
        for sock in (sink, backend):
            sock.close()
        assert len(taken) == transfer.moved
        arrived += taken
    assert bytes(arrived + undelivered) == data


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("mode", MODES)
def test_stop_of_a_stalled_relay_accounts_for_both_directions(
    line: MakeLine, spawn: Spawn, mode: str, kind: str
) -> None:
    client, a, b, backend = line(kind)
    up, down = pattern(MORE_THAN_BUFFERS, 1), pattern(MORE_THAN_BUFFERS, 2)
    sent_up, sent_down = spawn(client.sendall, up), spawn(backend.sendall, down)
    relay = gsplice.Relay(a, b, mode=mode).start()
    wait_until(lambda: waits_to_write(a) and waits_to_write(b))
    relay.stop()
    assert relay.up.undelivered
    assert relay.down.undelivered
    assert relay.moved == relay.up.moved + relay.down.moved
    for leg, sent, here, there, data in (
        (relay.up, sent_up, a, backend, up),
        (relay.down, sent_down, b, client, down),
    ):
        taken = leg.moved + len(leg.undelivered)
        rest = receive(here, len(data) - taken)
        sent.get()
        assert receive(there, leg.moved) + leg.undelivered + rest == data


def test_moved_and_spliced_while_it_runs(line: MakeLine, spawn: Spawn) -> None:
    ends = line()
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    ends.client.sendall(b"hello")
    assert receive(ends.backend, 5) == b"hello"
    assert (transfer.moved, transfer.spliced, transfer.undelivered) == (5, 0, b"")
    spawn(ends.client.sendall, pattern(2_000_000))
    receive(ends.backend, 2_000_000)
    assert transfer.moved == 2_000_005
    assert 1_000_000 < transfer.spliced < transfer.moved
    transfer.stop()
    assert (transfer.moved, transfer.undelivered) == (2_000_005, b"")


@pytest.mark.parametrize("mode", MODES)
def test_moved_counts_what_the_sink_has_accepted(line: MakeLine, mode: str) -> None:
    ends = line()
    fill(ends.sink)
    transfer = gsplice.Transfer(ends.source, ends.sink, mode=mode).start()
    ends.client.sendall(b"hello")
    wait_until(lambda: waits_to_write(ends.sink))
    assert (transfer.moved, transfer.undelivered) == (0, b"")
    transfer.stop()
    assert (transfer.moved, transfer.undelivered) == (0, b"hello")
