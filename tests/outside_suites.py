"""gevent's own tests and CPython's, with everything taken over: none fails that passes without.

    python tests/outside_suites.py
    GEVENT_LOOP=libuv python tests/outside_suites.py

Each suite is run without gsplice and with ``gsplice.patch_all()`` in every process, and the names
of the tests that fail are compared. What fails only with gsplice is run once more: a test that
depends on timing may fail at either time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gsplice

#: gevent's tests of what is taken over, and of what it stands on.
GEVENT = (
    *("test__socket.py", "test__socket_close.py", "test__socket_errors.py", "test__socket_ex.py"),
    *("test__socket_send_memoryview.py", "test__socket_timeout.py", "test__socketpair.py"),
    *("test__makefile_ref.py", "test__server.py", "test__server_pywsgi.py", "test__pywsgi.py"),
    *("test__ssl.py", "test__refcount.py", "test__hub.py", "test__events.py", "test__monkey.py"),
)
CPYTHON = ("test_shutil", "test_httplib", "test_ftplib", "test_urllib2_localnet")
SECONDS = 400.0

#: Run at the start of every process, before anything else.
SITE_CUSTOMIZE = """
import gsplice, os
gsplice.patch_all()
with open(os.environ["GSPLICE_MARKS"], "a") as marks:
    marks.write("x")
"""


class Result(NamedTuple):
    """What a suite has said."""

    status: int
    tests: int
    failed: frozenset[str]
    processes: int
    """That had gsplice turned on."""


def run(command: Sequence[str], with_gsplice: bool) -> Result:
    """Run a suite to its end."""
    with tempfile.TemporaryDirectory() as directory:
        marks = Path(directory, "marks")
        marks.touch()
        if with_gsplice:
            Path(directory, "sitecustomize.py").write_text(SITE_CUSTOMIZE)
        path = os.pathsep.join((directory, str(Path(gsplice.__file__).parents[1])))
        done = subprocess.run(
            [sys.executable, *command],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": path, "GSPLICE_MARKS": str(marks)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        failed = frozenset(re.findall(r"^(?:FAIL|ERROR): (.+)$", output, re.MULTILINE))
        counts = [int(count) for count in re.findall(r"^Ran (\d+) tests?", output, re.MULTILINE)]
        if done.returncode and not failed:
            failed = frozenset({f"exit status {done.returncode}: {output[-2000:]}"})
        return Result(done.returncode, sum(counts), failed, len(marks.read_text()))


def compare(name: str, command: Sequence[str]) -> bool:
    """Run a suite without gsplice and with it; return whether that made no difference."""
    without, taken_over = run(command, False), run(command, True)
    broken = taken_over.failed - without.failed
    if broken:
        print(f"{name}: once more, because of {sorted(broken)}", flush=True)
        broken &= run(command, True).failed
    alike = taken_over.tests >= without.tests > 0 and taken_over.processes > 0
    print(
        f"{name:24} {without.tests:5} tests, {len(without.failed)} failed without gsplice;"
        f" {taken_over.tests:5} tests, {len(broken)} failed with it alone"
        f" ({taken_over.processes} processes)",
        flush=True,
    )
    for test in sorted(broken):
        print(f"  {test}", flush=True)
    return alike and not broken


def main() -> int:
    """Run all suites; return the exit status."""
    suites = {"gevent": ["-m", "gevent.tests", "-u-network", "-j2", *GEVENT]}
    if importlib.util.find_spec("test.test_shutil") is not None:
        for name in CPYTHON:
            suites[name] = ["-m", "gevent.monkey", "--module", "unittest", f"test.{name}"]
    elif os.environ.get("CI") == "true":
        print("this Python has no tests of its own (the test package)")
        return 1
    results = [compare(name, command) for name, command in suites.items()]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
