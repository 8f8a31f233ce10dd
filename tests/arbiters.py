"""gunicorns with gsplice's workers, as processes of their own, and the connections to them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dialled import DialledProgram
from gevent import socket
from gevent.event import Event
from peers import Spawn, pattern, receive, send_and_end
from programs import PATIENCE

from gsplice import gunicorn as gunicorn_module

HALF = 3_000_001  # bytes
LISTEN = "0A"  # the state, in /proc/net/tcp

#: Applications; each tells a client by which process it is served, in 8 bytes, and is an echo then.
APPLICATIONS = """
import os
from functools import partial

from gevent import socket
from gevent.server import StreamServer

import gsplice
from gsplice.server import ForwardServer


def name():
    return b"%08d" % os.getpid()


def handle(client, address):
    client.sendall(name())
    gsplice.copy(client, client)


def forwarder(backend, **options):
    def connect(address):
        sock = socket.create_connection(("127.0.0.1", backend))
        sock.sendall(name())
        return sock

    return partial(ForwardServer, target=connect, **options)


class Echo(StreamServer):
    def handle(self, client, address):
        handle(client, address)


def echo(**options):
    return partial(Echo, **options)


def no_server(listener):
    return listener.getsockname()
"""


#: Between two signs of life a worker does not look whether it is to end.
CONFIGURATION = """
import gsplice.gunicorn

gsplice.gunicorn._HEARTBEAT = {heartbeat}


def post_worker_init(worker):
    worker.log.info("Booted: %s", worker.pid)
"""
OWN_HEARTBEAT = gunicorn_module._HEARTBEAT
SHORT_HEARTBEAT = 0.02


class Gunicorn(DialledProgram):
    """A ``gunicorn``, and the connections to it."""

    _END = signal.SIGQUIT

    def __init__(
        self,
        directory: Path,
        worker: str,
        application: str,
        *options: str,
        heartbeat: float = SHORT_HEARTBEAT,
    ) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "applications.py").write_text(APPLICATIONS)
        (directory / "gunicorn.conf.py").write_text(CONFIGURATION.format(heartbeat=heartbeat))
        super().__init__(
            # Not "-m gunicorn": to that it cannot re-execute itself.
            *(Path(sys.executable).with_name("gunicorn"), "-k", f"gsplice.gunicorn.{worker}"),
            *options,
            f"applications:{application}",
            cwd=directory,
            XDG_RUNTIME_DIR=str(directory),  # for its control socket
        )
        self.address: Any = None

    def wait_until_ready(self, workers: int) -> None:
        """Wait until it listens, or is to listen, and has started its workers."""
        found = self.expect(r"Listening at: (?:https?://(\S+):(\d+)|unix:(\S+))? \(\d+\)$")
        self.address = found[3] or (found[1] and (found[1], int(found[2])))
        self.wait_until_booted(workers)

    def wait_until_booted(self, workers: int) -> None:
        """Wait until it has started so many workers, or so many more."""
        for _ in range(workers):
            self.expect("Booted: ")  # a signal that comes before is lost, as with any worker

    def workers(self) -> set[int]:
        """Return the pids of its workers."""
        pid = self.process.pid
        return {int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()}

    def listeners(self) -> set[str]:
        """Return the sockets that listen at its port, as /proc/PID/fd calls them."""
        port = f":{self.address[1]:04X}"
        rows = [line.split() for line in read("/proc/net/tcp").splitlines()]
        return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == LISTEN}

    def accepts(self, pid: int) -> bool:
        """Whether a worker still listens."""
        return not self.listeners().isdisjoint(open_files(pid))

    def dial(self) -> tuple[socket.socket, int]:
        """Return a connection, and the pid of the worker that serves it."""
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        sock = socket.socket(family)
        self._dialled.append(sock)
        sock.settimeout(PATIENCE)
        sock.connect(self.address)
        return sock, int(receive(sock, 8))

    def dial_worker(self, pid: int) -> socket.socket:
        """Return a connection that a certain worker serves: the others cannot accept it."""
        others = self.workers() - {pid}
        for other in others:
            os.kill(other, signal.SIGSTOP)
        try:
            sock, served_by = self.dial()
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)
        assert served_by == pid
        return sock


def read(path: str) -> str:
    """Return what a file of /proc says; nothing where its process is no more."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def open_files(pid: int) -> list[str]:
    """Return what a process has open."""
    with contextlib.suppress(FileNotFoundError):
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return []


def runs(pid: int) -> bool:
    """Whether a process runs, and has not ended and only waits for its parent to notice."""
    return "(zombie)" not in read(f"/proc/{pid}/status") and os.path.exists(f"/proc/{pid}")


def send_in_halves(sock: socket.socket, goes_on: Event) -> None:
    """Send one half; the other one, and the end of file, once it *goes_on*."""
    data = pattern(2 * HALF)
    sock.sendall(data[:HALF])
    goes_on.wait()
    send_and_end(sock, data[HALF:])


def begin_in_each_worker(program: Gunicorn, spawn: Spawn) -> dict[int, Callable[[], None]]:
    """Have a transfer under way in each worker; return what finishes and checks it."""
    transfers = {}
    for pid in sorted(program.workers()):
        sock, goes_on = program.dial_worker(pid), Event()
        spawn(send_in_halves, sock, goes_on)
        so_far = receive(sock, 1000)  # it has begun, and the rest of the half is in flight
        transfers[pid] = partial(finish, sock, so_far, goes_on)
    assert len(transfers) == 2
    return transfers


def finish(sock: socket.socket, so_far: bytes, goes_on: Event) -> None:
    """Have the second half sent; all of it must have come back then, and the end of file."""
    goes_on.set()
    assert so_far + receive(sock) == pattern(2 * HALF)
