"""``python -m gsplice demo``: however it ends, its processes end, and it says why in a line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demonstration import DEMO, QUICK
from programs import ENVIRONMENT, PATIENCE, Program, wait_until
from terminal import Terminal

from gsplice import cli
from gsplice.demo import processes
from gsplice.demo.deadline import DemoError, alive


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_its_processes_end_with_it(number: signal.Signals, status: int) -> None:
    with Program(*DEMO, "--megabytes", "100000") as demo:
        demo.expect("SHA-256")
        started = children(demo.process.pid)
        assert len(started) == 3
        assert demo.stop(number) == status
        wait_until(lambda: not any(map(is_running, started)), "the processes have ended")
    assert "Traceback" not in demo.output
    assert ("gsplice: demo: interrupted\n" in demo.output) == (number == signal.SIGINT)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Make a pipe whose ends are closed by the test, or after it."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("lines", [0, 1], ids=lambda lines: f"{lines} lines are read")
def test_where_nobody_reads_the_table_it_ends_quietly(
    lines: int, buffered: str, pipe: tuple[int, int]
) -> None:
    reads, writes = pipe
    demo = subprocess.Popen(
        QUICK,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": buffered},
        stdin=subprocess.DEVNULL,
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
    )
    with demo:
        os.close(writes)
        if lines:
            assert os.read(reads, 1000).startswith(b"client -> ")
        os.close(reads)
        _, complaints = demo.communicate(timeout=2 * PATIENCE)
    assert demo.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in complaints
    assert "BrokenPipe" not in complaints
    assert lines or not complaints, "it has not begun"


def test_where_nobody_reads_its_progress_its_processes_end_with_it(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    command = (*DEMO, "--megabytes", "100000")
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=writes, stderr=writes
    ) as demo:
        os.close(writes)
        wait_until(lambda: len(children(demo.pid)) == 3, "it has started its processes")
        started = children(demo.pid)
        os.close(reads)
        assert demo.wait(2 * PATIENCE) == 128 + signal.SIGPIPE
    wait_until(lambda: not any(map(is_running, started)), "the processes have ended")


def test_ctrl_c_on_a_terminal_is_one_line() -> None:
    with Terminal(*DEMO, "--megabytes", "100000") as terminal:
        terminal.expect("256 KiB writes: ")
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.expect(r"\r\x1b\[Kgsplice: demo: interrupted\r\n")
        assert terminal.process.wait(PATIENCE) == 130
    assert "Traceback" not in terminal.screen


def test_a_forwarder_that_dies_is_one_clear_line_and_exit_status_1() -> None:
    with Program(*DEMO, "--megabytes", "100000") as demo:
        demo.expect("SHA-256")
        started = children(demo.process.pid)
        for pid in started[1:]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: demo.process.poll() is not None, "it has ended")
        assert demo.stop() == 1
        wait_until(lambda: not any(map(is_running, started)), "the processes have ended")
    *_, last = demo.output.splitlines()
    assert last.startswith("gsplice: demo: the recv+sendall forwarder")
    assert "Traceback" not in demo.output


def test_where_nothing_can_be_started_it_says_so_with_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert cli.main(["demo"]) == 1
    assert re.fullmatch(
        r"gsplice: demo: cannot start the backend: .*No such file or directory.*\n",
        capsys.readouterr().err,
    )


def test_a_process_that_ends_before_it_listens_is_reported_with_what_it_said() -> None:
    child = processes.Child("the backend", "gsplice.demo.no_such_module")
    try:
        with pytest.raises(DemoError, match=r"^the backend has ended: .*No module named .*no_such"):
            child.wait_until_ready()
        child._process.wait(PATIENCE)  # now it cannot even be asked
        with pytest.raises(DemoError, match=r"^the backend has ended: "):
            child.read()
    finally:
        child.end()


def test_a_process_that_does_not_end_when_it_is_asked_to_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_END", 0.05)
    child = processes.Child("the backend", "timeit", "-n1", "-r1", "import time; time.sleep(60)")
    child.end()
    assert child._process.returncode == -signal.SIGKILL


def test_a_step_in_which_nothing_happens_is_ended() -> None:
    with (
        pytest.raises(DemoError, match=r"^waiting: nothing has happened for 0\.05 seconds$"),
        alive("waiting", 0.05),
    ):
        time.sleep(PATIENCE)


def test_a_step_in_which_something_happens_may_take_its_time() -> None:
    end = time.monotonic() + 0.6
    with alive("working", 0.5) as happened:
        while time.monotonic() < end:
            happened()
