"""`fork` and processes: no byte crosses, and both sides go on.

Each scenario runs in an interpreter of its own, which forks; in what a child does, an assertion
that fails is its exit status. (Threads: tests/test_threads.py; pools and figures in a child:
tests/test_frugality.py.)
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from forks import (
    THREADS_ARE_NO_NEWS,
    Methods,
    Parent,
    close,
    ended_child,
    gsplices_pipes,
    in_child,
    line_with_client_in_thread,
    move_own_bytes,
    pipes_of,
)
from gevent import get_hub
from gevent.os import fork_and_watch, fork_gevent, waitpid
from moderated import Stream
from peers import (
    MORE_THAN_BUFFERS,
    Line,
    connected,
    is_readable,
    pattern,
    receive,
    run_alone,
    send_and_end,
    ticks_of,
    wait_until,
    waits_to_write,
)

import gsplice
from gsplice import _gevent, _kernel, _moderation
from gsplice._moderation import PATIENCE, PERIOD
from gsplice._pump import Pump


def forked_in_the_middle() -> None:
    """Fork beside a transfer (for the test below), as FORK and STATE say."""
    parent = Parent(os.environ["STATE"])
    move_own_bytes(2)  # so that there are pipes in the pool
    ours = gsplices_pipes()
    assert ours

    def work() -> None:
        if os.environ["FORK"] == "os.fork" and type(get_hub().loop).__module__.startswith(
            "gevent.libuv"
        ):
            gevent.reinit()  # without it parent and child poll the same fds, says libuv
        assert not ours & pipes_of("self"), "a pipe of the parent's is open"
        assert gsplice.stats() == (0, 0, 0, 0, 0, {})
        move_own_bytes(3)
        assert gsplice.stats()[:3] == (700_000, 0, 0)
        move_own_bytes(4, "copy")
        assert parent.told == []

    wait = in_child(work, {"os.fork": os.fork, "gevent.fork": fork_gevent}[os.environ["FORK"]])
    parent.go_on()
    wait()
    move_own_bytes(5)


@pytest.mark.parametrize("state", ["pipe-empty", "pipe-full", "copy-stalled", "methods-stalled"])
@pytest.mark.parametrize("fork", ["os.fork", "gevent.fork"])
def test_a_fork_in_the_middle_of_a_transfer(fork: str, state: str) -> None:
    run_alone(forked_in_the_middle, FORK=fork, STATE=state, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


def forked_and_watched() -> None:
    """Fork with gevent's child watchers, several times (for the test below)."""
    parent = Parent("pipe-full")
    pids = []
    for key in range(3):
        pid = fork_and_watch()
        if pid == 0:
            try:
                move_own_bytes(key)
                os._exit(40 + key)
            finally:
                os._exit(1)
        pids.append(pid)
    parent.go_on()
    statuses = [os.waitstatus_to_exitcode(waitpid(pid, 0)[1]) for pid in pids]
    assert statuses == [40, 41, 42]


