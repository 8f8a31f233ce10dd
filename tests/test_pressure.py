"""Very many relays, and none of the resources they want: nothing is lost, and nobody is dropped.

The first two are short forms of the runs in tests/pressure.py. What is counted is exact; what is
measured (RSS, CPU time) has room and more than one try, as other machines are busy with other
things.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import (
    assert_below,
    echoed,
    exchange,
    is_readable,
    pattern,
    receive,
    send_back,
    wait_until,
)
from pressure import RESERVED, Role, Run, Site, at_once, in_turn, relays_that_fit, report

from gsplice import _pipe

pytestmark = pytest.mark.timeout(180)

#: Thousands, of which one has to cost nothing more than those before it.
WAVES = 5
#: Of the forwarder's CPU time, what is far less than a loop that never waits would use.
IDLE_SHARE = 0.5


@pytest.fixture(autouse=True)
def _hub_deadline() -> None:
    """Here the hub of the test process does nothing for long; `Role.ask` has a deadline."""


def check_streams(run: Run) -> None:
    """Every byte was what and where it had to be, at both ends, and no error went unseen."""
    assert run.complaints == []
    assert "wrong" not in run.clients | run.backend
    assert run.clients["CLEAN"] == run.backend["CLEAN"]


def test_a_thousand_relays_at_once_leave_nothing_behind() -> None:
    run = at_once(relays_that_fit(1000), WAVES, every=0.2, until_flat=True)
    check_streams(run)
    assert run.clients["CLEAN"] == run.count * len(run.after)
    stalled = 50
    polled = run.count // 10  # at a time, at the most: those have an fd or two more (`_ticks`)
    for half in run.at_half:
        assert half.connections == run.count - run.count * 2 // 100
        assert half.fds <= run.before.fds + 2 * run.count + 2 * half.pipes + RESERVED + polled
        assert half.watchers <= run.before.watchers + 2 * run.count
        assert half.pipes <= stalled + _pipe._IDLE_PIPES
    assert not run.leftovers()
    for rest in run.after:
        assert rest.blocks < run.before.blocks + 5 * run.count
    assert run.is_flat(), f"each thousand costs more: {report(run)}"
    assert run.stats["active"] == 0


def test_thousands_of_connections_in_turn_leave_nothing_behind() -> None:
    run = in_turn(1000, waves=WAVES, every=0.2, until_flat=True)
    check_streams(run)
    assert sum(run.clients.values()) == run.stats["accepted"] == run.count * len(run.after)
    together = 64
    for sample in run.samples:
        # A client is on to its next connection while the forwarder ends the last one.
        assert sample.connections <= 4 * together
        assert sample.fds <= run.before.fds + 8 * together + 2 * sample.pipes + 2
        assert sample.pipes <= _pipe._IDLE_PIPES
    assert not run.leftovers()
    for rest in run.after:
        assert rest.blocks < run.before.blocks + 2 * run.count
    assert run.is_flat(), f"each thousand costs more: {report(run)}"
    assert run.stats["active"] == 0


# At the limits. The forwarder runs as a user that nothing else runs as, so a limit is its own.


def unprivileged() -> int | None:
    """Return a user to run as; None where that is so already."""
    return 60_000 + os.getpid() % 5_000 if os.geteuid() == 0 else None


def cpu_share(forwarder: Role, seconds: float = 0.2) -> float:
    """Return how much of a CPU the forwarder uses."""
    before, begun = forwarder.ask("figures")["cpu"], time.monotonic()
    gevent.sleep(seconds)
    used: float = forwarder.ask("figures")["cpu"] - before
    return used / (time.monotonic() - begun)


def test_past_the_pipe_quota_it_copies_and_says_so_and_splices_when_there_is_room() -> None:
    with contextlib.ExitStack() as stack:
        site = Site(stack, unprivileged())
        assert site.forwarder.ask("use_up_pipe_quota")["pipes"] >= 1
        crowd = (site.port, 0, site.service_port)
        assert site.clients.ask("until_half", *crowd, 0, 100, 10)["waiting"] == 100
        figures = site.forwarder.ask("figures")
        assert figures["fallbacks"].keys() == {"pipe quota"}
        assert (figures["spliced"], figures["pipes"], figures["active"]) == (0, 0, 200)
        # Ten of them wait for their clients.
        assert_below(IDLE_SHARE, lambda: cpu_share(site.forwarder))
        answers = [site.clients.ask("to_the_end")]
        assert site.forwarder.ask("figures")["spliced"] == 0
        site.forwarder.ask("free")
        for first in range(100, 5000, 50):
            if site.forwarder.ask("figures")["spliced"]:
                break
            site.clients.ask("until_half", *crowd, first, 50, 0)
            answers.append(site.clients.ask("to_the_end"))
        else:
            pytest.fail("it never splices again")
        run = Run("past the quota", 100, site.at_rest())
        run.finish(site, answers)
    check_streams(run)


@pytest.fixture
def echo() -> Iterator[StreamServer]:
    """Run a backend that sends back what it gets."""
    server = StreamServer(("127.0.0.1", 0), send_back)
    server.start()
    yield server
    server.stop(0)


@pytest.fixture
def forwarder(echo: StreamServer) -> Iterator[tuple[Role, int]]:
    """Run a forwarder in a process of its own; give it and its port."""
    user = unprivileged()
    with Role("forwarder", echo.server_port, *(() if user is None else (user,))) as role:
        yield role, int(role.wait_until_ready().split()[0])


@pytest.fixture
def dial(forwarder: tuple[Role, int]) -> Iterator[Any]:
    """Connect to the forwarder, which need not accept; all connections are closed at the end."""
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", forwarder[1]), timeout=30))
        return made[-1]

    yield connect
    for sock in made:
        sock.close()


def answered(waiting: list[socket.socket]) -> list[socket.socket]:
    return [client for client in waiting if is_readable(client)]


@pytest.mark.parametrize("left", range(5), ids=lambda left: f"{left}-fds-left")
def test_at_the_fd_limit_it_copies_drops_nobody_and_accepts_when_fds_come_back(
    left: int, forwarder: tuple[Role, int], dial: Any
) -> None:
    role, _ = forwarder
    connected = [dial() for _ in range(4)]
    for client in connected:
        exchange(client)
    role.ask("leave_fds", left)
    waiting = [dial() for _ in range(8)]
    for client in waiting:
        client.sendall(b"let me in")
    wait_until(lambda: "Too many open files" in role.last_complaint())
    # Until then an fd that is kept for a target may be free for a moment, and two make a pipe.
    wait_until(lambda: len(answered(waiting)) == (left + RESERVED) // 2)
    served = answered(waiting)
    for client in connected:
        stream = pattern(500_000, client.fileno())
        sending = gevent.spawn(client.sendall, stream)
        assert receive(client, len(stream)) == stream
        sending.get()
    figures = role.ask("figures")
    assert (figures["spliced"], figures["pipes"]) == (0, 0)
    assert figures["fallbacks"].keys() == {"EMFILE"}
    assert_below(IDLE_SHARE, lambda: cpu_share(role))
    assert answered(waiting) == served
    connected.pop().close()
    wait_until(lambda: len(answered(waiting)) > len(served))
    role.ask("allow_fds")
    for client in waiting:
        assert receive(client, 9) == b"let me in"
    for client in connected + waiting:
        exchange(client, b"to the end")


@pytest.mark.parametrize("left", [2, 3, 7], ids=lambda left: f"{left}-fds-left")
def test_at_the_fd_limit_all_of_a_crowd_are_served_in_turn(
    left: int, forwarder: tuple[Role, int], dial: Any
) -> None:
    role, _ = forwarder
    role.ask("leave_fds", left)
    clients = [dial() for _ in range(60)]

    def served(client: socket.socket, key: int) -> bool:
        return echoed(client, pattern(20_000, key)) == pattern(20_000, key)

    serving = [gevent.spawn(served, client, key) for key, client in enumerate(clients)]
    assert all(greenlet.get(timeout=60) for greenlet in serving)
    assert role.ask("figures")["accepted"] == len(clients)
