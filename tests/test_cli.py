"""``python -m gsplice forward`` as a process: what it carries, how it ends, and what it says."""

from __future__ import annotations

import argparse
import errno
import io
import os
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
    Pairs,
    echoed,
    errors_of_hub,
    exchange,
    is_readable,
    pattern,
    receive,
    send_back,
    wait_until,
)
from programs import ENVIRONMENT, LOOPBACK, PATIENCE, free_port, needs_ipv6
from terminal import Terminal

import gsplice
from gsplice import _meter, _output, cli
from gsplice.server import ForwardServer


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


def test_a_unix_socket_that_a_killed_process_has_left_is_replaced(
    forward: Any, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    forward(f"unix:{path}", backend).stop(signal.SIGKILL)
    assert path.is_socket()
    exchange(forward(f"unix:{path}", backend, "--grace", "0").dial())


# Figures.


def test_with_stats_a_summary_is_the_last_line(forward: Any, backend: str) -> None:
    forwarder = forward(LOOPBACK, backend, "--stats", "--mode", "splice")
    assert echoed(forwarder.dial(), pattern(3_000_000)) == pattern(3_000_000)
    forwarder.stop()
    *_, last = forwarder.output.splitlines()
    found = re.fullmatch(
        r"gsplice: 1 connection, 6\.0 MB both ways, (\d+) % spliced, up for \d+\.\d s", last
    )
    assert found, forwarder.output
    assert int(found[1]) > 90
    assert "\x1b" not in forwarder.output


def test_with_stats_on_a_terminal_a_live_line_shows_what_it_does(backend: str) -> None:
    command = (sys.executable, "-m", "gsplice", "forward", LOOPBACK, backend, "--stats")
    with Terminal(*command) as terminal:
        address = terminal.expect(r"listening on (\S+),")[1]
        terminal.expect(r"\r\x1b\[K0 relays, 0\.0 MB/s, 0 % spliced")
        with dial(address) as client:
            exchange(client)
            terminal.expect(r"\r\x1b\[K1 relay, 0\.0 MB/s, 0 % spliced")
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect(
            r"\r\x1b\[Kgsplice: 1 connection, 0\.0 MB both ways, 0 % spliced, up for \d\.\d s\r\n"
        )
        assert terminal.process.wait(PATIENCE) == 0


def test_a_log_line_replaces_the_live_line_on_a_terminal() -> None:
    target = f"127.0.0.1:{free_port()}"
    command = (sys.executable, "-m", "gsplice", "forward", LOOPBACK, target, "--stats")
    with Terminal(*command) as terminal:
        address = terminal.expect(r"listening on (\S+),")[1]
        terminal.expect("0 relays")
        with dial(address) as client:
            assert receive(client) == b""
        terminal.expect(r"\r\x1b\[Kgsplice: client \S+: cannot connect to the target: .*\r\n")


class _GoneTerminal(io.StringIO):
    """What nobody looks at any more: the window was closed, and SIGHUP ignored."""

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_terminal_that_has_gone_costs_the_live_line_and_nothing_else(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub would print the error on that terminal, and a relay could lose bytes by it."""
    monkeypatch.setattr(_meter, "_PERIOD", 0.001)
    meter = _meter.Meter(ForwardServer(("127.0.0.1", 0), backend), _GoneTerminal())
    with errors_of_hub() as errors, meter:
        wait_until(lambda: meter._ticker is not None and meter._ticker.ready())
    assert not errors


def test_with_stats_and_no_standard_error_it_forwards_all_the_same(
    backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "front"
    words = ("-m", "gsplice", "forward", f"unix:{path}", backend, "--stats")
    closing = ("sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, *words)
    with subprocess.Popen(closing, env=ENVIRONMENT) as process:
        try:
            wait_until(lambda: path.is_socket() or process.poll() is not None)
            with dial(f"unix:{path}") as client:
                exchange(client)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


# What else it says.


def test_version_says_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gsplice {gsplice.__version__}\n"


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert re.search(r"forward .*demo ", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["forward", "nonsense", "nonsense"]])
def test_where_nobody_reads_what_it_says_it_ends_quietly(words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    streams = {"stdout": writes, "stderr": subprocess.PIPE}
    if words[0] == "forward":  # which says on standard error why it cannot
        streams = {"stdout": subprocess.PIPE, "stderr": writes}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gsplice", *words],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
            timeout=PATIENCE,
            **streams,
        )
    finally:
        os.close(writes)
    assert done.returncode == 128 + signal.SIGPIPE
    assert not done.stdout
    assert not done.stderr


def test_a_broken_pipe_that_is_a_sockets_is_not_taken_for_the_outputs(
    monkeypatch: pytest.MonkeyPatch, pairs: Pairs
) -> None:
    """Not even where nobody reads the output either."""
    sock, peer = pairs("unix")
    peer.close()

    def command(_: argparse.Namespace) -> int:
        sock.sendall(b"x")
        return 0

    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        monkeypatch.setattr(cli, "_demo", command)
        with pytest.raises(BrokenPipeError):
            cli.main(["demo"])


def test_with_no_standard_streams_at_all_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", ["--version", "--help", "demo --help", "demo", "forward x y"])
def test_where_there_is_no_room_for_what_it_says_that_is_one_line(
    words: str, buffered: str
) -> None:
    is_error = words.startswith("forward")  # which says on standard error why it cannot
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gsplice", *words.split()],
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": buffered},
            stdout=subprocess.PIPE if is_error else full,
            stderr=full if is_error else subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    if is_error:
        assert done.stdout == ""
    else:
        assert done.stderr == "gsplice: cannot write output: No space left on device\n"


def test_forward_does_not_load_the_demo() -> None:
    program = "import sys, gsplice.cli; sys.exit('gsplice.demo' in sys.modules)"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, env=ENVIRONMENT, timeout=PATIENCE).returncode == 0
