"""A fork leaves what is being forwarded to the parent, also in the middle of a step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from forks import in_child
from forwarded import Forwarded, there_and_back
from gevent import socket
from gevent.event import Event
from peers import connected, errors_of_hub, receive, run_alone, wait_until

import gsplice
from gsplice.server import ForwardServer


def reinit_in_child() -> None:
    """Have the child's event loop be its own; libev sees to that by itself."""
    if type(gevent.get_hub().loop).__module__.startswith("gevent.libuv"):
        gevent.reinit()  # without it parent and child poll the same fds, says libuv


def forked_beside_an_exchange() -> None:
    """Fork beside an exchange (for the test below)."""
    one = Forwarded(idle_timeout=60)
    there_and_back(one)

    def work() -> None:
        reinit_in_child()
        assert gsplice.stats().active == 0
        way = one.forwarding._up
        assert way is None
        one.client.sendall(b"for the parent")
        gevent.sleep(0.05)  # would be enough to take it
        assert one.told == []
        with errors_of_hub() as errors:
            one.forwarding.stop()
            one.line.source.close()
            one.line.sink.close()
            gevent.sleep(0)  # gevent tells who waits for them
        assert errors == []
        os.write(to_parent, b".")

    from_child, to_parent = os.pipe()
    wait = in_child(work, os.fork)
    assert os.read(from_child, 1) == b"."  # the hub stands still: the parent takes nothing itself
    os.close(from_child)
    os.close(to_parent)
    assert receive(one.backend, 14) == b"for the parent"
    wait()
    there_and_back(one)
    one.client.close()
    one.backend.close()
    assert one.error() is None
    one.close()


def test_a_forked_child_leaves_an_exchange_to_its_parent() -> None:
    run_alone(forked_beside_an_exchange)


def forked_within_a_step(fork_number: int) -> None:
    """Fork in the middle of a step, as the handler of a signal may (for the tests below).

    :param fork_number: 1 for the step of the first message, 2 for that of the end of file.
    """
    one = Forwarded()
    way = one.forwarding._up
    receive_into, children = way._receive, []

    def receive_and_fork(buffer: Any) -> int:
        count = receive_into(buffer)
        children.append(os.fork() if len(children) + 1 == fork_number else -1)
        return count

    way._receive = receive_and_fork
    one.client.sendall(b"once")
    way.on_readable()
    if fork_number == 2:
        one.client.shutdown(socket.SHUT_WR)
        way.on_readable()
    if children[-1] == 0:
        os._exit(0 if one.told == [] and one.forwarding._relay is None else 1)
    assert os.waitpid(children[-1], 0)[1] == 0
    assert receive(one.backend, 4) == b"once"
    if fork_number == 1:
        there_and_back(one)
    one.client.close()
    assert receive(one.backend) == b""
    one.backend.close()
    assert one.error() is None
    one.close()


def forked_within_the_step_of_a_message() -> None:
    forked_within_a_step(1)


def forked_within_the_step_of_an_end() -> None:
    forked_within_a_step(2)


@pytest.mark.parametrize(
    "fork", [forked_within_the_step_of_a_message, forked_within_the_step_of_an_end]
)
def test_a_fork_by_a_signal_handler_within_a_step_sends_nothing_twice(
    fork: Callable[[], None],
) -> None:
    run_alone(fork)


def served_by_the_parent(
    server: ForwardServer, meet: Callable[[], socket.socket], go_on: Any
) -> None:
    """Check that a client whose connection is being made is the parent's, whoever makes it first.

    :param meet: returns the backend of the connection.
    :param go_on: called in the child and then in the parent, so that the connection can be made.
    """
    server.start()
    from_child, to_parent = os.pipe()
    with socket.create_connection(server.address) as client:
        client.sendall(b"for the parent")
        wait_until(lambda: server.connections)
        gevent.sleep(0.03)  # so that it is under way

        def work() -> None:
            reinit_in_child()
            server.close()
            go_on()
            wait_until(lambda: not server.connections)
            assert gsplice.stats().active == 0
            os.write(to_parent, b".")

        wait = in_child(work, os.fork)
        assert os.read(from_child, 1) == b"."  # the hub stands still: the child is the first
        go_on()
        with meet() as backend:
            assert receive(backend, 14) == b"for the parent"
            backend.sendall(b"from the backend")
            assert receive(client, 16) == b"from the backend"
            wait()
    os.close(from_child)
    os.close(to_parent)
    wait_until(lambda: not server.connections)
    server.stop()


def forked_while_connecting() -> None:
    """Fork while a unix socket's backlog is full (for the test below)."""
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0gsplice-{os.getpid()}")
        listener.listen(0)
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        in_parent = os.getpid()

        def make_room() -> None:
            if os.getpid() != in_parent:
                listener.accept()[0].close()

        path = os.fsdecode(listener.getsockname())
        server = ForwardServer(("127.0.0.1", 0), path)
        served_by_the_parent(server, lambda: listener.accept()[0], make_room)
    for sock in waiting:
        sock.close()


def forked_while_asking() -> None:
    """Fork while a callable looks for the target (for the test below)."""
    found = Event()
    backends: list[socket.socket] = []

    def look(_: Any) -> socket.socket:
        found.wait()
        sink, backend = connected()
        backends.append(backend)
        return sink

    server = ForwardServer(("127.0.0.1", 0), look)
    served_by_the_parent(server, lambda: wait_until(lambda: backends)[0], found.set)


@pytest.mark.parametrize("fork", [forked_while_connecting, forked_while_asking])
def test_a_forked_child_leaves_a_client_that_is_being_connected_to_its_parent(
    fork: Callable[[], None],
) -> None:
    run_alone(fork)
