"""A `ForwardServer` without fds: nobody who is connected is dropped, and nobody waits for ever."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import (
    exchange,
    is_readable,
    open_fds,
    receive,
    wait_until,
)
from servers import LOOPBACK

import gsplice
from gsplice import _hub, _kernel
from gsplice.server import ForwardServer

# No fds.


def test_without_an_fd_a_client_waits_in_the_backlog_and_one_line_says_so(
    forward: Any, echo: StreamServer, keep: Any, no_fds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = forward(echo.address)
    for times in (1, 2):
        client = keep(socket.socket())
        client.settimeout(10)
        no_fds()
        client.connect(server.address)
        wait_until(lambda: server.delay > 2 * server.min_delay)  # it has tried again
        assert server.accepted == times - 1
        no_fds()
        exchange(client)
        (*_, line) = caplog.messages
        assert line == "clients wait in the backlog: there is no fd (Too many open files)"
        assert len(caplog.messages) == times


def test_without_an_fd_nothing_is_said_where_nobody_waits(
    forward: Any, echo: StreamServer, no_fds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = forward(echo.address)
    no_fds()
    assert server.do_read() is None
    assert not caplog.messages


def test_pipes_that_are_idle_make_room_for_a_client(
    forward: Any, echo: StreamServer, keep: Any, no_fds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = _hub.resources().pipes
    pipes = [pool.lend() for _ in range(4)]  # more fds than both ends and the backend take
    for pipe in pipes:
        pool.give_back(pipe)
    server = forward(echo.address)
    client = keep(socket.socket())
    client.settimeout(10)
    no_fds()
    client.connect(server.address)
    exchange(client)
    assert gsplice.stats().idle_pipes == 0
    assert not caplog.messages


def test_an_error_of_accept_that_is_not_about_fds_is_reported_as_ever(
    forward: Any, echo: StreamServer, dial: Any, hub_errors: list[Any]
) -> None:
    server = forward(echo.address)
    accept, errors = server._accept, [OSError(errno.ENOBUFS, "No buffer space available")]
    server._accept = lambda: raise_next(errors) or accept()
    exchange(dial(server))
    assert [error.errno for _, error in hub_errors] == [errno.ENOBUFS]
    hub_errors.clear()


def raise_next(errors: list[OSError]) -> None:
    """Raise what is left, in turn."""
    if errors:
        raise errors.pop(0)


@pytest.mark.parametrize("why", ["an fd is wanted", "it has been told to"])
def test_a_server_that_accepts_nobody_keeps_no_fd_for_the_next_client(
    why: str, forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address)
    before = len(open_fds())
    dial(server).close()
    wait_until(lambda: server.accepted and not server.connections)
    wait_until(lambda: len(open_fds()) == before + 1)
    if why == "an fd is wanted":
        with server.accepting_nobody():
            assert len(open_fds()) == before
    else:
        server.stop_accepting()
        assert len(open_fds()) == before


def test_a_client_for_whose_other_end_there_is_no_fd_waits_and_nobody_else_is_accepted(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    tries: list[Any] = []
    enough = False

    def target(address: Any) -> socket.socket:
        tries.append(address)
        if not enough:
            raise OSError(errno.EMFILE, "Too many open files")
        return socket.create_connection(echo.address)

    server = forward(target)
    first = dial(server)
    wait_until(lambda: len(tries) > 2)
    second = dial(server)
    second.sendall(b"me too")
    wait_until(lambda: len(tries) > 4)
    assert server.full()
    assert (server.accepted, is_readable(first)) == (1, False)
    enough = True
    exchange(first)
    assert receive(second, 6) == b"me too"
    assert not server.full()


def test_a_client_that_has_waited_for_an_fd_may_find_no_backend_all_the_same(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [OSError(errno.EMFILE, "Too many open files"), ConnectionError("none is healthy")]

    def target(_: Any) -> socket.socket:
        raise errors.pop(0)

    assert receive(dial(forward(target))) == b""
    assert "cannot connect to the target: none is healthy" in caplog.text


def test_a_name_that_could_not_be_looked_up_for_want_of_an_fd_is_looked_up_again(
    forward: Any, echo: StreamServer, dial: Any, no_fds: Any
) -> None:
    tries: list[Any] = []

    def target(address: Any) -> socket.socket:
        tries.append(address)
        no_fds()
        if len(tries) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return socket.create_connection(echo.address)

    exchange(dial(forward(target)))
    assert len(tries) == 2


def test_a_name_is_not_looked_up_again_before_there_are_fds_to_do_it_with(
    serve: Any, echo: StreamServer, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each time that it is, gevent's thread pool would print a traceback."""
    tries: list[Any] = []
    asked: list[int] = []
    fds = 1

    class Counts(ForwardServer):
        def connect(self, address: Any) -> socket.socket:
            tries.append(address)
            if len(tries) == 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().connect(address)

    def has_fds(count: int) -> bool:
        asked.append(count)
        return count <= fds

    monkeypatch.setattr(_kernel, "has_fds", has_fds)
    client = dial(serve(Counts(LOOPBACK, ("localhost", echo.server_port))))
    wait_until(lambda: len(asked) > 3)
    assert len(tries) == 1
    fds = 2
    exchange(client)
    assert len(tries) == 2


def test_a_look_up_that_failed_while_others_were_short_of_fds_is_tried_again(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    tries: list[Any] = []

    def target(address: Any) -> socket.socket:
        tries.append(address)
        if len(tries) == 1:  # and its fds have come back by the time that it is asked why
            server._said_no_fd = True
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.create_connection(echo.address)

    server = forward(target)
    exchange(dial(server))
    assert len(tries) == 2


def test_a_name_that_does_not_exist_is_a_backend_that_is_not_there(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def target(_: Any) -> socket.socket:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert receive(dial(forward(target))) == b""
    assert "Name or service not known" in caplog.text
