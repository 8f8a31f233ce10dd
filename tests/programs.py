"""Programs that run beside a test, as processes of their own.

Invariant: a program ends with its ``with`` block, whatever the test did, and everything that waits
for one has a deadline. Output is read as it comes, so no program ever blocks on a full pipe.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import pytest

import gsplice

REPOSITORY = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1:0"  # an address that a program may listen on
PATIENCE = 20.0  # seconds that any single step may take on a busy machine
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))

# The processes use the gsplice that the tests use, installed or not.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(gsplice.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    ),
}


def installed(name: str) -> str:
    """The path of a program; without it the test is skipped, but fails where CI is true."""
    path = shutil.which(name, path=SYSTEM_PATH)
    if path is None:
        _skip(f"the program {name} is not installed")
    return path


def needs_module(name: str) -> None:
    """The same of a module that is not among what all tests need."""
    if importlib.util.find_spec(name) is None:
        _skip(f"the module {name} is not installed")


def _skip(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {PATIENCE:g} s still not so: {what}")
        time.sleep(0.01)


def free_port(host: str = "127.0.0.1") -> int:
    """For a program that can't take port 0 and say which one it got."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def has_ipv6_loopback() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="no IPv6 on the loopback interface")


class Program:
    """A command that runs in a session of its own, both its outputs in one."""

    def __init__(
        self, *command: str | os.PathLike[str], cwd: Path | None = None, **environment: str
    ) -> None:
        self.command = " ".join(str(word) for word in command)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=ENVIRONMENT | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._unseen: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            self._unseen.put(line)
        self._unseen.put(None)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def expect(self, pattern: str) -> re.Match[str]:
        """Waits for a line with the pattern in it, after the line expected last."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._unseen.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                pytest.fail(f"{self.command}\nnever said {pattern!r}, but:\n{self.output}")
            if match := re.search(pattern, line):
                return match

    def open_files(self) -> int:
        """How many file descriptors it holds; always 0 where the system does not tell."""
        with suppress(FileNotFoundError):
            return len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it with a signal; returns its exit status once all its output has been read."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            with suppress(ProcessLookupError):  # what it has started, and what ignores SIGTERM
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join(PATIENCE)
            assert self.process.stdout is not None
            self.process.stdout.close()


class Gunicorn(Program):
    """A ``gunicorn`` that serves a WSGI application, with one of its own kinds of worker.

    It is ended by SIGQUIT: at SIGTERM its workers take up to a second to notice.
    """

    def __init__(
        self, kind: str, application: str, port: int, *options: str, cwd: Path, **environment: str
    ) -> None:
        super().__init__(
            *(sys.executable, "-m", "gunicorn", "-k", kind, "-b", f"127.0.0.1:{port}"),
            *(*options, "--graceful-timeout", "1", application),
            cwd=cwd,
            **environment,
        )

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> int:
        return super().stop(how)


def python(*arguments: str | os.PathLike[str]) -> Program:
    return Program(sys.executable, *arguments)


def run(*command: str | os.PathLike[str], seconds: float = 60.0, **environment: str) -> str:
    """Runs a command to its end, which must be a success; returns its standard output."""
    done = subprocess.run(
        command,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
