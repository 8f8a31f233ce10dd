"""``python -m gsplice forward`` as a process: what it carries, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forwarder import Forwarder, dial, refuses
from gevent.server import StreamServer
from peers import (
    echoed,
    exchange,
    is_readable,
    pattern,
    receive,
    send_back,
    wait_until,
)
from programs import ENVIRONMENT, LOOPBACK, PATIENCE, free_port, needs_ipv6


@pytest.fixture
def forward() -> Iterator[Callable[..., Forwarder]]:
    """Start forwarders; all have ended when the test has."""
    started: list[Forwarder] = []

    def start(*arguments: str) -> Forwarder:
        forwarder = Forwarder(*arguments)
        started.append(forwarder)
        forwarder.wait_until_ready()
        return forwarder

    yield start
    for forwarder in started:
        forwarder.__exit__(None, None, None)


# It forwards.


@pytest.mark.parametrize("mode", ["auto", "splice", "copy"])
def test_forwards_tcp_to_tcp(mode: str, forward: Any, backend: str) -> None:
    client = forward(LOOPBACK, backend, "--mode", mode).dial()
    assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)


def test_forwards_unix_to_tcp_and_tcp_to_unix(forward: Any, backend: str, tmp_path: Path) -> None:
    middle = f"unix:{tmp_path}/middle"
    assert forward(middle, backend).address == middle
    client = forward(LOOPBACK, middle).dial()
    assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)


@needs_ipv6
def test_forwards_to_and_from_ipv6(forward: Any, backend: str) -> None:
    middle = forward("[::1]:0", backend).address
    assert middle.startswith("[::1]:")
    client = forward("[::1]:0", middle).dial()
    assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)


def test_an_empty_host_listens_on_every_address(forward: Any, backend: str) -> None:
    port = forward(":0", backend).address.rpartition(":")[2]
    with dial(f"127.0.0.1:{port}") as client:
        assert echoed(client, b"hello") == b"hello"


def test_says_where_it_listens_on_standard_error_and_nothing_on_standard_output(
    backend: str,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gsplice", "forward", LOOPBACK, backend],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stderr.readline()
        process.terminate()
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert re.fullmatch(rf"gsplice: listening on 127\.0\.0\.1:\d+, forwarding to {backend}\n", line)
    assert process.returncode == 0


def test_an_idle_connection_is_ended_after_the_time_out(forward: Any, backend: str) -> None:
    client = forward(LOOPBACK, backend, "--idle-timeout", "0.2").dial()
    exchange(client)
    assert receive(client) == b""


def test_one_more_than_max_connections_waits_until_another_leaves(
    forward: Any, backend: str
) -> None:
    forwarder = forward(LOOPBACK, backend, "--max-connections", "1", "--grace", "0")
    first, second = forwarder.dial(), forwarder.dial()
    exchange(first)
    second.sendall(b"let me in")
    exchange(first)
    assert not is_readable(second)
    first.close()
    assert receive(second, 9) == b"let me in"


# The backend that is not there.


def test_a_backend_that_refuses_costs_that_client_its_connection_and_a_log_line(
    forward: Any,
) -> None:
    port = free_port()
    forwarder = forward(LOOPBACK, f"127.0.0.1:{port}", "--grace", "0")
    client = forwarder.dial()
    assert receive(client) == b""
    forwarder.expect(r"^gsplice: client 127\.0\.0\.1:\d+: cannot connect to the target: .*refused")
    server = StreamServer(("127.0.0.1", port), send_back)
    server.start()
    try:
        exchange(forwarder.dial())
    finally:
        server.stop(0)
    forwarder.stop()
    assert len(forwarder.output.splitlines()) == 2


def test_a_target_whose_name_is_unknown_costs_that_client_its_connection_and_a_log_line(
    forward: Any,
) -> None:
    forwarder = forward(LOOPBACK, "no-such-host.invalid:80")
    assert receive(forwarder.dial()) == b""
    forwarder.expect("cannot connect to the target: ")


def test_a_target_that_does_not_accept_is_given_up_after_the_connect_time_out(
    forward: Any, never_accepts: Any
) -> None:
    target = ":".join(map(str, never_accepts("tcp").getsockname()))
    forwarder = forward(LOOPBACK, target, "--connect-timeout", "0.2")
    assert receive(forwarder.dial()) == b""
    forwarder.expect("cannot connect to the target: timed out")


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_the_relays_have_finished(
    number: signal.Signals, forward: Any, backend: str
) -> None:
    forwarder = forward(LOOPBACK, backend, "--grace", "60")
    client = forwarder.dial()
    exchange(client)
    forwarder.process.send_signal(number)
    wait_until(lambda: refuses(forwarder.address))
    assert forwarder.process.poll() is None
    assert echoed(client, pattern(1_000_000)) == pattern(1_000_000)
    assert forwarder.ended() == 0
    assert len(forwarder.output.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_where_nothing_is_relayed(
    number: signal.Signals, forward: Any, backend: str
) -> None:
    forwarder = forward(LOOPBACK, backend, "--grace", "60")
    forwarder.process.send_signal(number)
    assert forwarder.ended() == 0


def test_relays_that_have_not_finished_after_the_grace_are_ended(
    forward: Any, backend: str
) -> None:
    forwarder = forward(LOOPBACK, backend, "--grace", "0.2")
    client = forwarder.dial()
    exchange(client)
    forwarder.process.terminate()
    assert receive(client) == b""
    assert forwarder.ended() == 0


def test_a_second_signal_cuts_the_grace_short(forward: Any, backend: str) -> None:
    forwarder = forward(LOOPBACK, backend, "--grace", "60")
    client = forwarder.dial()
    exchange(client)
    forwarder.process.send_signal(signal.SIGINT)
    wait_until(lambda: refuses(forwarder.address))
    forwarder.process.send_signal(signal.SIGINT)
    assert receive(client) == b""
    assert forwarder.ended() == 0


# The unix socket it listens on.


def test_a_unix_socket_is_removed_as_soon_as_it_accepts_no_more(
    forward: Any, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    old = forward(f"unix:{path}", backend, "--grace", "60")
    client = old.dial()
    exchange(client)
    old.process.terminate()
    wait_until(lambda: not path.exists())
    new = forward(f"unix:{path}", backend, "--grace", "0")
    client.close()
    assert old.ended() == 0
    exchange(new.dial())  # the old one has left the new one's socket alone
    new.stop()
    assert not path.exists()


def test_a_unix_socket_of_another_process_by_the_same_name_is_left_alone(
    forward: Any, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    old = forward(f"unix:{path}", backend)
    path.unlink()
    new = forward(f"unix:{path}", backend, "--grace", "0")
    assert old.stop() == 0
    exchange(new.dial())
    path.unlink()
    assert new.stop() == 0


def test_a_unix_socket_that_a_killed_process_has_left_is_replaced(
    forward: Any, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    forward(f"unix:{path}", backend).stop(signal.SIGKILL)
    assert path.is_socket()
    exchange(forward(f"unix:{path}", backend, "--grace", "0").dial())
