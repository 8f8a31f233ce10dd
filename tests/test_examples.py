"""Every example runs as a process of its own, with real peers: what it promises is what it does.

Here is what all of them have in common, and what the smaller ones do; those that speak HTTP are in
`test_web_examples`, and two others have modules that are named after them.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from example_programs import (
    EXAMPLES,
    PAYLOAD,
    accept,
    assert_holds_no_more_files_after,
    connect,
    example,
    is_cut_off,
    listening,
    port_of,
    receive,
    refusing,
    reset,
    send,
)
from programs import ENVIRONMENT, PATIENCE, run

NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))


# What all of them have in common.

ARGUMENTS = {
    "download.py": ["no-port", "file"],
    "echo_server.py": ["no-port"],
    "gunicorn_forwarder.py": ["127.0.0.1:0", "no-port"],
    "http_proxy.py": ["no-port"],
    "port_forwarder.py": ["127.0.0.1:0", "no-port"],
    "sni_router.py": ["127.0.0.1:0", "name=no-port"],
    "socks5_proxy.py": ["no-port"],
    "wsgi_reverse_proxy.py": ["no-port", "127.0.0.1:80"],
}


def test_each_example_is_listed_here():
    assert sorted(ARGUMENTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_example_has_fewer_than_80_lines(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize("name", NAMES)
def test_example_help_shows_how_to_run_it(name):
    assert f"python examples/{name} " in run(sys.executable, EXAMPLES / name, "--help")


@pytest.mark.parametrize("name", NAMES)
def test_example_refuses_a_bad_address_in_one_line(name):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *ARGUMENTS[name]],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "no-port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# echo_server.py


def test_echo_server_answers_each_message_while_the_connection_stays_open():
    with example("echo_server.py", "127.0.0.1:0") as (_, port), connect(port) as client:
        for message in (b"a", b"bc" * 100, b"d" * 40_000):
            client.sendall(message)
            assert receive(client, len(message)) == message


def test_echo_server_sends_a_stream_back_exactly_and_then_the_end_of_file(beside):
    with example("echo_server.py", "127.0.0.1:0") as (program, port), connect(port) as client:
        sending = beside.submit(send, client, PAYLOAD, end=True)
        assert receive(client) == PAYLOAD
        sending.result()
        program.expect("5,000,003 bytes")


def test_echo_server_outlives_a_client_that_resets_and_keeps_no_file_open():
    with example("echo_server.py", "127.0.0.1:0") as (program, port):

        def visit_and_reset():
            client = connect(port)
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            reset(client)

        assert_holds_no_more_files_after(program, visit_and_reset)
        program.expect("reset by peer")


# gunicorn_forwarder.py


def test_gunicorn_forwarder_carries_both_directions_exactly_in_a_worker(beside):
    up, down = PAYLOAD, PAYLOAD[::-1]
    with listening() as listener:
        arguments = "127.0.0.1:0", f"127.0.0.1:{port_of(listener)}", "--workers", "1"
        with (
            example("gunicorn_forwarder.py", *arguments, end=signal.SIGQUIT) as (_, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            beside.submit(send, client, up, end=True)
            beside.submit(send, backend, down, end=True)
            arriving = beside.submit(receive, backend)
            assert receive(client) == down
            assert arriving.result() == up


# port_forwarder.py


def test_port_forwarder_carries_both_directions_at_once_exactly(beside):
    up, down = PAYLOAD, PAYLOAD[::-1]
    with listening() as listener:
        target = f"127.0.0.1:{port_of(listener)}"
        with (
            example("port_forwarder.py", "127.0.0.1:0", target) as (program, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            beside.submit(send, client, up, end=True)
            beside.submit(send, backend, down, end=True)
            arriving = beside.submit(receive, backend)
            assert receive(client) == down
            assert arriving.result() == up
            program.expect("5,000,003 bytes up, 5,000,003 down")


def test_port_forwarder_lets_the_answer_come_after_the_request_has_ended():
    with listening() as listener:
        target = f"127.0.0.1:{port_of(listener)}"
        with (
            example("port_forwarder.py", "127.0.0.1:0", target) as (_, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            send(client, b"question", end=True)
            assert receive(backend) == b"question"
            send(backend, b"answer", end=True)
            assert receive(client) == b"answer"


def test_port_forwarder_cuts_off_the_client_of_a_backend_that_refuses_and_serves_the_next():
    with refusing() as backend:
        target = f"127.0.0.1:{port_of(backend)}"
        with example("port_forwarder.py", "127.0.0.1:0", target) as (program, port):
            with connect(port) as client:
                assert is_cut_off(client)
            program.expect("refused")
            backend.listen()
            with connect(port) as client, accept(backend) as peer:
                client.sendall(b"now")
                assert receive(peer, 3) == b"now"


@pytest.mark.parametrize("who", ["client", "backend"])
def test_port_forwarder_cuts_off_the_other_side_of_a_reset_and_keeps_no_file_open(who):
    with listening() as listener:
        target = f"127.0.0.1:{port_of(listener)}"
        with example("port_forwarder.py", "127.0.0.1:0", target) as (program, port):

            def visit_and_reset():
                with connect(port) as client, accept(listener) as backend:
                    client.sendall(b"hello")
                    assert receive(backend, 5) == b"hello"
                    first, second = (client, backend) if who == "client" else (backend, client)
                    reset(first)
                    assert is_cut_off(second)

            assert_holds_no_more_files_after(program, visit_and_reset)


def test_port_forwarder_ends_an_idle_connection_on_both_sides():
    with listening() as listener:
        arguments = "127.0.0.1:0", f"127.0.0.1:{port_of(listener)}", "--idle-timeout", "0.1"
        with (
            example("port_forwarder.py", *arguments) as (program, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            assert is_cut_off(client)
            assert is_cut_off(backend)
            program.expect("timed out")
