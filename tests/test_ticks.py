"""What calls a direction that nobody wakes: each period, and at the end of its source."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from faults import Fault, failing, injected
from gevent import socket
from peers import Pairs, reset, wait_until

from gsplice import _gevent, _kernel
from gsplice._ticks import Ticks

ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV, errno.EINVAL, errno.EPERM)
#: Seconds: nothing waits for a tick of these.
HOUR = 3600.0


@pytest.fixture
def ends(pairs: Pairs) -> tuple[socket.socket, socket.socket]:
    """A peer, and the socket that is polled."""
    return pairs("tcp")


@pytest.fixture
def ticking(ends: tuple[socket.socket, socket.socket]) -> Iterator[Callable[[float], Ticks]]:
    made: list[Ticks] = []

    def ticking(period: float) -> Ticks:
        made.append(Ticks(ends[1].fileno(), period))
        return made[-1]

    yield ticking
    for ticks in made:
        ticks.close()


class Full:
    """Stands for an epoll at the limit of what may be watched."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll

    def register(self, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._epoll.close()


class Calls:
    """Takes each tick, and counts them."""

    def __init__(self, ticks: Ticks) -> None:
        self.count = 0
        self._ticks = ticks
        ticks.start(self.called)

    def called(self) -> None:
        self.count += 1
        self._ticks.take()


def test_it_calls_each_period(ticking: Callable[[float], Ticks]) -> None:
    calls = Calls(ticking(0.001))
    assert_it_takes(0.001, calls)


def test_it_calls_each_half_of_a_period_and_each_whole_one_again(
    ticking: Callable[[float], Ticks],
) -> None:
    ticks = ticking(0.002)
    calls = Calls(ticks)
    ticks.set_halved(True)
    assert ticks.period == 0.001
    assert_it_takes(0.001, calls)
    ticks.set_halved(False)
    assert ticks.period == 0.002
    assert_it_takes(0.002, calls)


def test_half_an_hour_is_half_of_one(ticking: Callable[[float], Ticks]) -> None:
    ticks = ticking(HOUR)
    calls = Calls(ticks)
    ticks.set_halved(True)
    let_loop_pass_often()
    assert (calls.count, ticks.period) == (0, HOUR / 2)


def test_a_half_that_was_due_is_none_any_more_when_periods_are_whole_again(
    ticking: Callable[[float], Ticks],
) -> None:
    ticks = ticking(HOUR)
    ticks.set_halved(True)
    _kernel.start_timer(ticks._timerfd, 0.000_001)
    assert select.select([ticks._timerfd], [], [], 10)[0]
    ticks.set_halved(False)
    calls = Calls(ticks)
    let_loop_pass_often()
    assert calls.count == 0


def test_a_half_that_is_not_taken_comes_again_at_once(ticking: Callable[[float], Ticks]) -> None:
    """So whoever is not able to take it has not lost it."""
    ticks = ticking(HOUR)
    calls: list[None] = []
    ticks.start(lambda: calls.append(None))
    ticks.set_halved(True)
    _kernel.start_timer(ticks._timerfd, 0.01)
    wait_until(lambda: calls)
    before = len(calls)
    began = time.monotonic()
    wait_until(lambda: len(calls) >= before + 100)
    assert time.monotonic() - began < 100 * 0.01


def test_it_does_not_call_for_bytes_but_for_the_end_at_once(
    ends: tuple[socket.socket, socket.socket], ticking: Callable[[float], Ticks]
) -> None:
    peer, _ = ends
    calls = Calls(ticking(HOUR))
    peer.sendall(b"x")
    let_loop_pass_often()
    assert calls.count == 0
    peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: calls.count > 0)


@pytest.mark.parametrize("is_half", [False, True])
def test_it_calls_for_a_reset_at_once(
    ends: tuple[socket.socket, socket.socket], ticking: Callable[[float], Ticks], is_half: bool
) -> None:
    ticks = ticking(HOUR)
    calls = Calls(ticks)
    ticks.set_halved(is_half)
    reset(ends[0])
    wait_until(lambda: calls.count > 0)


