"""Promise 8: an idle transfer holds nothing; each hub and process has a bounded pool of its."""

from __future__ import annotations

import contextlib
import gc
import http.client
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from faults import always, injected
from forks import in_child, line_with_client_in_thread, pipes_of
from gevent import get_hub
from gevent.os import fork_gevent
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    Line,
    MakeLine,
    Pairs,
    Spawn,
    connected,
    error_of,
    pattern,
    receive,
    run_alone,
    send_and_end,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice import _hub, _kernel, _pipe

MANY = 50


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def exchange(ends: Line, size: int) -> None:
    """Send *size* bytes through a relay, each way."""
    for here, there in ((ends.client, ends.backend), (ends.backend, ends.client)):
        sending = gevent.spawn(here.sendall, pattern(size))
        assert receive(there, size) == pattern(size)
        sending.get()


@pytest.mark.parametrize("mode", MODES)
def test_idle_relays_hold_no_fd_but_their_sockets(line: MakeLine, mode: str) -> None:
    lines = [line() for _ in range(MANY)]
    before = open_fds()
    relays = [gsplice.Relay(ends.source, ends.sink, mode=mode).start() for ends in lines]
    for ends in lines:
        exchange(ends, 300_000)
    now = gsplice.stats()
    assert now.pipes == now.idle_pipes <= _pipe._IDLE_PIPES
    assert open_fds() == before + 2 * now.pipes
    assert now.active == 2 * MANY
    for relay in relays:
        relay.stop()


def test_idle_relay_holds_little_memory(line: MakeLine) -> None:
    def fresh() -> list[Line]:
        return [line("unix") for _ in range(MANY)]

    warm = fresh()[0]
    with contextlib.closing(warm.client):
        relay = gsplice.Relay(warm.source, warm.sink).start()
        exchange(warm, 300_000)
        relay.stop()
    lines = fresh()
    gc.collect()
    tracemalloc.start()
    try:
        relays = [gsplice.Relay(ends.source, ends.sink).start() for ends in lines]
        for ends in lines:
            exchange(ends, 300_000)
        gc.collect()
        per_relay = tracemalloc.get_traced_memory()[0] / MANY
    finally:
        tracemalloc.stop()
    assert per_relay < 6 * 1024, "its sockets not counted"
    for relay in relays:
        relay.stop()


def stall(ends: Line, spawn: Spawn) -> gsplice.Transfer:
    """Return a transfer with a full pipe."""
    spawn(error_of, ends.client.sendall, bytes(MORE_THAN_BUFFERS))
    transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
    wait_until(lambda: waits_to_write(ends.sink))
    return transfer


def test_pool_is_bounded(line: MakeLine, spawn: Spawn) -> None:
    lines = [line("unix") for _ in range(_pipe._IDLE_PIPES + 4)]
    transfers = [stall(ends, spawn) for ends in lines]
    assert gsplice.stats().pipes == len(lines), "bytes are in all of them"
    for ends in lines:
        spawn(receive, ends.backend, MORE_THAN_BUFFERS)
    wait_until(lambda: all(transfer.moved == MORE_THAN_BUFFERS for transfer in transfers))
    now = gsplice.stats()
    assert now.pipes == now.idle_pipes == _pipe._IDLE_PIPES
    for transfer in transfers:
        transfer.stop()


def test_no_more_than_256_kib_wait_in_a_pipe_for_a_unix_socket(pairs: Pairs, spawn: Spawn) -> None:
    """The rest is better left in the source: it goes on faster from there."""
    client, source = pairs("tcp")
    sink, backend = pairs("unix")
    limits: list[int] = []

    def noted(splice: Callable[..., int], *arguments: int, **options: int) -> int:
        limits.append(arguments[2])
        return splice(*arguments, **options)

    with injected(always("splice", noted)):
        transfer = stall(Line(client, source, sink, backend), spawn)
    assert max(limits) == 256 * 1024
    transfer.stop()


def test_pipes_are_not_inherited_by_programs(line: MakeLine, spawn: Spawn) -> None:
    before = pipes_of("self")
    transfer = stall(line("unix"), spawn)
    ours = pipes_of("self") - before
    assert len(ours) == 1
    program = "import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert not ours & pipes_of(process.pid)
        process.communicate()
    transfer.stop()


