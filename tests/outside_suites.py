"""gevent's own tests and CPython's, with everything taken over: none fails that passes without.

    python tests/outside_suites.py                        # on the loop that gevent chooses
    python tests/outside_suites.py libev-cffi libuv       # on these (see GEVENT_LOOP)

On every further loop it is gevent's tests of sockets and servers alone.

Each suite is run without gsplice and with ``gsplice.patch_all()`` in every process, and the names
of the tests that fail are compared. What fails only with gsplice is run up to twice more: a test
that depends on timing may fail at any time, and one that gsplice breaks fails each time.
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

#: gevent's event loops on Linux, as GEVENT_LOOP names them.
LOOPS = ("libev-cext", "libev-cffi", "libuv")
#: gevent's tests of what is taken over: its sockets and servers.
SOCKETS = (
    *("test__socket.py", "test__socket_close.py", "test__socket_errors.py", "test__socket_ex.py"),
    *("test__socket_send_memoryview.py", "test__socket_timeout.py", "test__socketpair.py"),
    *("test__makefile_ref.py", "test__server.py", "test__server_pywsgi.py", "test__pywsgi.py"),
    *("test__ssl.py", "test__refcount.py"),
)
#: And of what they stand on: for a process of their own, on loops other than the first.
BELOW = ("test__hub.py", "test__events.py", "test__monkey.py")
CPYTHON = ("test_shutil", "test_httplib", "test_ftplib", "test_urllib2_localnet")
SECONDS = 400.0
RUNS_MORE = 2

#: Run at the start of every process, before anything else. An error here would end nothing.
SITE_CUSTOMIZE = """
import os
def mark(what):
    with open(os.environ["GSPLICE_MARKS"], "a") as marks:
        marks.write(what)
mark("started ")
import gsplice
gsplice.patch_all()
mark("patched ")
"""


class Result(NamedTuple):
    """What a suite has said."""

    status: int
    tests: int
    failed: frozenset[str]
    started: int
    """Processes that should have had gsplice turned on."""
    patched: int
    """Those that had."""


def run(command: Sequence[str], loop: str, with_gsplice: bool) -> Result:
    """Run a suite to its end, on an event loop of gevent's; "" is the one that it chooses."""
    with tempfile.TemporaryDirectory() as directory:
        marks = Path(directory, "marks")
        marks.touch()
        if with_gsplice:
            Path(directory, "sitecustomize.py").write_text(SITE_CUSTOMIZE)
        path = os.pathsep.join((directory, str(Path(gsplice.__file__).parents[1])))
        done = subprocess.run(
            [sys.executable, *command],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "GSPLICE_MARKS": str(marks),
                **({"GEVENT_LOOP": loop} if loop else {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        failed = frozenset(re.findall(r"^\s*(?:FAIL|ERROR): (.+)$", output, re.MULTILINE))
        counts = [int(count) for count in re.findall(r"^Ran (\d+) tests?", output, re.MULTILINE)]
        if done.returncode and not failed:
            failed = frozenset({f"exit status {done.returncode}: {output[-2000:]}"})
        words = marks.read_text().split()
        return Result(
            done.returncode, sum(counts), failed, words.count("started"), words.count("patched")
        )


def compare(name: str, command: Sequence[str], loop: str) -> bool:
    """Run a suite without gsplice and with it; return whether that made no difference."""
    name = f"{name}, {loop}" if loop else name
    without, taken_over = run(command, loop, False), run(command, loop, True)
    broken = taken_over.failed - without.failed
    for _ in range(RUNS_MORE):
        if broken:
            print(f"{name}: once more, because of {sorted(broken)}", flush=True)
            broken &= run(command, loop, True).failed
    alike = taken_over.tests >= without.tests > 0 and taken_over.patched == taken_over.started > 0
    print(
        f"{name:28} {without.tests:5} tests, {len(without.failed)} failed without gsplice;"
        f" {taken_over.tests:5} tests, {len(broken)} failed with it alone"
        f" ({taken_over.patched} of {taken_over.started} processes)",
        flush=True,
    )
    for test in sorted(broken):
        print(f"  {test}", flush=True)
    return alike and not broken


def gevents(*tests: str) -> list[str]:
    """Return the command that runs *tests* of gevent's."""
    return ["-m", "gevent.tests", "-u-network", "-j2", *tests]


def cpythons(name: str) -> list[str]:
    """Return the command that runs a test module of CPython's on gevent."""
    if importlib.util.find_spec(f"test.{name}") is None:
        sys.exit("this Python has no tests of its own (the test package)")
    return ["-m", "gevent.monkey", "--module", "unittest", f"test.{name}"]


def main(loops: Sequence[str]) -> int:
    """Run all suites; return the exit status."""
    for loop in loops:
        if loop not in LOOPS:
            sys.exit(f"no event loop is called {loop!r}; there are {', '.join(LOOPS)}")
    first, *others = loops or [""]
    plan = [("gevent", gevents(*SOCKETS, *BELOW), first)]
    plan += [(name, cpythons(name), first) for name in CPYTHON]
    plan += [("gevent", gevents(*SOCKETS), loop) for loop in others]
    results = [compare(*one) for one in plan]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
