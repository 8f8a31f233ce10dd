"""Child processes that speak in lines, and that never outlive the bench."""

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
READY_SECONDS = 20.0
GRACE_SECONDS = 2.0
COMPLAINT_SIZE = 8192
MANY_FDS = 40_000  # for 10,000 relays, and what else is open


class ProcessFailed(Exception):
    """A child ended, was silent, or said something else than it should have."""


class LineProcess:
    """A child that is told lines on its standard input and answers on its standard output."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        program, *words = map(str, command)
        self._name = " ".join((os.path.basename(program), *words))
        self._unread = b""
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
        self._child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
        )
        self.pid = self._child.pid

    def __enter__(self) -> "LineProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def tell(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise self._failure("has ended") from None

    def answer(self, timeout: float) -> str:
        """The next line, without its end."""
        assert self._child.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._child.stdout], [], [], remaining)[0]:
                raise self._failure(f"said nothing for {timeout:.0f} s")
            received = os.read(self._child.stdout.fileno(), 65536)
            if not received:
                raise self._failure("has ended")
            self._unread += received
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def wait_until_ready(self, timeout: float = READY_SECONDS) -> str:
        """Waits for a line ``ready ...``; returns its rest."""
        line = self.answer(timeout)
        word, _, rest = line.partition(" ")
        if word != "ready":
            raise self._failure(f"said {line!r} instead of 'ready'")
        return rest

    def last_complaint(self) -> str:
        """The end of its standard error: an exception, and what gevent adds to it."""
        # Not by seek and read: the child shares the position, and may write on.
        size = os.fstat(self._complaints.fileno()).st_size
        start = max(0, size - COMPLAINT_SIZE)
        text = os.pread(self._complaints.fileno(), COMPLAINT_SIZE, start).decode(errors="replace")
        lines = [line for line in text.splitlines() if line and not line[0].isspace()]
        return "; ".join(lines[-2:])

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def family(self) -> list[int]:
        """The child's pid, and those of the processes it has started."""
        return with_descendants(self.pid)

    def stop(self) -> None:
        """Ends the child and what it has started. A second call does nothing."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        if self._complaints.closed:
            return
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        self._signal_group(signal.SIGTERM)
        try:
            self._child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal_group(signal.SIGKILL)  # whoever of its family is left
            self._child.wait()
            self._child.stdout.close()
            self._complaints.close()

    def _signal_group(self, number: int) -> None:
        # A contender leads a group of its own (bench/contenders/__main__.py); a peer does not.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        self._child.send_signal(number)

    def _failure(self, what: str) -> ProcessFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(0.2)  # its last words are complete once it has ended
        last = self.last_complaint()
        return ProcessFailed(f"{self._name} {what}" + (f": {last}" if last else ""))


def prepare_contender() -> None:
    """What a contender's process does first."""
    _end_with_parent()
    allow_many_fds()


def _end_with_parent() -> None:
    """Even if the bench is killed, no contender stays behind; what it execs inherits this."""
    os.setpgid(0, 0)  # so that all it starts can be ended with it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def allow_many_fds() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # root may have more
        most = max(most, MANY_FDS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def with_descendants(pid: int) -> list[int]:
    """A process's pid, and those of what it has started, and what they have."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            children.setdefault(_parent(int(entry)), []).append(int(entry))
    family = [pid]
    for member in family:  # grows while it is walked
        family += children.get(member, [])
    return family


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            # The name, in parentheses, may hold spaces; the state and the parent come after it.
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has just ended