def test_as_many_stalled_transfers_as_fds_allow_and_more(line: MakeLine, spawn: Spawn) -> None:
    lines = [line("unix") for _ in range(20)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 20, limits[1]))
    try:
        transfers = [stall(ends, spawn) for ends in lines]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert gsplice.stats().pipes == 10
    assert gsplice.stats().fallbacks["EMFILE"] >= 1
    for ends in lines:
        spawn(receive, ends.backend, MORE_THAN_BUFFERS)
    wait_until(lambda: all(transfer.moved == MORE_THAN_BUFFERS for transfer in transfers))
    for transfer in transfers:
        transfer.stop()


def test_nothing_of_a_transfer_is_left_in_the_scratch_buffer_for_another(
    line: MakeLine, spawn: Spawn
) -> None:
    lines = [line("unix") for _ in range(8)]
    for ends in lines:
        ends.sink.setsockopt(1, 7, 4096)  # SO_SNDBUF: each stalls again and again
    transfers, received = [], []
    for key, ends in enumerate(lines):
        data = pattern(200_000, key)
        spawn(send_and_end, ends.client, data)
        transfers.append(gsplice.Transfer(ends.source, ends.sink, mode="copy").start())
        received.append((spawn(receive, ends.backend, len(data)), data))
    for greenlet, data in received:
        assert greenlet.get() == data
    for transfer in transfers:
        transfer.get()


# Forked children. Each of these runs in an interpreter of its own, which forks.


def fork_with_idle_pipes() -> None:
    """A parent that has used pipes: its child has none (for a test below)."""
    for fork in (fork_gevent, os.fork):
        sockets = (*connected(), *connected())
        client, source, sink, backend = sockets
        gevent.spawn(send_and_end, client, pattern(500_000))
        received = gevent.spawn(receive, backend, 500_000)
        assert gsplice.copy(source, sink, mode="splice") == 500_000
        assert received.get() == pattern(500_000)
        idle = _hub.resources().pipes._idle
        parents = {os.readlink(f"/proc/self/fd/{pipe.read_fd}") for pipe in idle}
        assert parents

        def look(parents: set[str] = parents) -> None:
            assert not parents & pipes_of("self"), "a pipe of the parent's is open"
            assert gsplice.stats() == (0, 0, 0, 0, 0, {})
            assert _hub.resources().pipes.idle == 0

        wait = in_child(look, fork)
        wait()
        assert gsplice.stats().idle_pipes == 1
        for sock in sockets:
            sock.close()


def fork_with_transfers_under_way() -> None:
    """A parent that relays: its child takes no byte of it (for a test below)."""
    data = pattern(MORE_THAN_BUFFERS)
    idle = Line(*connected(), *connected())
    stalled, _ = line_with_client_in_thread(data)
    waiting = gsplice.Transfer(idle.source, idle.sink).start()
    full = gsplice.Transfer(stalled.source, stalled.sink, mode="splice").start()
    wait_until(lambda: waits_to_write(stalled.sink) and waits_to_read(idle.source))
    told: list[Any] = []
    for transfer in (waiting, full):
        transfer.rawlink(told.append)
    go_read, go_write = os.pipe()

    def run_the_hub() -> None:
        assert gsplice.stats().active == 0
        os.write(go_write, b"x")
        gevent.sleep(0.2)  # in which bytes come to the sockets that it has in common
        assert told == []

    wait = in_child(run_the_hub, fork_gevent)
    assert os.read(go_read, 1) == b"x"
    for number in range(20):
        idle.client.sendall(pattern(100, number))
        assert receive(idle.backend, 100) == pattern(100, number)
        gevent.sleep(0.002)
    assert receive(stalled.backend, len(data)) == data
    assert full.get() == len(data)
    wait()
    waiting.stop()
    assert waiting.moved == 2000
    for sock in (*idle, *stalled):
        sock.close()
    for fd in (go_read, go_write):
        os.close(fd)


