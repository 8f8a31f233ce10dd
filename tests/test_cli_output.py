"""What ``python -m gsplice`` says, on terminals, files and pipes, which may go away."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forwarder import Forwarder, dial
from gevent.server import StreamServer
from peers import (
    Pairs,
    echoed,
    errors_of_hub,
    exchange,
    pattern,
    quietly,
    receive,
    send_back,
    wait_until,
)
from programs import ENVIRONMENT, LOOPBACK, PATIENCE, free_port
from terminal import Terminal

import gsplice
from gsplice import _addresses, _meter, cli
from gsplice.server import ForwardServer

# Figures.


def test_with_stats_a_summary_is_the_last_line(backend: str) -> None:
    with Forwarder(LOOPBACK, backend, "--stats", "--mode", "splice") as forwarder:
        forwarder.wait_until_ready()
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


# Where nobody reads it.


def fill_pipe(fd: int) -> None:
    """Write to it until there is no room, and leave it in the mode that it is in."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(own, b"x" * 512)
    except BlockingIOError:
        os.close(own)


@pytest.mark.parametrize("options", [[], ["--stats"]], ids=["", "--stats"])
def test_a_pipe_that_nobody_reads_costs_lines_and_no_connection(
    options: list[str], tmp_path: Path, serve: Any
) -> None:
    path = tmp_path / "target"
    reads, writes = os.pipe()
    words = ("-m", "gsplice", "forward", LOOPBACK, f"unix:{path}", *options)
    with (
        open(reads, "rb", buffering=0) as said,
        subprocess.Popen([sys.executable, *words], env=ENVIRONMENT, stderr=writes) as process,
    ):
        try:
            address = said.read(1000).split()[3].decode().rstrip(",")
            fill_pipe(writes)
            with dial(address) as client:
                assert receive(client) == b""  # there is no target yet
            while select.select([said], [], [], 0)[0]:
                assert set(said.read(4096)) == {ord("x")}
            with dial(address) as client:
                assert receive(client) == b""
            assert said.read(1000).endswith(b" (nobody read on: 1 before this are lost)\n")
            fill_pipe(writes)
            serve(StreamServer(_addresses.listen(str(path), 5), quietly(send_back)))
            with dial(address) as client:
                exchange(client)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(writes)


def test_a_terminal_that_is_held_costs_lines_and_no_connection() -> None:
    target = f"127.0.0.1:{free_port()}"
    command = (sys.executable, "-m", "gsplice", "forward", LOOPBACK, target, "--stats")
    with Terminal(*command) as terminal:
        address = terminal.expect(r"listening on (\S+),")[1]
        terminal.hold()
        with dial(address) as client:
            assert receive(client) == b""
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(PATIENCE) == 0
    assert "cannot connect" not in terminal.screen


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
