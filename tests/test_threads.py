"""Threads, each with a hub of its own: no byte crosses, nor where one of them forks.

Each scenario runs in an interpreter of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import gevent
from forks import (
    THREADS_ARE_NO_NEWS,
    Parent,
    gsplices_pipes,
    in_child,
    move_own_bytes,
    pipes_of,
)
from gevent import get_hub
from gevent.os import fork_gevent
from peers import run_alone

import gsplice

THREADS = 4
ROUNDS = 8


class HubThread(threading.Thread):
    """A native thread that does *work* with a hub of its own."""

    def __init__(self, work: Callable[[int], None], number: int) -> None:
        super().__init__()
        self._work = work
        self._number = number
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work(self._number)
        except BaseException as error:
            self._failure = error
        finally:
            get_hub().destroy(destroy_loop=True)

    def finish(self) -> None:
        """Wait for the end, which has to be a success."""
        self.join()
        if self._failure is not None:
            raise self._failure


def in_threads(work: Callable[[int], None]) -> list[HubThread]:
    # Each hub asks libuv for the default loop, and libuv makes that at the first call without a
    # lock: two threads' first hubs at once share a loop, or crash, without gsplice as well.
    get_hub()
    return [HubThread(work, number) for number in range(THREADS)]


def hubs_in_threads() -> None:
    """Transfers in several threads at once, and in the first one as well (for a test below)."""

    def work(number: int) -> None:
        for turn in range(ROUNDS):
            keys = range(1000 * number + 10 * turn, 1000 * number + 10 * turn + 3)
            modes = ("splice", "auto", "copy")
            moving = [gevent.spawn(move_own_bytes, *each) for each in zip(keys, modes, strict=True)]
            gevent.joinall(moving, raise_error=True)

    threads = in_threads(work)
    work(THREADS)
    for thread in threads:
        thread.finish()
    now = gsplice.stats()
    assert now.spliced + now.copied == (THREADS + 1) * ROUNDS * 3 * 700_000
    assert now.spliced >= (THREADS + 1) * ROUNDS * 700_000
    assert now.active == 0


def test_a_hub_in_each_of_several_threads() -> None:
    run_alone(hubs_in_threads)


def forked_beside_threads() -> None:
    """Fork while other threads' transfers have stalled (for a test below)."""
    stalled, forked = threading.Barrier(THREADS + 1), threading.Event()

    def work(_: int) -> None:
        parent = Parent("pipe-full")
        stalled.wait()
        forked.wait()
        parent.go_on()

    threads = in_threads(work)
    stalled.wait()
    ours = gsplices_pipes()
    assert len(ours) == THREADS

    def child() -> None:
        assert not ours & pipes_of("self"), "a pipe of another thread's is open"
        assert gsplice.stats() == (0, 0, 0, 0, 0, {})
        move_own_bytes(6)

    wait = in_child(child, fork_gevent)
    forked.set()
    for thread in threads:
        thread.finish()
    wait()


def test_a_fork_while_transfers_of_other_threads_have_stalled() -> None:
    run_alone(forked_beside_threads, PYTHONWARNINGS=THREADS_ARE_NO_NEWS)
