"""``python -m gsplice`` with arguments that cannot be: one clear line, and exit status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gevent import socket
from programs import ENVIRONMENT, LOOPBACK, PATIENCE

from gsplice import cli


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that ``forward`` says where it does not start."""
    return said(capsys, "forward", *arguments)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gsplice: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err.removeprefix("gsplice: ").rstrip("\n")


BAD_ADDRESSES = {
    "": "bad address '': expected host:port, [v6]:port or unix:/path",
    "8080": "bad address '8080': expected",
    "localhost": "bad address 'localhost': expected",
    "localhost:": "bad address 'localhost:': expected",
    "localhost:http": "expected host:port",
    "localhost:-1": "expected host:port",
    "localhost:1.5": "expected host:port",
    "localhost:٣": "expected host:port",
    "localhost:123456": "expected host:port",
    "localhost:65536": "to 65535",
    "::1:80": "expected host:port, [v6]:port",
    "::1": "expected host:port, [v6]:port",
    "[::1]": "expected host:port, [v6]:port",
    "[::1:80": "expected host:port, [v6]:port",
    "[localhost]:80": "expected host:port, [v6]:port",
    "http://localhost:80": "expected host:port",
    "local host:80": "expected host:port",
    "localhost:80\n": "expected host:port",
    "a..b:80": "no host has such a name",
    64 * "x" + ":80": "no host has such a name",
    "local\0host:80": "the host has a NUL in it",
    "unix:": "the path is missing",
    "unix:/a\0b": "the path has a NUL in it",
    "unix:/" + 107 * "x": "the path has more than 107 bytes",
}


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_bad_address_is_one_clear_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert BAD_ADDRESSES[address] in refusal(capsys, address, "127.0.0.1:80")
    assert BAD_ADDRESSES[address] in refusal(capsys, LOOPBACK, address)


def test_two_bad_addresses_are_both_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "foo", ":80") == (
        "bad address 'foo': expected host:port, [v6]:port or unix:/path; "
        "bad address ':80': the host is missing"
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (":80", "bad address ':80': the host is missing"),
        ("127.0.0.1:0", "bad address '127.0.0.1:0': the port must be from 1 to 65535"),
    ],
)
def test_a_target_needs_what_only_a_listener_may_leave_open(
    target: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, LOOPBACK, target) == message


def test_a_bad_address_is_exit_status_2_of_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gsplice", "forward", "nonsense", "127.0.0.1:80"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gsplice: bad address 'nonsense': expected host:port, [v6]:port or unix:/path\n"
    )


def test_a_port_in_use_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refusal(capsys, address, "127.0.0.1:80")
    assert message == f"cannot listen on {address}: Address already in use"


def test_a_host_that_is_not_this_one_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refusal(capsys, "192.0.2.1:0", "127.0.0.1:80").startswith(
        "cannot listen on 192.0.2.1:0: "
    )


def test_a_host_that_is_unknown_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "no-such-host.invalid:0", "127.0.0.1:80").startswith(
        "cannot listen on no-such-host.invalid:0: "
    )


def test_a_unix_socket_that_is_in_use_is_one_clear_line_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
        owner.listen(0)
        for _ in range(3):  # what asks whether it is in use stays in its backlog, and fills it
            message = refusal(capsys, f"unix:{path}", "127.0.0.1:80")
            assert message == f"cannot listen on unix:{path}: Address already in use"
        assert path.is_socket()


def test_a_unix_path_that_is_a_file_is_one_clear_line_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    message = refusal(capsys, f"unix:{path}", "127.0.0.1:80")
    assert message == f"cannot listen on unix:{path}: Address already in use"
    assert path.read_text() == "precious"


def test_a_unix_path_that_cannot_be_bound_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"unix:{tmp_path}/no/such/directory"
    refused = refusal(capsys, address, "127.0.0.1:80")
    assert refused == f"cannot listen on {address}: No such file or directory"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--grace", "-1", "--grace must not be negative: -1.0"),
        ("--grace", "nan", "--grace must not be negative: nan"),
        ("--grace", "inf", "--grace must not be longer than a hundred years: inf"),
        ("--grace", "1e30", "--grace must not be longer than a hundred years: 1e+30"),
        ("--moderation", "1e30", "--moderation must not be longer than a hundred years: 1e+30"),
        ("--idle-timeout", "0", "--idle-timeout must be more than 0 seconds: 0.0"),
        ("--idle-timeout", "-5", "--idle-timeout must be more than 0 seconds: -5.0"),
        ("--connect-timeout", "0", "--connect-timeout must be more than 0 seconds: 0.0"),
        ("--max-connections", "0", "--max-connections must be at least 1: 0"),
        ("--moderation", "-1", "--moderation must not be negative: -1.0"),
    ],
)
def test_a_number_that_makes_no_sense_is_one_clear_line(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, LOOPBACK, "127.0.0.1:80", option, value) == message


def test_a_bad_mode_in_the_environment_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GSPLICE_MODE", "fast")
    for command in (["forward", LOOPBACK, "127.0.0.1:80"], ["demo"]):
        assert said(capsys, *command) == (
            "the environment variable GSPLICE_MODE must be 'auto', 'splice' or 'copy', not 'fast'"
        )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["backward"],
        ["forward"],
        ["forward", LOOPBACK],
        ["forward", LOOPBACK, LOOPBACK, LOOPBACK],
        ["forward", LOOPBACK, "127.0.0.1:80", "--mode", "fast"],
        ["forward", LOOPBACK, "127.0.0.1:80", "--grace", "soon"],
        ["forward", LOOPBACK, "127.0.0.1:80", "--connect-timeout", "soon"],
        ["forward", LOOPBACK, "127.0.0.1:80", "--max-connections", "1.5"],
    ],
)
def test_what_is_no_command_is_exit_status_2_and_says_how_it_is_used(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: gsplice" in capsys.readouterr().err
