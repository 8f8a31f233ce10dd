"""``python tests/load.py ROLE ...``: the processes of a run under pressure.

A forwarder with gsplice in it, a backend behind it and clients in front of it. Each is told what to
do in lines on its standard input, answers in lines of JSON, and ends with its standard input.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.fileobject import FileObject
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from gevent.server import StreamServer
from streams import LONGEST, Backend, Client, Ending, Plan, Service, Tally

import gsplice
from gsplice._pipe import PIPE_CAPACITY
from gsplice.server import ForwardServer

BACKLOG = 4096
#: Where connections come from: one address has ports for 28,000 of them, TIME_WAIT included.
SOURCES = [f"127.0.0.{last}" for last in range(1, 9)]
#: Beyond them a pipe of the kernel's own making is a page or two (pipe(7)).
LEAST_PIPE = 64 * 1024


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def lines() -> Iterator[list[str]]:
    """The words of each line that comes; the hub runs meanwhile."""
    with FileObject(sys.stdin.fileno(), "rb", closefd=False) as commands:
        for line in commands:
            yield line.decode().split()


def obey(commands: dict[str, Callable[..., dict[str, Any]]]) -> None:
    for name, *arguments in lines():
        say(**commands[name](*map(int, arguments)))


def raise_fd_limit() -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class MallocFigures(ctypes.Structure):
    """The ``struct mallinfo2`` of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


#: Not every C library tells: glibc does, from 2.33 on.
MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None)
if MALLINFO is not None:
    MALLINFO.restype = MallocFigures


def allocated() -> int:
    """Return how many bytes that were got from malloc(3) are in use; 0 if nobody knows."""
    if MALLINFO is None:
        return 0
    figures = MALLINFO()
    return int(figures.uordblks + figures.hblkhd)


def dial(port: int, number: int) -> socket.socket:
    source = SOURCES[number % len(SOURCES)]
    return socket.create_connection(("127.0.0.1", port), source_address=(source, 0))


# The backend.


def run_backend() -> None:
    raise_fd_limit()
    tally = Tally.empty()
    server = StreamServer(("127.0.0.1", 0), Backend(tally), backlog=BACKLOG)
    server.start()
    print(f"ready {server.server_port}", flush=True)
    obey({"tally": lambda: {"counts": tally.counts, "complaints": tally.complaints}})


# The clients.


def some_plans(first: int, count: int) -> Iterator[Plan]:
    """Conversations of all kinds, and most of them short, as they are on a network."""
    for number in range(first, first + count):
        dice = random.Random(number)
        ending = Ending.CLEAN if dice.random() < 0.6 else dice.choice(list(Ending))
        up, down = (_some_length(dice) for _ in range(2))
        yield Plan(number, up, down, ending)


def _some_length(dice: random.Random) -> int:
    most = dice.choices((2_000, 20_000, 200_000), (80, 15, 5))[0]
    return dice.randrange(most)


def in_turn(port: int, first: int, count: int, at_once: int) -> dict[str, Any]:
    """Have conversations one after another, *at_once* at a time."""
    tally = Tally.empty()

    def converse(plan: Plan) -> None:
        try:
            sock = dial(port, plan.number)
        except OSError as error:
            tally.wrong(plan, error)
        else:
            Client(plan, tally).converse(sock)

    pool = Pool(at_once)
    for plan in some_plans(first, count):
        pool.spawn(converse, plan)
    pool.join()
    return {"counts": tally.counts, "complaints": tally.complaints}


