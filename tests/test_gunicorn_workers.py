"""`gsplice.gunicorn`: real arbiters and real workers, and connections that outlive what is done."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl as standard_ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from arbiters import (
    HALF,
    OWN_HEARTBEAT,
    SHORT_HEARTBEAT,
    Gunicorn,
    begin_in_each_worker,
    open_files,
    runs,
)
from gevent import socket, ssl
from gevent.server import StreamServer
from gunicorn.config import Config
from peers import Spawn, echoed, exchange, is_readable, pattern, receive, send_back, wait_until
from programs import LOOPBACK, PATIENCE, free_port

from gsplice.gunicorn import ServerWorker
from gsplice.server import ForwardServer

WORKERS = ("StreamWorker", "ServerWorker")


@pytest.fixture
def backend() -> Iterator[int]:
    """Run an echo server; this is its port."""

    def serve(sock: socket.socket, address: Any) -> None:
        with contextlib.suppress(OSError):  # workers are killed here
            send_back(sock, address)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    yield server.server_port
    server.stop(0)


@pytest.fixture
def gunicorn(tmp_path: Path, backend: int) -> Iterator[Callable[..., Gunicorn]]:
    """Start gunicorns with two workers; all have ended when the test has."""
    defaults = {
        "StreamWorker": "handle",
        "ServerWorker": f"forwarder({backend})",
    }
    with contextlib.ExitStack() as started:

        def start(
            worker: str, *options: str, application: str = "", heartbeat: float = SHORT_HEARTBEAT
        ) -> Gunicorn:
            if "-b" not in options:
                options = ("-b", LOOPBACK, *options)
            command = (worker, application or defaults[worker], "-w", "2", *options)
            program = Gunicorn(tmp_path / worker, *command, heartbeat=heartbeat)
            started.enter_context(program)
            program.wait_until_ready(1 if options[-2:] == ("-w", "1") else 2)
            if program.address is None:  # with --reuse-port the workers know it alone
                host, _, port = options[options.index("-b") + 1].partition(":")
                program.address = (host, int(port))
            return program

        yield start


@pytest.fixture(params=WORKERS)
def worker(request: pytest.FixtureRequest) -> str:
    """Name each of the classes in turn."""
    return str(request.param)


# They serve.


def test_each_worker_serves_exactly(worker: str, gunicorn: Any) -> None:
    program = gunicorn(worker)
    clients = [program.dial_worker(pid) for pid in program.workers()]
    assert len(clients) == 2
    echoes = [
        gevent.spawn(echoed, client, pattern(HALF, key)) for key, client in enumerate(clients)
    ]
    assert [echo.get() for echo in echoes] == [pattern(HALF, 0), pattern(HALF, 1)]


def test_an_application_that_was_loaded_before_the_fork_is_served(
    worker: str, gunicorn: Any
) -> None:
    program = gunicorn(worker, "--preload")
    for pid in program.workers():
        assert echoed(program.dial_worker(pid), pattern(HALF)) == pattern(HALF)


def test_a_unix_socket_is_served_and_removed_at_the_end(
    worker: str, gunicorn: Any, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    program = gunicorn(worker, "-b", f"unix:{path}")
    for pid in program.workers():
        assert echoed(program.dial_worker(pid), pattern(HALF)) == pattern(HALF)
    program.process.terminate()
    assert program.ended() == 0
    assert not path.exists()


def test_with_reuse_port_each_worker_listens_for_itself(worker: str, gunicorn: Any) -> None:
    program = gunicorn(worker, "-b", f"127.0.0.1:{free_port()}", "--reuse-port")
    wait_until(lambda: all(program.accepts(pid) for pid in program.workers()))
    assert len(program.listeners()) == 2
    served_by = set()
    while len(served_by) < 2:  # the kernel decides, by the client's port
        sock, pid = program.dial()
        exchange(sock)
        served_by.add(pid)
    assert served_by == program.workers()


def test_a_handler_gets_a_tls_socket_where_there_is_a_certificate(
    gunicorn: Any, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "certificate"
    )
    program = gunicorn("StreamWorker", "--certfile", str(tmp_path / "certificate"))
    context = ssl.SSLContext(standard_ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with (
        socket.create_connection(program.address, PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        assert int(receive(client, 8)) in program.workers()
        exchange(client, pattern(100_000))


def test_connections_leave_no_file_open(worker: str, gunicorn: Any) -> None:
    program = gunicorn(worker)
    (pid, *_) = program.workers()

    def visit() -> None:
        sock = program.dial_worker(pid)
        assert echoed(sock, pattern(300_000)) == pattern(300_000)
        sock.close()

    def held() -> int:  # but for pipes, some of which are kept for the next
        return sum(not name.startswith("pipe:") for name in open_files(pid))

    visit()
    before = held()
    for _ in range(5):
        visit()
    wait_until(lambda: held() <= before)


def test_a_worker_whose_connections_never_pause_gives_signs_of_life(
    gunicorn: Any, spawn: Spawn
) -> None:
    piece = pattern(65536)

    def send(sock: socket.socket) -> None:
        while True:
            sock.sendall(piece)

    def take(sock: socket.socket) -> None:
        while receive(sock, 65536) == piece:
            pass

    options = ("--timeout", "2")
    programs = [gunicorn(name, *options, heartbeat=OWN_HEARTBEAT) for name in WORKERS]
    before = [program.workers() for program in programs]
    taking = []
    for sock in [program.dial()[0] for program in programs]:
        spawn(send, sock)
        taking.append(spawn(take, sock))
    # The arbiter looks once a second for workers to kill, whose time is over.
    ended = gevent.joinall(taking, timeout=4, count=1)
    assert not ended, "the stream has ended, or is not what was sent"
    assert [program.workers() for program in programs] == before


# How many.


def test_one_more_than_worker_connections_waits_until_another_leaves(
    worker: str, gunicorn: Any
) -> None:
    program = gunicorn(worker, "--worker-connections", "1", "-w", "1")
    first, _ = program.dial()
    exchange(first)
    with socket.create_connection(program.address) as second:
        exchange(first)
        assert not is_readable(second)
        first.close()
        second.settimeout(PATIENCE)
        receive(second, 8)
        exchange(second)


@pytest.mark.parametrize("application", ["forwarder({}, max_connections=2)", "echo(spawn=2)"])
def test_a_server_with_a_limit_of_its_own_keeps_it(
    application: str, gunicorn: Any, backend: int
) -> None:
    application = application.format(backend)
    options = ("--worker-connections", "1", "-w", "1")
    program = gunicorn("ServerWorker", *options, application=application)
    for _ in range(2):
        exchange(program.dial()[0])
    with socket.create_connection(program.address) as third:
        exchange(program._dialled[0])
        assert not is_readable(third)


def test_a_worker_is_replaced_after_max_requests_connections(worker: str, gunicorn: Any) -> None:
    program = gunicorn(worker, "--max-requests", "3", "-w", "1")
    (old,) = program.workers()
    clients = [program.dial() for _ in range(3)]
    assert {pid for _, pid in clients} == {old}
    program.expect("Autorestarting worker after 3 connections")
    for client, _ in clients:  # they are served to their end
        assert echoed(client, pattern(100_000)) == pattern(100_000)
    wait_until(lambda: not runs(old))
    wait_until(program.workers)
    assert program.dial()[1] != old


# A worker dies.


def test_a_worker_that_is_killed_is_replaced_while_the_connections_of_the_other_go_on(
    worker: str, gunicorn: Any, spawn: Spawn
) -> None:
    program = gunicorn(worker)
    killed, survivor = sorted(program.workers())
    transfers = begin_in_each_worker(program, spawn)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(program.workers() - {killed}) == 2)
    (new,) = program.workers() - {killed, survivor}
    exchange(program.dial_worker(new))
    transfers[survivor]()


# It is reloaded.


@pytest.mark.parametrize("reuse_port", [False, True])
def test_who_waits_at_the_end_of_a_worker_is_left_to_the_others_where_they_share_the_socket(
    reuse_port: bool,
) -> None:
    worker = ServerWorker.__new__(ServerWorker)  # without an arbiter
    worker.cfg, worker.worker_connections = Config(), 1000
    worker.cfg.set("reuse_port", reuse_port)
    server = ForwardServer(("127.0.0.1", 0), "/nowhere")
    worker._limit(server)
    assert server.shares_listener is not reuse_port


def test_a_reload_loses_no_byte_of_what_is_under_way_and_refuses_nobody(
    worker: str, gunicorn: Any, spawn: Spawn
) -> None:
    program = gunicorn(worker, "--graceful-timeout", "60")
    transfers = begin_in_each_worker(program, spawn)
    program.process.send_signal(signal.SIGHUP)
    served_by: set[int] = set()
    while not served_by - set(transfers) or any(program.accepts(pid) for pid in transfers):
        sock, pid = program.dial()  # one after the other, while the workers change
        served_by.add(pid)
        exchange(sock)
        sock.close()
    assert all(map(runs, transfers))
    for finish_one in transfers.values():
        finish_one()
    program.wait_until_booted(2)
    wait_until(lambda: len(program.workers()) == 2)
    assert not set(transfers) & program.workers()


def test_what_has_not_finished_within_the_graceful_timeout_is_ended(
    worker: str, gunicorn: Any
) -> None:
    program = gunicorn(worker, "--graceful-timeout", "1", "-w", "1")
    sock, old = program.dial()
    exchange(sock)
    program.process.send_signal(signal.SIGHUP)
    assert receive(sock) == b""
    program.expect(rf"Worker graceful timeout \(pid:{old}\)")
    wait_until(lambda: not runs(old))
    assert program.dial()[1] != old


def test_a_new_arbiter_takes_over_while_the_connections_of_the_old_one_finish(
    worker: str, gunicorn: Any, spawn: Spawn
) -> None:
    program = gunicorn(worker, "--graceful-timeout", "60")
    transfers = begin_in_each_worker(program, spawn)
    program.process.send_signal(signal.SIGUSR2)
    new_arbiter = int(program.expect(r"Listening at: .* \((\d+)\)$")[1])
    program.process.send_signal(signal.SIGTERM)
    for finish_one in transfers.values():
        finish_one()
    try:
        wait_until(lambda: program.process.poll() == 0, PATIENCE)
        sock, pid = program.dial()
        assert pid not in transfers
        exchange(sock)
        program.wait_until_booted(2)
    finally:
        os.kill(new_arbiter, signal.SIGQUIT)
        wait_until(lambda: not runs(new_arbiter), PATIENCE)


# It ends.


def test_told_to_end_it_finishes_what_is_under_way(
    worker: str, gunicorn: Any, spawn: Spawn
) -> None:
    program = gunicorn(worker, "--graceful-timeout", "60")
    transfers = begin_in_each_worker(program, spawn)
    program.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not any(program.accepts(pid) for pid in transfers))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(program.address)
    for finish_one in transfers.values():
        finish_one()
    assert program.ended() == 0
    assert "Traceback" not in program.output


def test_a_class_of_servers_finishes_what_is_under_way_too(gunicorn: Any, spawn: Spawn) -> None:
    program = gunicorn("ServerWorker", "--graceful-timeout", "60", application="Echo")
    transfers = begin_in_each_worker(program, spawn)
    program.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not any(program.accepts(pid) for pid in transfers))
    for finish_one in transfers.values():
        finish_one()
    assert program.ended() == 0


def test_told_to_quit_it_ends_at_once(worker: str, gunicorn: Any) -> None:
    program = gunicorn(worker, "--graceful-timeout", "60")
    sock, _ = program.dial()
    exchange(sock)
    program.process.send_signal(signal.SIGQUIT)
    assert receive(sock) == b""
    assert program.ended() == 0


# What cannot be.


def failure(directory: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit status and the output of a gunicorn that does not start."""
    with Gunicorn(directory, *arguments, "-b", LOOPBACK) as program:
        return program.ended(), program.output


def test_an_application_that_makes_no_server_ends_the_arbiter(tmp_path: Path) -> None:
    status, output = failure(tmp_path, "ServerWorker", "no_server")
    assert status == 3
    assert "the application must return a gevent server for a listening socket, not (" in output
    assert "is for gsplice.gunicorn.StreamWorker" in output


def test_a_server_of_ones_own_is_not_given_a_certificate(tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "certificate"
    )
    options = ("--certfile", str(tmp_path / "certificate"))
    status, output = failure(tmp_path, "ServerWorker", "no_server", *options)
    assert status == 1
    assert "Error: gsplice.gunicorn.ServerWorker leaves TLS to the server" in output
