"""Forked children, for tests that have a process of their own to fork."""

from __future__ import annotations

import contextlib
import os
import socket as standard_socket
import sys
import threading
import traceback
from collections.abc import Callable

from gevent import socket
from peers import Line, connected, wait_until

from gsplice import _account, _hub
from gsplice._pump import Pump


def pipes_of(pid: int | str) -> set[str]:
    """Return the pipes that a process has open, by what the kernel calls them."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {name for name in found if name.startswith("pipe:")}


def gsplices_pipes() -> set[str]:
    """Return the pipes that gsplice has open in this process, in pools and in transfers."""
    pipes = [pipe for resources in _hub._all for pipe in resources.pipes._idle]
    pipes += [engine._pipe for engine in _account._totals.running if isinstance(engine, Pump)]
    return {os.readlink(f"/proc/self/fd/{pipe.read_fd}") for pipe in pipes if pipe is not None}


def ended_child(pid: int) -> tuple[int, int] | None:
    """Return what ``waitpid`` says of a child that has ended, None of one that has not."""
    found = os.waitpid(pid, os.WNOHANG)
    return found if found[0] else None


def in_child(work: Callable[[], None], fork: Callable[[], int]) -> Callable[[], None]:
    """Fork a child that does *work*; return what waits for it, and checks that it was a success."""
    pid = fork()
    if pid == 0:
        try:
            work()
            sys.stderr.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def wait() -> None:
        ended, status = wait_until(lambda: ended_child(pid))
        assert (ended, status) == (pid, 0)

    return wait


def line_with_client_in_thread(data: bytes) -> tuple[Line, threading.Thread]:
    """Return a line whose client is no greenlet: a forked child would have one as well."""
    client, theirs = standard_socket.socketpair()
    source = socket.socket(fileno=theirs.detach())

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return Line(client, source, *connected("unix")), thread