class Crowd:
    """Conversations at once, which stop halfway until all of them are there.

    :param ports: number of conversations by the port that they go to.
    :param stalled: so many of them have much to hear, and hear none of it meanwhile.
    """

    def __init__(self, ports: dict[int, int], first: int, stalled: int) -> None:
        self._tally = Tally.empty()
        self._waiting = 0
        self._go_on = Event()
        numbers = iter(range(first, first + sum(ports.values())))
        targets = [port for port, count in ports.items() for _ in range(count)]
        self._all = [
            gevent.spawn(self._converse, port, number, number - first < stalled)
            for port, number in zip(targets, numbers, strict=True)
        ]

    def until_half(self) -> dict[str, Any]:
        """Wait until there is half of an answer on each connection."""
        while self._waiting + self._tally.counts["wrong"] < len(self._all):
            gevent.sleep(0.05)
        return {"waiting": self._waiting}

    def to_the_end(self) -> dict[str, Any]:
        self._go_on.set()
        gevent.joinall(self._all, raise_error=True)
        return {"counts": self._tally.counts, "complaints": self._tally.complaints}

    def _converse(self, port: int, number: int, stalled: bool) -> None:
        dice = random.Random(number)
        up, down = (dice.randrange(1_000, 64_000) for _ in range(2))
        plan = Plan(number, up, LONGEST if stalled else down)
        client = Client(plan, self._tally, up if stalled else down // 2, self._at_half)
        try:
            with CONNECTING:
                sock = dial(port, number)
        except OSError as error:
            self._tally.wrong(plan, error)
        else:
            client.converse(sock)

    def _at_half(self) -> None:
        self._waiting += 1
        self._go_on.wait()


#: No more than the backlog holds: a SYN that is dropped comes again after a second.
CONNECTING = BoundedSemaphore(BACKLOG // 8)


def run_clients() -> None:
    raise_fd_limit()
    crowds: list[Crowd] = []

    def until_half(port: int, others: int, other_port: int, *rest: int) -> dict[str, Any]:
        first, count, stalled = rest
        crowds.append(Crowd({port: count - others, other_port: others}, first, stalled))
        return crowds[-1].until_half()

    print("ready", flush=True)
    obey(
        {
            "in_turn": in_turn,
            "until_half": until_half,
            "to_the_end": lambda: crowds.pop().to_the_end(),
        }
    )


# The forwarder.


class Forwarder:
    """A `ForwardServer`, and a server whose relays end in this process."""

    def __init__(self, backend_port: int) -> None:
        self._dialled = 0
        self._backend_port = backend_port
        self._services = Tally.empty()
        self._hoard: list[int] = []
        self.server = ForwardServer(("127.0.0.1", 0), self._dial, backlog=BACKLOG)
        self.services = StreamServer(("127.0.0.1", 0), self._serve, backlog=BACKLOG)
        for server in (self.server, self.services):
            server.start()

    def _dial(self, _: Any) -> socket.socket:
        self._dialled += 1
        return dial(self._backend_port, self._dialled)

    def _serve(self, sock: socket.socket, _: Any) -> None:
        with sock:
            Service(self._services).relayed(lambda service: gsplice.relay(sock, service))

    def figures(self) -> dict[str, Any]:
        return {
            "connections": self.server.connections,
            "accepted": self.server.accepted,
            "watchers": gevent.get_hub().loop.activecnt,  # 0 on libuv, which does not count them
            "blocks": sys.getallocatedblocks(),
            "allocated": allocated(),
            "cpu": time.process_time(),
            "services": self._services.counts,
            "complaints": self._services.complaints,
            **gsplice.stats()._asdict(),
        }

    def collect(self) -> dict[str, Any]:
        """What is garbage now would be collected some time."""
        return {"collected": gc.collect()}

    def use_up_pipe_quota(self) -> dict[str, Any]:
        """Open pipes, until the kernel gives no more than a page or two."""
        while True:
            ends = os.pipe()
            self._hoard += ends
            try:
                fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE_CAPACITY)
            except PermissionError:
                pass  # past the quota, or it would be
            if fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) < LEAST_PIPE:
                return {"pipes": len(self._hoard) // 2}

    def free(self) -> dict[str, Any]:
        while self._hoard:
            os.close(self._hoard.pop())
        return {}

    def leave_fds(self, count: int) -> dict[str, Any]:
        """Have no more than *count* fds beside those that are open."""
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while (fd := os.dup(0)) < highest:
            self._hoard.append(fd)  # the limit is one of numbers, so none may be left out
        os.close(fd)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + count, most))
        return {"limit": fd + count}

    def allow_fds(self) -> dict[str, Any]:
        return {"limit": raise_fd_limit()}


def run_forwarder(backend_port: str, user: str = "") -> None:
    raise_fd_limit()
    # What the hub keeps open is open before fds are counted, and what is imported late may be
    # where another user cannot read.
    socket.getaddrinfo("127.0.0.1", 0)
    if user:
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    forwarder = Forwarder(int(backend_port))
    print(f"ready {forwarder.server.server_port} {forwarder.services.server_port}", flush=True)
    obey(
        {
            "figures": forwarder.figures,
            "collect": forwarder.collect,
            "use_up_pipe_quota": forwarder.use_up_pipe_quota,
            "free": forwarder.free,
            "leave_fds": forwarder.leave_fds,
            "allow_fds": forwarder.allow_fds,
        }
    )


def main(role: str, *arguments: str) -> None:
    roles = {"backend": run_backend, "clients": run_clients, "forwarder": run_forwarder}
    roles[role](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
