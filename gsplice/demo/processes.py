"""The processes beside the client: how they are started, asked and ended.

Invariant: a child lives no longer than its standard input is open. So it ends with the ``with``
block that started it, and also when its parent is killed.

A child says one line of JSON for its port, and one for its figures whenever it is sent a line.
What else it says is an error's, and is shown where the answer does not come.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from gsplice.demo.deadline import DemoError, alive

#: Seconds that a process may take to start, and to end.
_START: Final = 20
_END: Final = 5


#: The forwarders: the one that the other is compared with first.
NAMES: Final = ("recv+sendall", "gsplice")


class Reading(NamedTuple):
    """What a forwarder has used and done up to a moment; two of them make a difference."""

    when: float
    """Seconds, on a clock of this process."""
    cpu: float
    """Seconds of CPU time, of user and system."""
    spliced: int
    """Bytes that went kernel to kernel."""
    copied: int
    """Bytes that passed through user space."""

    def since(self, earlier: Reading) -> Reading:
        """Return what came after *earlier*."""
        return Reading(
            self.when - earlier.when,
            self.cpu - earlier.cpu,
            self.spliced - earlier.spliced,
            self.copied - earlier.copied,
        )


class Child:
    """A process that listens on a port of loopback."""

    def __init__(self, title: str, module: str, *arguments: str) -> None:
        self.title = title
        self._said: list[str] = []
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent, who ends its children
            )
        except OSError as error:
            raise DemoError(f"cannot start {title}: {error}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self.port = 0

    def wait_until_ready(self) -> None:
        """Wait until it listens."""
        with alive(f"starting {self.title}", _START):
            self.port = self._answer()["port"]

    def read(self) -> Reading:
        """Return what it has used and done so far."""
        try:
            self._questions.write("\n")
            self._questions.flush()
        except OSError:
            pass  # it has gone; why is in what it said
        answer = self._answer()
        return Reading(time.perf_counter(), answer["cpu"], answer["spliced"], answer["copied"])

    def connect(self) -> socket.socket:
        """Return a new connection to it."""
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def end(self) -> None:
        """End it, by asking or by force."""
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        for line in self._answers:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            self._said.append(line.strip())
        reason = next(filter(None, reversed(self._said)), "it said nothing")
        raise DemoError(f"{self.title} has ended: {reason}")


class Forwarder(Child):
    """A forwarder, which goes by *name* in the table."""

    def __init__(self, name: str, target: Child) -> None:
        arguments = (name, str(target.port))
        super().__init__(f"the {name} forwarder", "gsplice.demo.forwarders", *arguments)
        self.name = name


@contextlib.contextmanager
def running_forwarders() -> Iterator[list[Forwarder]]:
    """Run the backend and both forwarders, the usual one first, while the block runs."""
    with contextlib.ExitStack() as stack:
        backend = Child("the backend", "gsplice.demo.backend")
        stack.callback(backend.end)
        backend.wait_until_ready()
        forwarders = []
        for name in NAMES:
            forwarders.append(Forwarder(name, backend))
            stack.callback(forwarders[-1].end)
        for forwarder in forwarders:
            forwarder.wait_until_ready()
        yield forwarders


# The child's side.


def announce(port: int) -> None:
    """Tell the parent on which port this process listens."""
    print(json.dumps({"port": port}), flush=True)


def answer_parent(spliced: int, copied: int) -> bool:
    """Answer the parent, from whom something has come; return False where that is the end."""
    if not os.read(sys.stdin.fileno(), 1):
        return False
    figures = {"cpu": time.process_time(), "spliced": spliced, "copied": copied}
    print(json.dumps(figures), flush=True)
    return True
