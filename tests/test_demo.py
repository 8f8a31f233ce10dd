"""``python -m gsplice demo``, with sizes that take no time and give no meaningful figures."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from demonstration import DEMO, QUICK
from programs import ENVIRONMENT, PATIENCE
from terminal import Terminal

from gsplice import cli
from gsplice.demo import main, processes, table
from gsplice.demo.contest import Contest, Result
from gsplice.demo.deadline import DemoError
from gsplice.demo.progress import Progress
from gsplice.demo.scenarios import Requests, Sample, Stream


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )


# What a stranger sees.


@pytest.fixture(scope="module")
def shown() -> subprocess.CompletedProcess[str]:
    return run(*QUICK)


def test_it_succeeds_and_fits_on_a_screen(shown: subprocess.CompletedProcess[str]) -> None:
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) < 80
    assert shown.stdout.isascii()


def test_it_says_what_is_compared_on_which_machine(
    shown: subprocess.CompletedProcess[str],
) -> None:
    heading = " ".join(shown.stdout.split())
    assert "recv+sendall the usual gevent code" in heading
    assert "gsplice gsplice.server.ForwardServer" in heading
    assert re.search(
        r"On this machine: \d+ cores?, Linux \S+ \S+ \(\w+\), CPython 3\.\d+\.\S+, gevent \S+ "
        r"\(lib\S+\), gsplice \S+ \(mode auto\)",
        heading,
    )


def test_the_checksum_was_compared_for_both(shown: subprocess.CompletedProcess[str]) -> None:
    assert "\nSHA-256 at the far end: right through both, 4 MB of random bytes.\n" in shown.stdout


@pytest.mark.parametrize(
    ("title", "rate", "cpu"),
    [
        ("one stream, 256 KiB writes", "MB/s", "CPU seconds per GB"),
        ("one stream, 1 KiB writes", "MB/s", "CPU seconds per GB"),
        (
            "32 connections, 256 B requests and answers",
            "round trips a second",
            "CPU microseconds per round trip",
        ),
    ],
)
def test_the_table_has_both_forwarders_figures_and_their_ratio(
    title: str, rate: str, cpu: str, shown: subprocess.CompletedProcess[str]
) -> None:
    assert re.search(r"\n +recv\+sendall +gsplice +ratio\n", shown.stdout)
    figures = r" +([\d,.]+) +([\d,.]+) +([\d.]+) x\n"
    row = re.search(
        rf"\n{title}\n  {rate}{figures}  {cpu}{figures}  spliced +- +\d+%\n", shown.stdout
    )
    assert row, shown.stdout
    numbers = [float(each.replace(",", "")) for each in row.groups()]
    assert all(number > 0 for number in numbers)
    usual_rate, our_rate, rate_ratio, usual_cpu, our_cpu, cpu_ratio = numbers
    assert rate_ratio == pytest.approx(our_rate / usual_rate, rel=0.02, abs=0.006)
    assert cpu_ratio == pytest.approx(usual_cpu / our_cpu, rel=0.02, abs=0.006)


def test_it_says_how_many_rounds_there_were(shown: subprocess.CompletedProcess[str]) -> None:
    assert "Medians of 1 round, " in shown.stdout
    assert re.search(r"moves a stream at [\d.]+ times the rate", shown.stdout)


def test_off_a_terminal_progress_is_a_plain_line_for_each_part(
    shown: subprocess.CompletedProcess[str],
) -> None:
    assert shown.stderr.splitlines() == [
        "gsplice: SHA-256",
        "gsplice: one stream, 256 KiB writes",
        "gsplice: one stream, 1 KiB writes",
        "gsplice: 32 connections, 256 B requests and answers",
    ]


def test_on_a_terminal_a_bar_grows_and_makes_room_for_the_table() -> None:
    with Terminal(*QUICK) as terminal:
        terminal.expect(r"\r\x1b\[K\[\.{12}\]   0%  SHA-256: recv\+sendall")
        terminal.expect(r"\r\x1b\[K\[#+\.+\]  \d\d%  32 connections, .*: gsplice")
        terminal.expect(r"\r\x1b\[KSHA-256 at the far end")
        terminal.expect(r"of the CPU\.")
        assert terminal.process.wait(PATIENCE) == 0
    bars = re.findall(r"\x1b\[K(\[[#.]+\] .*?)(?=\r)", terminal.screen)
    assert max(map(len, bars)) < 80
    shares = [int(share) for share in re.findall(r"\] +(\d+)%", terminal.screen)]
    assert shares == sorted(shares)


def test_switched_off_it_says_so_and_splices_nothing() -> None:
    done = run(*QUICK, GSPLICE_MODE="copy")
    assert done.returncode == 0
    assert "(mode copy)" in " ".join(done.stdout.split())
    assert re.findall(r"spliced +- +(\d+)%", done.stdout) == ["0", "0", "0"]


def test_rounds_for_which_there_is_no_time_are_left_out() -> None:
    begin = time.monotonic()
    done = run(*DEMO, "--megabytes", "20", "--rounds", "1000", "--seconds", "1")
    assert done.returncode == 0
    assert time.monotonic() - begin < PATIENCE
    assert re.search(r"Medians of \d+ (to \d+ )?rounds?, ", done.stdout)
    assert "Medians of 1000" not in done.stdout


@pytest.mark.parametrize("option", ["--megabytes", "--rounds", "--seconds"])
def test_a_number_below_one_is_one_clear_line(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", option, "0"]) == 2
    assert re.fullmatch(
        rf"gsplice: {option} must be at least 1: 0(\.0)?\n", capsys.readouterr().err
    )


# Forwarders that do it wrong.


def tampered_with(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def shortened(data: bytes) -> bytes:
    return data[:-1]


@pytest.fixture
def far_end() -> Iterator[processes.Child]:
    child = processes.Child("the backend", "gsplice.demo.backend")
    try:
        child.wait_until_ready()
        yield child
    finally:
        child.end()


class FaultyForwarder:
    """Connects to the far end, and does something to the bytes on the way, after the first one."""

    name = "faulty"
    title = "the faulty forwarder"

    def __init__(self, far_end: processes.Child, fault: Any, down: bool = False) -> None:
        self._far_end = far_end
        self._faults = (None, fault) if down else (fault, None)
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        client, near = socket.socketpair()
        backend = self._far_end.connect()
        ways = zip(((near, backend), (backend, near)), self._faults, strict=True)
        threads = [threading.Thread(target=self._copy, args=(*ends, fault)) for ends, fault in ways]
        closer = threading.Thread(target=self._close, args=((near, backend), threads))
        for thread in (*threads, closer):
            thread.start()
        self._threads.append(closer)
        return client

    def read(self) -> processes.Reading:
        return processes.Reading(time.perf_counter(), time.process_time(), 0, 0)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, fault: Any) -> None:
        with contextlib.suppress(OSError):
            if fault is not None and source.family == socket.AF_UNIX:
                sink.sendall(source.recv(1))  # what is asked of the far end
            while data := source.recv(65536):
                if fault is not None:
                    data, fault = fault(data), None
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
            return
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _close(socks: Any, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(PATIENCE)
        for sock in socks:
            sock.close()


@pytest.fixture
def quiet_contest() -> Any:
    def contest(forwarder: Any) -> Contest:
        return Contest([forwarder], 1, PATIENCE, Progress(io.StringIO()))

    return contest


@pytest.mark.parametrize("fault", [tampered_with, shortened])
def test_another_checksum_is_one_clear_line_and_exit_status_1(
    fault: Any,
    far_end: processes.Child,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forwarder = FaultyForwarder(far_end, fault)
    running = contextlib.nullcontext([forwarder])
    monkeypatch.setattr(main, "running_forwarders", lambda: running)
    assert cli.main(["demo", "--megabytes", "1"]) == 1
    forwarder.join()
    out, err = capsys.readouterr()
    assert "right through both" not in out
    assert re.fullmatch(
        r"gsplice: SHA-256\n"
        r"gsplice: demo: the faulty forwarder: the SHA-256 at the far end is [0-9a-f]{64}, and "
        r"should be [0-9a-f]{64}\n",
        err,
    )


def test_a_stream_that_loses_a_byte_does_not_count(
    far_end: processes.Child, quiet_contest: Any
) -> None:
    forwarder = FaultyForwarder(far_end, shortened)
    with pytest.raises(DemoError, match=r"^the faulty forwarder: 999,999 bytes of 1,000,000 came"):
        quiet_contest(forwarder)._measure(Stream("a stream", 10**6, 65536), 1)
    forwarder.join()


def test_an_answer_that_was_not_asked_for_does_not_count(
    far_end: processes.Child, quiet_contest: Any
) -> None:
    forwarder = FaultyForwarder(far_end, tampered_with, down=True)
    with pytest.raises(DemoError, match=r"^the faulty forwarder: an answer is not what was asked"):
        quiet_contest(forwarder)._measure(Requests(), 1)
    forwarder.join()


def test_a_forwarder_that_is_not_there_is_an_error_that_says_so(quiet_contest: Any) -> None:
    def connect() -> socket.socket:
        raise ConnectionRefusedError("Connection refused")

    forwarder = SimpleNamespace(name="no", title="no forwarder", connect=connect)
    with pytest.raises(DemoError, match=r"^no forwarder: a stream: Connection refused$"):
        quiet_contest(forwarder)._measure(Stream("a stream", 10**6, 65536), 1)


def test_the_far_end_goes_on_after_a_reset_and_what_it_does_not_understand(
    far_end: processes.Child,
) -> None:
    with far_end.connect() as sock:
        sock.sendall(b"Ehello")
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with far_end.connect() as sock:
        sock.sendall(b"?")
        assert sock.recv(1) == b""
    with far_end.connect() as sock:
        sock.sendall(b"Ehello")
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"


# The table, with figures that do not come by on every machine.


def results(usual: float, ours: float) -> str:
    scenario = SimpleNamespace(title="a stream", rate_unit="MB/s", cpu_unit="CPU seconds per GB")
    medians = {"recv+sendall": Sample(usual, 2.0, 0), "gsplice": Sample(ours, 0.5, 0.5)}
    fewer, more = Result(scenario, 2, medians), Result(scenario, 5, medians)  # type: ignore[arg-type]
    return table.results([fewer, more], 10**6)


def test_a_ratio_below_one_is_said_as_plainly() -> None:
    text = results(1234.5, 617.25)
    assert re.search(r"MB/s +1,234 +617 +0\.50 x\n", text)
    assert "moves a stream at 0.5 times the rate" in text


def test_figures_have_three_digits_that_count() -> None:
    text = results(0.12345, 12.345)
    assert re.search(r"MB/s +0\.123 +12\.3 +100\.00 x\n", text)
    assert re.search(r"CPU seconds per GB +2\.00 +0\.500 +4\.00 x\n", text)


def test_scenarios_with_unlike_numbers_of_rounds_are_said_to_have_them() -> None:
    assert "Medians of 2 to 5 rounds, " in results(1, 2)


@pytest.mark.parametrize("cores", [None, 3])
def test_cores_are_counted_where_the_system_does_not_tell_which_are_ours(
    cores: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert f"On this machine: {'3 cores' if cores else '1 core'}, " in table.heading()


def test_a_congestion_control_that_the_system_does_not_tell_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot_be_read(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", cannot_be_read)
    assert f"{platform.machine()}, CPython" in " ".join(table.heading().split())