def test_children_that_gevent_watches() -> None:
    run_alone(forked_and_watched, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


def reinit_and_move(key: int, results: Any) -> None:
    gevent.reinit()  # multiprocessing forks with os.fork, and knows nothing of hubs
    move_own_bytes(key)
    results.send((key, gsplice.stats().spliced))


def multiprocessed() -> None:
    """Have children of the standard library's beside a transfer (for the test below)."""
    parent = Parent("pipe-full")
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(3)]
    processes = [
        context.Process(target=reinit_and_move, args=(key, sender))
        for key, (_, sender) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    parent.go_on()
    for process in processes:
        wait_until(lambda process=process: process.exitcode is not None)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [receiver.recv() for receiver, _ in ends] == [(key, 700_000) for key in range(3)]


def test_children_of_multiprocessing() -> None:
    run_alone(multiprocessed, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


def generations() -> None:
    """A child that forks in its turn, each with a transfer that has stalled (for a test below)."""
    oldest = Parent("pipe-full")

    def child() -> None:
        middle = Parent("pipe-full")

        def grandchild() -> None:
            assert gsplice.stats().active == 0
            youngest = Parent("pipe-full")
            youngest.go_on()

        wait = in_child(grandchild, fork_gevent)
        middle.go_on()
        wait()

    wait = in_child(child, fork_gevent)
    oldest.go_on()
    wait()


def test_a_forked_child_forks_in_its_turn() -> None:
    run_alone(generations, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


class Forks:
    """Calls a function, and then forks, as a signal handler may."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.pid: int | None = None

    def __call__(self, *args: Any) -> Any:
        result = self._function(*args)
        if self.pid is None:
            self.pid = os.fork()
        return result


class ForkingSource:
    """The C socket under a source, which forks after its first ``recv_into``."""

    def __init__(self, raw: Any) -> None:
        self.recv_into = Forks(raw.recv_into)
        self.fileno = raw.fileno


class ForkingFile:
    """A file that forks when its fd is first asked for."""

    def __init__(self, file: Any) -> None:
        self.fileno = Forks(file.fileno)
        self.tell, self.seek = file.tell, file.seek


def between_recv_and_send(line: Line, data: bytes) -> tuple[gsplice.Transfer, Forks]:
    send_and_end(line.client, data)
    transfer = gsplice.Transfer(line.source, line.sink, mode="copy")
    transfer._engine._raw_source = raw = ForkingSource(line.source._sock)
    return transfer.start(), raw.recv_into


def between_splices(line: Line, data: bytes) -> tuple[gsplice.Transfer, Forks]:
    send_and_end(line.client, data)
    original, _kernel.splice = _kernel.splice, Forks(_kernel.splice)
    forking = _kernel.splice
    transfer = gsplice.Transfer(line.source, line.sink, mode="splice").start()
    _kernel.splice = original
    return transfer, forking


def before_sendfile(line: Line, data: bytes) -> tuple[gsplice.Transfer, Forks]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    file.write(data)
    file.seek(0)
    transfer = gsplice.Transfer(file, line.sink)
    transfer._engine._file = forking = ForkingFile(file)
    transfer.rawlink(lambda _: file.close())
    return transfer.start(), forking.fileno


def forked_between_two_system_calls() -> None:
    """A child that goes on where its parent was, in the middle of a round (for the test below)."""
    line, data = Line(*connected("unix"), *connected("unix")), pattern(10_000, 7)
    begin = {way.__name__: way for way in (between_recv_and_send, between_splices, before_sendfile)}
    transfer, forking = begin[os.environ["WAY"]](line, data)
    if forking.pid == 0:
        os._exit(0 if gsplice.stats() == (0, 0, 0, 0, 0, {}) else 1)
    assert forking.pid is not None
    wait_until(lambda: ended_child(forking.pid) == (forking.pid, 0))
    assert transfer.get(timeout=20) == len(data)
    assert receive(line.backend, len(data)) == data
    assert not is_readable(line.backend), "the child has sent as well"
    close(*line)


@pytest.mark.parametrize("way", ["between_recv_and_send", "between_splices", "before_sendfile"])
def test_a_fork_by_a_signal_handler_in_the_middle_of_a_round_sends_nothing_twice(way: str) -> None:
    run_alone(forked_between_two_system_calls, WAY=way, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


def end_with_hello(line: Line, transfer: gsplice.Transfer) -> None:
    """End a transfer of the parent's, on which it is said hello."""
    assert receive(line.backend, 5) == b"hello"
    transfer.stop()
    close(*line)


def forked_in_a_turn() -> None:
    """Fork while sources that were reported together are read in turn (for the test below)."""
    lines = [Line(*connected("unix"), *connected("unix")) for _ in range(3)]
    transfers = [gsplice.Transfer(line.source, line.sink).start() for line in lines]
    gevent.sleep(0.001)
    original = Pump.on_readable

    def on_readable(self: Pump) -> bool:
        if self is transfers[1]._engine and forking.pid is None:
            forking()
        return original(self)

    forking, turns = Forks(lambda: None), transfers[1]._engine._turns
    Pump.on_readable = on_readable  # type: ignore[method-assign]
    for line in lines:
        line.client.sendall(b"hello")
    wait_until(lambda: forking.pid is not None)
    if forking.pid == 0:
        gevent.sleep(0.001)
        took_turns = turns is not None and turns._end_of_report.active
        moved = [transfer.moved for transfer in transfers]
        os._exit(0 if moved == [5, 0, 0] and not took_turns else 1)
    wait_until(lambda: ended_child(forking.pid) == (forking.pid, 0))
    for line, transfer in zip(lines, transfers, strict=True):
        end_with_hello(line, transfer)


def test_a_fork_in_ones_turn_leaves_all_the_others_to_the_parent() -> None:
    run_alone(forked_in_a_turn)


def forked_as_a_wait_begins() -> None:
    """Fork when the source is waited for already, and nobody has it written down (see below)."""
    line = Line(*connected("unix"), *connected("unix"))
    original, forking = _gevent.start, Forks(_gevent.start)
    _gevent.start = forking
    transfer = gsplice.Transfer(line.source, line.sink).start()
    _gevent.start = original
    if forking.pid == 0:
        gevent.reinit()
        gevent.sleep(0.001)
        os._exit(0 if line.source._read_event.callback is None else 1)
    wait_until(lambda: ended_child(forking.pid) == (forking.pid, 0))
    line.client.sendall(b"hello")
    end_with_hello(line, transfer)


def test_a_fork_by_a_signal_handler_as_a_wait_begins_leaves_the_child_waiting_for_nothing() -> None:
    run_alone(forked_as_a_wait_begins)


def forked_beside_a_hub_that_is_gone() -> None:
    """A thread has left a transfer on a hub that was destroyed (for the test below)."""
    left: list[Any] = []

    def leave_one() -> None:
        line = Line(*connected("unix"), *connected("unix"))
        left.append((line, gsplice.Transfer(line.source, line.sink, idle_timeout=60).start()))

    pool = gevent.get_hub().threadpool
    pool.apply(leave_one)
    pool.kill()
    wait_until(lambda: left[0][0].source.hub.loop is None)
    lines = [Line(*connected("unix"), *connected("unix")) for _ in range(8)]
    transfers = [gsplice.Transfer(line.source, line.sink).start() for line in lines]

    def work() -> None:
        gevent.sleep(0.001)
        assert all(transfer._engine._owner is None for transfer in transfers)

    in_child(work, fork_gevent)()
    for line, transfer in zip(lines, transfers, strict=True):
        line.client.sendall(b"hello")
        end_with_hello(line, transfer)
    for sock in left[0][0]:
        sock._sock.close()  # whoever closes it by gevent's asks the loop, which is gone


def test_beside_a_transfer_on_a_hub_that_is_gone_a_child_leaves_the_others_to_its_parent() -> None:
    run_alone(forked_beside_a_hub_that_is_gone, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


def forked_beside_a_copy_of_a_callers() -> None:
    """Fork while another greenlet is in `copy`, by methods of an object (for the test below)."""
    data = pattern(MORE_THAN_BUFFERS, 8)
    line, _ = line_with_client_in_thread(data)
    caller = gevent.spawn(gsplice.copy, Methods(line.source), line.sink)
    wait_until(lambda: waits_to_write(line.sink))
    assert gsplice.stats().active == 1

    def work() -> None:
        assert gsplice.stats() == (0, 0, 0, 0, 0, {})

    wait = in_child(work, fork_gevent)
    assert receive(line.backend, len(data)) == data
    assert caller.get(timeout=20) == len(data)
    wait()
    assert gsplice.stats().copied == len(data)
    close(*line)


def test_a_fork_beside_a_copy_that_its_caller_runs_counts_it_in_the_parent_alone() -> None:
    run_alone(forked_beside_a_copy_of_a_callers, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)


def forked_while_moderated() -> None:
    """Fork while a byte may wait for company (for the test below).

    HALF says whether it ticks twice as often.
    """
    period = PERIOD
    if os.environ["HALF"] == "1":
        period = PERIOD / 2
        _moderation._PLENTY = _moderation._PLENTY_NO_MORE = -1  # type: ignore[misc]
    line, due = Line(*connected(), *connected()), []
    original = Pump.on_due

    def on_due(self: Pump) -> None:
        due.append(os.getpid())
        original(self)

    Pump.on_due = on_due  # type: ignore[method-assign]
    transfer = gsplice.Transfer(line.source, line.sink, moderation=0.1).start()
    slow = Line(*connected(), *connected())
    slowly = gsplice.Transfer(slow.source, slow.sink, moderation=0.1).start()
    for _ in range(2 * PATIENCE):  # looked at, and left as it is
        slow.client.sendall(b"x")
        assert receive(slow.backend, 1) == b"x"
        gevent.sleep(0.001)
    stream = Stream(line)
    while not due or ticks_of(transfer) is None or ticks_of(transfer).period != period:
        stream.write()

    def work() -> None:
        gevent.sleep(0.2)  # twice the bound
        assert os.getpid() not in due
        assert line.source._read_event.callback is None, "the child may read it itself"

    child = gevent.spawn(in_child(work, fork_gevent))
    received = gevent.spawn(receive, line.backend)  # after the fork: the child would have it too
    while not child.ready():
        stream.write()
    child.get()
    due.clear()
    while not due:  # it goes on to tick
        stream.write()
    slowly.stop()
    stream.end(transfer, received)
    close(*line, *slow)


@pytest.mark.parametrize("half", ["0", "1"])
def test_the_timer_of_a_moderated_transfer_is_the_parents_alone(half: str) -> None:
    run_alone(forked_while_moderated, HALF=half, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)