def fork_and_use_in_the_child() -> None:
    """A child that moves bytes of its own, while its parent goes on (for a test below)."""
    data = pattern(MORE_THAN_BUFFERS)
    ends, _ = line_with_client_in_thread(data)
    transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
    wait_until(lambda: waits_to_write(ends.sink))

    def work() -> None:
        own = Line(*connected(), *connected())
        gevent.spawn(send_and_end, own.client, pattern(700_000, 1))
        received = gevent.spawn(receive, own.backend, 700_000)
        assert gsplice.copy(own.source, own.sink, mode="splice") == 700_000
        assert received.get() == pattern(700_000, 1)
        assert gsplice.stats().spliced == 700_000
        for sock in own:
            sock.close()

    wait = in_child(work, fork_gevent)
    assert receive(ends.backend, len(data)) == data
    assert transfer.get() == len(data)
    wait()
    for sock in ends:
        sock.close()


def fork_with_a_body_under_way() -> None:
    """A parent that sends a body on, which is its and not the child's (for a test below)."""
    body = pattern(MORE_THAN_BUFFERS)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    ends, _ = line_with_client_in_thread(head + body)
    response = http.client.HTTPResponse(ends.source)
    response.begin()
    transfer = gsplice.Transfer(response, ends.sink, idle_timeout=5).start()
    wait_until(lambda: waits_to_write(ends.sink))
    moved, length = transfer.moved, response.length

    def run_the_hub() -> None:
        assert gsplice.stats().active == 0
        gevent.sleep(0.2)
        assert (transfer.moved, transfer.ready(), response.length) == (moved, False, length)

    wait = in_child(run_the_hub, fork_gevent)
    assert receive(ends.backend, len(body)) == body
    assert transfer.get() == len(body)
    assert response.isclosed()
    wait()
    for sock in ends:
        sock.close()


@pytest.mark.parametrize(
    "program",
    [
        fork_with_idle_pipes,
        fork_with_transfers_under_way,
        fork_with_a_body_under_way,
        fork_and_use_in_the_child,
    ],
)
def test_fork(program: Callable[[], None]) -> None:
    # That the process has threads is no news: the hub's own.
    run_alone(program, PYTHONWARNINGS="error,ignore::DeprecationWarning")


# Threads.


def pools_of_threads() -> None:
    """Two threads, two hubs, two pools; and what becomes of one (for the test below)."""
    moved, looked = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def work() -> None:
        sockets = (*connected("unix"), *connected("unix"))
        client, source, sink, backend = sockets
        gevent.spawn(send_and_end, client, pattern(500_000))
        received = gevent.spawn(receive, backend, 500_000)
        gsplice.copy(source, sink, mode="splice")
        assert received.get() == pattern(500_000)
        for sock in sockets:
            sock.close()
        seen["theirs"] = _hub.resources()
        moved.set()
        looked.wait()
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=work)
    thread.start()
    moved.wait()
    assert seen.pop("theirs") is not _hub.resources()
    assert _hub.resources().pipes.idle == 0
    assert gsplice.stats().idle_pipes == 1
    looked.set()
    thread.join()
    del thread
    gc.collect()
    assert gsplice.stats().pipes == 0, "the pipes of a hub that is gone are closed"


def test_each_threads_hub_has_pipes_of_its_own() -> None:
    run_alone(pools_of_threads)


def test_pipe_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    original = _kernel.close
    monkeypatch.setattr(_kernel, "close", lambda fd: (closed.append(fd), original(fd)))
    pipe = _pipe.PipePool().lend()
    assert pipe is not None
    fds = {pipe.read_fd, pipe.write_fd}
    pipe.close()
    pipe.close()
    assert sorted(closed) == sorted(fds)
    assert (pipe.read_fd, pipe.write_fd) == (-1, -1)


def test_pool_lends_an_empty_pipe_again_and_closes_one_with_bytes() -> None:
    pool = _pipe.PipePool()
    first = pool.lend()
    assert first is not None
    pool.give_back(first)
    again = pool.lend()
    assert again is first
    os.write(first.write_fd, b"x")
    first.held = 1
    pool.give_back(first)
    assert (pool.opened, pool.idle) == (0, 0)
    assert first.read_fd == -1