@pytest.mark.parametrize("is_half", [False, True])
def test_paused_it_calls_nobody_and_begins_again(
    ticking: Callable[[float], Ticks], is_half: bool
) -> None:
    ticks = ticking(0.001)
    calls = Calls(ticks)
    ticks.set_halved(is_half)
    wait_until(lambda: calls.count > 0)
    ticks.pause()
    before = calls.count
    gevent.sleep(0.01)  # ten of them, which do not come
    assert calls.count == before
    ticks.start(calls.called)
    wait_until(lambda: calls.count > before)


def test_paused_it_is_halved_and_calls_nobody(ticking: Callable[[float], Ticks]) -> None:
    ticks = ticking(0.001)
    calls = Calls(ticks)
    ticks.pause()
    before = calls.count
    for is_half in (True, False):
        ticks.set_halved(is_half)
        gevent.sleep(0.01)
        assert calls.count == before


def test_a_socket_that_is_closed_has_none_and_no_fd_is_left(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].close()
    with pytest.raises(ValueError, match="negative"):
        Ticks(ends[1].fileno(), 0.001)


def test_at_the_limit_of_fds_there_are_no_ticks(
    ends: tuple[socket.socket, socket.socket], no_fd_left: Callable[[], None]
) -> None:
    no_fd_left()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at
        Ticks(ends[1].fileno(), 0.001)
    assert caught.value.errno == errno.EMFILE


def test_at_the_limit_of_fds_periods_stay_whole(
    ticking: Callable[[float], Ticks], no_fd_left: Callable[[], None]
) -> None:
    assert_stays_whole(ticking(0.001), no_fd_left)


@pytest.mark.parametrize("call", ["timerfd_create", "timerfd_settime"])
def test_where_a_call_fails_periods_stay_whole(
    ticking: Callable[[float], Ticks], call: str
) -> None:
    for number in ERRNOS:
        fault = Fault(call, failing(number))
        with injected(fault):
            assert_stays_whole(ticking(0.001))
        assert fault.reached


def test_where_the_timer_cannot_be_watched_periods_stay_whole(
    ticking: Callable[[float], Ticks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the limit of ``fs.epoll.max_user_watches`` (epoll_ctl(2): ENOSPC)."""
    ticks = ticking(0.001)
    monkeypatch.setattr(ticks, "_epoll", Full(ticks._epoll))
    assert_stays_whole(ticks)


@pytest.mark.parametrize("what", ["library", "function"])
def test_without_the_c_library_periods_stay_whole(
    ticking: Callable[[float], Ticks], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(_kernel, "_libc", None if what == "library" else SimpleNamespace())
    assert_stays_whole(ticking(0.001))


def test_what_the_kernel_refuses_is_an_error_of_the_os() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        _kernel.start_timer(-1, 0.001)


def test_once_halved_they_stay_so_where_the_kernel_fails(ticking: Callable[[float], Ticks]) -> None:
    ticks = ticking(0.002)
    calls = Calls(ticks)
    ticks.set_halved(True)
    with injected(Fault("timerfd_settime", failing(errno.ENOMEM))):
        ticks.set_halved(False)
    assert ticks.period == 0.001
    assert_it_takes(0.001, calls)


def assert_stays_whole(ticks: Ticks, refuse: Callable[[], None] = lambda: None) -> None:
    calls = Calls(ticks)
    period = ticks.period
    refuse()
    ticks.set_halved(True)
    assert ticks.period == period
    before = calls.count
    wait_until(lambda: calls.count > before)


def let_loop_pass_often() -> None:
    for _ in range(10):
        _gevent.let_loop_pass()


def assert_it_takes(seconds: float, calls: Calls) -> None:
    """Check that *calls* do not come more often than each *seconds*.

    The loop counts from when it last woke, which may be a while ago: hence the tenth.
    """
    _gevent.let_loop_pass()
    began, before = time.monotonic(), calls.count
    wait_until(lambda: calls.count - before >= 50)
    assert time.monotonic() - began > 0.9 * 50 * seconds
