"""Forked children, for tests that have a process of their own to fork."""

from __future__ import annotations

import contextlib
import os
import socket as standard_socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from peers import (
    MORE_THAN_BUFFERS,
    Line,
    connected,
    pattern,
    receive,
    send_and_end,
    wait_until,
    waits_to_read,
    waits_to_write,
)

import gsplice
from gsplice import _account, _hub
from gsplice._pump import Pump

# That the process has threads is no news: the hub's own.
THREADS_ARE_NO_NEWS = "error,ignore::DeprecationWarning"


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


def close(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


def move_own_bytes(key: int, mode: str = "splice") -> None:
    """Have a transfer of one's own, and look at every byte of it."""
    own, data = Line(*connected("unix"), *connected("unix")), pattern(700_000, key)
    gevent.spawn(send_and_end, own.client, data)
    received = gevent.spawn(receive, own.backend)
    transfer = gsplice.Transfer(own.source, own.sink, mode=mode).start()
    assert transfer.get(timeout=20) == len(data)
    close(own.sink)
    assert received.get() == data
    close(*own)


class Methods:
    """Something that is read by its own method alone."""

    def __init__(self, sock: socket.socket) -> None:
        self.recv = sock.recv


class Parent:
    """A process with a transfer in the state that a test is about."""

    def __init__(self, state: str) -> None:
        self.data = pattern(MORE_THAN_BUFFERS, 1)
        if state == "pipe-empty":
            self.line = Line(*connected("unix"), *connected("unix"))
        else:
            self.line, _ = line_with_client_in_thread(self.data)
        self.is_empty = state == "pipe-empty"
        mode = "copy" if state == "copy-stalled" else "splice"
        source: Any = self.line.source
        if state == "methods-stalled":
            source = Methods(source)
        self.transfer = gsplice.Transfer(source, self.line.sink, mode=mode).start()
        self.told: list[Any] = []
        self.transfer.rawlink(self.told.append)
        if self.is_empty:
            wait_until(lambda: waits_to_read(self.line.source))
        else:
            wait_until(lambda: waits_to_write(self.line.sink))

    def go_on(self) -> None:
        """Have every byte come out, with whatever happens beside."""
        if self.is_empty:
            gevent.spawn(send_and_end, self.line.client, self.data)
        assert receive(self.line.backend, len(self.data)) == self.data
        assert self.transfer.get(timeout=20) == len(self.data)
        assert self.transfer.undelivered == b""
        close(*self.line)
