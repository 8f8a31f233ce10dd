"""``forward systemd``: sockets from a real launcher, and what is no such socket."""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket
from peers import echoed, exchange, pattern, wait_until
from programs import ENVIRONMENT, PATIENCE, REPOSITORY, Program, free_port, installed

from gsplice import _systemd, cli

UNITS = REPOSITORY / "examples" / "systemd"
FORWARD = (sys.executable, "-m", "gsplice", "forward")

#: Does what systemd does for a unit: the socket is fd 3, and the pid is that of the program.
LAUNCHER = """
import os, socket, sys
_, port, reuse_port, *command = sys.argv
listener = socket.socket()
if reuse_port == "yes":
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(port)))
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)  # for where it has been 3 already
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="a.socket")
os.execv(command[0], command)
"""


@pytest.fixture
def run() -> Iterator[Callable[..., Program]]:
    """Run programs; all have ended when the test has."""
    started: list[Program] = []

    def start(*command: str) -> Program:
        started.append(Program(*command))
        return started[-1]

    yield start
    for program in started:
        program.__exit__(None, None, None)


def socket_activate(address: str, *options: str) -> tuple[str, ...]:
    """Return the start of a command that has systemd's own launcher open a socket."""
    path = f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}"
    return (installed("systemd-socket-activate"), "-E", path, "-l", address, *options)


def end(program: Program, how: signal.Signals = signal.SIGTERM) -> int:
    """End a program, while the hub runs and so the backend; return its exit status."""
    program.process.send_signal(how)
    wait_until(lambda: program.process.poll() is not None, PATIENCE)
    return program.stop()


