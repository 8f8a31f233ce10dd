"""A `ForwardServer` of which one end is reset: what was sent arrives, and then the other is too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from forks import in_child
from gevent import socket
from gevent.event import Event
from gevent.os import fork_gevent
from gevent.server import StreamServer
from peers import (
    MORE_THAN_BUFFERS,
    Spawn,
    error_of,
    exchange,
    fill,
    pattern,
    quietly,
    receive,
    receive_until_reset,
    reset,
    run_alone,
    send_and_end,
    small_buffers,
    wait_until,
    waits_to_write,
)
from races import before_method
from servers import LOOPBACK

from gsplice import _kernel, _reset
from gsplice.server import ForwardServer

#: More than a peer that reads nothing takes, and less than a send queue holds.
ANSWER = 500_000


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send *data*, and wait until the peer's kernel has all of it: a reset would throw it away."""
    sock.sendall(data)
    wait_until(lambda: _kernel.unacknowledged(sock.fileno()) == 0)


@pytest.fixture
def answers_and_resets(serve: Any) -> Callable[..., StreamServer]:
    """Start a backend that answers a byte with *answer*, and resets."""

    def start(answer: bytes) -> StreamServer:
        def handle(sock: socket.socket, _: Any) -> None:
            sock.recv(1)
            send_all(sock, answer)
            reset(sock)

        return serve(StreamServer(LOOPBACK, handle))

    return start


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reset, "PATIENCE", 0.1)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which a server has waited for its patience to be over."""
    monkeypatch.setattr(_reset, "PATIENCE", 60.0)
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 30


# It is passed on, behind what was sent.


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
@pytest.mark.parametrize("mode", ["auto", "splice", "copy"])
def test_what_a_backend_had_sent_reaches_the_client_and_then_its_reset(
    size: int, mode: str, forward: Any, answers_and_resets: Any, dial: Any, patient: None
) -> None:
    server = forward(answers_and_resets(pattern(size)).address, mode=mode)
    for _ in range(10):
        client = dial(server)
        client.sendall(b"?")
        assert receive_until_reset(client) == pattern(size)
    assert server.connections == 0


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
def test_what_a_client_had_sent_reaches_the_backend_and_then_its_reset(
    size: int, forward: Any, serve: Any, dial: Any, patient: None
) -> None:
    def take(sock: socket.socket, _: Any) -> None:
        exchange(sock)
        taken.append(receive_until_reset(sock))

    taken: list[bytes] = []
    server = forward(serve(StreamServer(LOOPBACK, take)).address)
    for _ in range(10):
        client = dial(server)
        exchange(client)
        send_all(client, pattern(size))
        reset(client)
    wait_until(lambda: taken == [pattern(size)] * 10)
    wait_until(lambda: server.connections == 0)


@pytest.fixture
def stalled(keep: Any) -> Callable[[ForwardServer], socket.socket]:
    """Make clients that have read nothing of an answer of which the end was reset."""

    def ask(server: ForwardServer) -> socket.socket:
        client = keep(socket.socket())
        client.settimeout(10)
        small_buffers(client)
        client.connect(server.address)
        client.sendall(b"?")
        wait_until(lambda: is_being_cut_short(server))
        return client

    return ask


def is_being_cut_short(server: ForwardServer) -> bool:
    """Whether connections wait for what was sent to arrive."""
    reset = [isinstance(each._forwarding, _reset.Reset) for each in server._connections]
    return bool(reset) and all(reset)


def test_a_client_that_is_slow_gets_all_before_the_reset_and_keeps_its_place_until_then(
    forward: Any, answers_and_resets: Any, stalled: Any, patient: None
) -> None:
    server = forward(answers_and_resets(pattern(ANSWER)).address)
    client = stalled(server)
    taken = bytearray()
    while len(taken) < ANSWER:
        assert server.connections == 1
        taken += receive(client, 20_000)
        gevent.sleep(0.005)  # slow is what is tested
    assert taken == pattern(ANSWER)
    assert receive_until_reset(client) == b""
    wait_until(lambda: server.connections == 0)


def test_a_client_that_takes_nothing_is_given_up_and_told(
    forward: Any,
    answers_and_resets: Any,
    stalled: Any,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = forward(answers_and_resets(pattern(ANSWER)).address)
    looks = before_method(monkeypatch, _reset.Reset, "_look", lambda: None)
    client = stalled(server)
    wait_until(lambda: server.connections == 0)
    assert len(looks) < 20, "each is twice as far away as the last one"
    received = receive_until_reset(client)
    assert pattern(ANSWER).startswith(received)


def test_a_client_that_leaves_before_it_has_got_all_is_waited_for_no_longer(
    forward: Any, answers_and_resets: Any, stalled: Any, patient: None
) -> None:
    server = forward(answers_and_resets(pattern(ANSWER)).address)
    reset(stalled(server))
    wait_until(lambda: server.connections == 0)


def test_stop_lets_what_was_sent_arrive(
    forward: Any, answers_and_resets: Any, stalled: Any, patient: None
) -> None:
    server = forward(answers_and_resets(pattern(ANSWER)).address)
    client = stalled(server)
    stopping = gevent.spawn(server.stop, 10)
    assert receive_until_reset(client) == pattern(ANSWER)
    stopping.get()
    assert server.connections == 0


def test_stop_does_not_let_it_arrive_once_its_time_is_over(
    forward: Any, answers_and_resets: Any, stalled: Any, patient: None
) -> None:
    server = forward(answers_and_resets(pattern(ANSWER)).address)
    client = stalled(server)
    server.stop(0)
    assert server.connections == 0
    assert pattern(ANSWER).startswith(receive_until_reset(client))


def test_a_socket_that_was_closed_meanwhile_is_waited_for_no_longer(
    forward: Any, answers_and_resets: Any, stalled: Any, patient: None
) -> None:
    server = forward(answers_and_resets(pattern(ANSWER)).address)
    stalled(server)
    (connection,) = server._connections
    connection._client.close()
    wait_until(lambda: server.connections == 0)


def forked_while_one_is_cut_short() -> None:
    """A child that ends its copy of the server at once (for the test below)."""

    def handle(sock: socket.socket, _: Any) -> None:
        sock.recv(1)
        send_all(sock, pattern(ANSWER))
        reset(sock)

    _reset.PATIENCE = 60.0
    backend = StreamServer(LOOPBACK, handle)
    backend.start()
    server = ForwardServer(LOOPBACK, backend.address)
    server.start()
    with socket.socket() as client:
        small_buffers(client)
        client.connect(server.address)
        client.sendall(b"?")
        wait_until(lambda: is_being_cut_short(server))

        def work() -> None:
            client.close()
            server.stop(0)
            assert server.connections == 0

        in_child(work, fork_gevent)()
        assert server.connections == 1
        assert receive_until_reset(client) == pattern(ANSWER)
    wait_until(lambda: server.connections == 0)
    server.stop(0)
    backend.stop(0)


def test_a_forked_child_that_stops_its_copy_leaves_it_to_its_parent_to_wait_and_reset() -> None:
    run_alone(forked_while_one_is_cut_short)


# Unix sockets.


@pytest.mark.parametrize("unread", [False, True], ids=["all was read", "something was left unread"])
def test_a_client_at_a_unix_socket_gets_what_was_sent_and_an_error_where_it_said_too_much(
    unread: bool, serve: Any, listen: Any, keep: Any, tmp_path: Path
) -> None:
    def handle(sock: socket.socket, _: Any) -> None:
        sock.recv(1)
        send_all(sock, pattern(50_000))
        over.wait()
        reset(sock)

    over = Event()
    server = serve(
        ForwardServer(
            listen(str(tmp_path / "front")), serve(StreamServer(LOOPBACK, handle)).address
        )
    )
    client = keep(socket.socket(socket.AF_UNIX))
    client.settimeout(10)
    client.connect(server.address)
    client.sendall(b"?")
    assert receive(client, 40_000) == pattern(50_000)[:40_000]
    if unread:
        (connection,) = server._connections
        # The backend takes no more, so what the client says now stays where it is.
        wait_until(lambda: fill(client) == 0 and waits_to_write(connection._backend))
    over.set()
    wait_until(lambda: server.connections == 0)
    if unread:
        assert receive_until_reset(client) == pattern(50_000)[40_000:]
    else:
        assert receive(client) == pattern(50_000)[40_000:]


# Ends that are no reset.


def test_an_orderly_end_resets_nobody(
    forward: Any, echo: StreamServer, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*_: Any) -> Any:
        raise AssertionError("it was not")

    monkeypatch.setattr(_reset, "cut_short", cut_short)
    server = forward(echo.address)
    client = dial(server)
    send_and_end(client, pattern(ANSWER))
    assert receive(client) == pattern(ANSWER)
    wait_until(lambda: server.connections == 0)


@pytest.mark.parametrize("end", ["idle", "stopped"])
def test_a_silent_session_ends_with_an_end_of_file_on_both_sides(
    end: str, forward: Any, serve: Any, dial: Any
) -> None:
    def take(sock: socket.socket, _: Any) -> None:
        exchange(sock)
        taken.append(receive(sock))

    taken: list[bytes] = []
    server = forward(
        serve(StreamServer(LOOPBACK, take)).address, idle_timeout=0.5 if end == "idle" else None
    )
    client = dial(server)
    exchange(client)
    if end == "stopped":
        server.stop(0)
    assert receive(client) == b""
    wait_until(lambda: taken == [b""])


@pytest.mark.parametrize("end", ["idle", "stopped"])
def test_a_client_for_which_bytes_were_still_here_is_told_that_they_are_missing(
    end: str, forward: Any, serve: Any, dial: Any, impatient: None
) -> None:
    def pour(sock: socket.socket, _: Any) -> None:
        sock.sendall(bytes(MORE_THAN_BUFFERS))

    server = forward(
        serve(StreamServer(LOOPBACK, quietly(pour))).address,
        idle_timeout=0.2 if end == "idle" else None,
    )
    client = dial(server)
    wait_until(lambda: any(waits_to_write(each._client) for each in server._connections))
    if end == "stopped":
        server.stop(0)
    wait_until(lambda: server.connections == 0)
    assert receive_until_reset(client)


def test_the_answer_of_a_backend_that_reads_no_further_is_whole(
    forward: Any, serve: Any, dial: Any, spawn: Spawn, patient: None
) -> None:
    """As of one that answers 413 to a large request."""

    def refuse(sock: socket.socket, _: Any) -> None:
        sock.recv(1)
        sock.sendall(b"too large")  # and leave the rest unread: closing resets

    server = forward(serve(StreamServer(LOOPBACK, refuse)).address)
    for _ in range(10):
        client = dial(server)
        sending = spawn(error_of, client.sendall, bytes(MORE_THAN_BUFFERS))
        assert receive(client, 9) == b"too large"
        assert isinstance(error_of(receive, client), (ConnectionError, type(None)))
        assert isinstance(sending.get(), ConnectionError)
    wait_until(lambda: server.connections == 0)


def test_what_is_no_socket_has_no_send_queue() -> None:
    with open(os.devnull, "rb") as file:
        assert _kernel.unacknowledged(file.fileno()) is None