def dial(address: Any) -> socket.socket:
    """Connect once there is somebody that listens."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(PATIENCE)
    wait_until(lambda: sock.connect_ex(address) == 0, PATIENCE)
    return sock


@pytest.mark.parametrize("listen", ["systemd", "systemd:web"])
def test_the_socket_that_systemd_has_opened_is_forwarded(
    listen: str, run: Any, backend: str
) -> None:
    port = free_port()
    launcher = socket_activate(f"127.0.0.1:{port}", "--fdname=web")
    program = run(*launcher, *FORWARD, listen, backend)
    with dial(("127.0.0.1", port)) as client:  # the first one, which has it started
        assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)
    program.expect(rf"listening on 127\.0\.0\.1:{port}, forwarding to {backend}$")
    with dial(("127.0.0.1", port)) as client:
        exchange(client)
        client.close()
    assert end(program) == 0


def test_a_unix_socket_of_systemds_is_left_to_it(run: Any, backend: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    program = run(*socket_activate(path), *FORWARD, "systemd", backend)
    with dial(path) as client:
        assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)
    assert end(program) == 0
    assert Path(path).is_socket()


def test_gunicorn_passes_it_on_to_its_worker(run: Any, backend: str) -> None:
    port = free_port()
    gunicorn = Path(sys.executable).with_name("gunicorn")
    examples = ("--chdir", str(REPOSITORY / "examples"))
    program = run(
        *socket_activate(f"127.0.0.1:{port}", "-E", f"HOME={os.environ.get('HOME', '/')}"),
        *(str(gunicorn), "-k", "gsplice.gunicorn.ServerWorker", "-w", "1", *examples),
        *("--worker-tmp-dir", "/tmp", f"gunicorn_forwarder:forwarder({backend!r})"),
    )
    for _ in range(2):
        with dial(("127.0.0.1", port)) as client:
            assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)
    assert end(program, signal.SIGQUIT) == 0


def test_the_units_make_two_forwarders_of_one_port(run: Any, backend: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read([UNITS / "gsplice-forward@.socket", UNITS / "gsplice-forward@.service"])
    command = shlex.split(unit["Service"]["ExecStart"])
    assert unit["Socket"]["ListenStream"] == "8080"
    assert command[:6] == ["/usr/bin/python3", "-m", "gsplice", "forward", "systemd", "10.0.0.7:80"]
    port, reuse_port = str(free_port()), unit["Socket"]["ReusePort"]
    launcher = (sys.executable, "-c", LAUNCHER, port, reuse_port)
    arguments = (sys.executable, *command[1:5], backend, *command[6:], "--stats")
    programs = [run(*launcher, *arguments) for _ in "12"]
    for program in programs:
        program.expect(f":{port}, forwarding")
    for _ in range(40):  # the kernel decides, by the client's port: one each within these
        with dial(("127.0.0.1", int(port))) as client:
            exchange(client, pattern(10_000))
    assert [end(program) for program in programs] == [0, 0]
    served = [int(program.expect(r"(\d+) connections?, ")[1]) for program in programs]
    assert sum(served) == 40
    assert all(served)


def test_with_reuse_port_two_commands_share_a_port(run: Any, backend: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    programs = [run(*FORWARD, address, backend, "--reuse-port", "--stats") for _ in "12"]
    for program in programs:
        program.expect(f"listening on {address}, forwarding")
    host, _, port = address.partition(":")
    for _ in range(40):
        with dial((host, int(port))) as client:
            exchange(client, pattern(10_000))
    assert [end(program) for program in programs] == [0, 0]
    served = [int(program.expect(r"(\d+) connections?, ")[1]) for program in programs]
    assert sum(served) == 40
    assert all(served)


# What cannot be: one clear line, and exit status 2.


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the line that it says where it does not start."""
    assert cli.main(["forward", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("gsplice: ").rstrip("\n")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Pass copies of sockets to this process, as systemd would."""
    copies: list[int] = []

    def do_pass(*sockets: socket.socket, names: str = "", pid: Any = None) -> None:
        copies.extend(os.dup(sock.fileno()) for sock in sockets)
        first = copies[0] if copies else 3
        assert copies == list(range(first, first + len(copies)))
        monkeypatch.setattr(_systemd, "_FIRST", first)  # fd 3 is taken, in this process
        monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(len(sockets)))
        monkeypatch.setenv("LISTEN_FDNAMES", names)

    yield do_pass
    for fd in copies:
        try:
            os.close(fd)
        except OSError:
            pass  # the one that was taken


@pytest.mark.parametrize("count", ["", "0", "many"])
def test_where_nothing_was_passed_it_says_so(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    message = refusal(capsys, "systemd", "127.0.0.1:80")
    assert message.startswith("systemd has passed no socket: ")


def test_sockets_for_another_process_are_left_alone(
    passed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        passed(listener, pid=1)
        message = refusal(capsys, "systemd", "127.0.0.1:80")
    assert message == f"systemd has passed its sockets to process 1, not to {os.getpid()}"


@pytest.mark.parametrize("listen", ["systemd", "systemd:other"])
def test_which_of_several_sockets_has_to_be_said(
    listen: str, passed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        passed(listener, listener, names="web:admin")
        message = refusal(capsys, listen, "127.0.0.1:80")
    assert message == f"{listen} must stand for one socket: what was passed is named web, admin"


def test_a_connection_is_no_socket_to_listen_at(
    passed: Any, pairs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    near, _ = pairs()
    passed(near)
    message = refusal(capsys, "systemd", "127.0.0.1:80")
    assert message == "what systemd has passed is no TCP or unix socket that listens (Accept=no)"


def test_who_waits_when_it_ends_is_left_to_the_next_that_systemd_starts(passed: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        passed(listener)
        server = cli._server(cli._parser().parse_args(["forward", "systemd", "127.0.0.1:80"]))
        server.start()
        server.stop_accepting()
        with dial(listener.getsockname()) as client:
            server.close()
            assert server.accepted == 0
            served, address = listener.accept()
            assert address == client.getsockname()
            served.close()


def test_what_is_taken_is_gone_from_the_environment_and_not_inherited(passed: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        passed(listener)
        with _systemd.listener("systemd") as taken:
            assert taken.getsockname() == listener.getsockname()
            assert not os.get_inheritable(taken.fileno())
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["systemd:"], "bad address 'systemd:': the name of the socket is missing"),
        (["systemd", "--reuse-port"], "--reuse-port is for an address; a socket unit has Reuse"),
        (["unix:/x", "--reuse-port"], "--reuse-port is for a port: unix:/x"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listen, *options = arguments
    assert refusal(capsys, listen, "127.0.0.1:80", *options).startswith(message)


def test_an_abstract_unix_socket_is_shown_as_it_is_written(run: Any, backend: str) -> None:
    name = f"gsplice-test-{os.getpid()}"
    program = run(*socket_activate(f"@{name}"), *FORWARD, "systemd", backend)
    with dial(f"\0{name}") as client:
        exchange(client)
        program.expect(rf"listening on unix:@{name}, forwarding")
        client.close()
    assert end(program) == 0
