"""Hosts on one machine, each with a network of its own, and the cables between them.

It leans on nothing but the standard library, iproute2 and ethtool, so that a benchmark can use it
as well as a test. Nothing in here waits on a hub.

Invariant: nothing outlives the process. A host is a network namespace that has no name: an fd
keeps it (namespaces(7)), and with that fd, the sockets and the processes of the host the kernel
takes it down, and its cables with it, also where the process was killed.

Invariant: inside ``with host.entered():`` the calling *thread* is on that host. So no greenlet may
wait in there: another one would run, and make its sockets on the wrong host. What was made in
there, a socket or a process, stays on the host; it can be used from anywhere.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("ip", "ethtool")  # of Debian's iproute2 and ethtool
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

#: What Ethernet carries at once, and what a frame has around that.
MTU = 1500
HEADER = 14

# From linux/sched.h. os.setns and os.unshare are new in Python 3.12.
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """One host; `close` gives it up."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _returning():
            _checked(_libc.unshare(_CLONE_NEWNET))
            self._namespace = _open_own_namespace()
        self.run("ip", "link", "set", "lo", "up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this host, where sockets are made and processes are started."""
        with _returning():
            _checked(_libc.setns(self._namespace, _CLONE_NEWNET))
            yield

    def run(self, *command: str) -> str:
        """Run a command to its end, which must be a success; return its standard output."""
        with self.entered():
            done = subprocess.run(
                command,
                env={**os.environ, "PATH": SYSTEM_PATH},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
            )
        if done.returncode:
            raise OSError(f"{' '.join(command)} on {self.name}: {done.stderr.strip()}")
        return done.stdout

    def set(self, setting: str, value: object) -> None:
        """Set what is below ``/proc/sys/net``, for this host alone."""
        with self.entered():
            Path("/proc/sys/net", setting).write_text(str(value))

    def count(self, table: str, counter: str) -> int:
        """Return what the kernel has counted: ``count("TcpExt", "TCPToZeroWindowAdv")``."""
        with self.entered():
            lines = [
                line.split()
                for name in ("netstat", "snmp")
                for line in Path("/proc/thread-self/net", name).read_text().splitlines()
                if line.startswith(f"{table}:")
            ]
        names, values = lines
        return int(values[names.index(counter)])

    @property
    def path(self) -> str:
        """The namespace as a file, for a command to open (``ip link set ... netns``)."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    def close(self) -> None:
        """Let go of the host; it is there as long as a socket or a process on it."""
        namespace, self._namespace = self._namespace, -1
        if namespace >= 0:
            os.close(namespace)


class Interface(NamedTuple):
    """One end of a cable."""

    host: Host
    device: str
    address: str

    def up(self) -> None:
        """Plug the cable in."""
        self.host.run("ip", "link", "set", self.device, "up")

    def down(self) -> None:
        """Pull the cable out; both ends lose their carrier."""
        self.host.run("ip", "link", "set", self.device, "down")

    def sent(self) -> tuple[int, int]:
        """Return how many bytes and how many frames have gone out here."""
        shown = self.host.run("ip", "-statistics", "link", "show", "dev", self.device)
        found = re.search(r"TX:.*\n\s*(\d+)\s+(\d+)", shown)
        assert found, shown
        return int(found[1]), int(found[2])

    def black_hole(self, address: str) -> None:
        """Have *address* be reachable as far as this host knows, and nobody there."""
        nobody = ("lladdr", "02:00:00:00:00:01", "dev", self.device, "nud", "permanent")
        self.host.run("ip", "neighbour", "add", address, *nobody)


class Network(NamedTuple):
    """Two hosts and a router between them, which forwards nothing by itself: a relay has to."""

    client: Interface
    router_to_client: Interface
    router_to_server: Interface
    server: Interface
    #: Where the client's cable is cut, if it is: something there has to carry the frames.
    cut: Host | None = None

    @property
    def router(self) -> Host:
        """Where the relay is."""
        return self.router_to_client.host


def missing() -> str | None:
    """Return why there can be no network here, None where nothing is in the way."""
    for name in PROGRAMS:
        if not shutil.which(name, path=SYSTEM_PATH):
            return f"the program {name} is not installed"
    try:
        Host("a try").close()
    except OSError as error:
        return f"this machine allows no network namespaces: {error.strerror}"
    return None


@contextmanager
def network(*, cut: bool = False) -> Iterator[Network]:
    """Two cables, client to router to server, of MTU 1500 and without segmentation offload.

    The addresses are those of RFC 5737, which are nobody's.
    """
    with ExitStack() as stack:
        client, router, server = (new_host(stack, name) for name in ("client", "router", "server"))
        middle = new_host(stack, "cut") if cut else None
        near = new_cable(stack, client, router, "192.0.2", middle)
        far = new_cable(stack, router, server, "198.51.100")
        yield Network(*near, *far, middle)


def new_host(stack: ExitStack, name: str) -> Host:
    """Return a new host that is given up with *stack*."""
    host = Host(name)
    stack.callback(host.close)
    return host


def new_cable(
    stack: ExitStack, a: Host, b: Host, network: str, cut: Host | None = None
) -> tuple[Interface, Interface]:
    """Connect two hosts, with the addresses .1 and .2 of *network*, until the end of *stack*.

    Where the cable is *cut*, two devices are there on that host, named after the other two.
    """
    ends = (
        Interface(a, f"to-{b.name}", f"{network}.1"),
        Interface(b, f"to-{a.name}", f"{network}.2"),
    )
    if cut is None:
        _lay_cable(stack, *ends)
    else:
        cut.set("ipv6/conf/all/disable_ipv6", 1)  # it has nothing to say
        for end in ends:
            _lay_cable(stack, Interface(cut, f"cut-{end.device}", ""), end)
    for end in ends:
        end.host.run("ip", "address", "add", f"{end.address}/24", "dev", end.device)
    return ends


def _lay_cable(stack: ExitStack, a: Interface, b: Interface) -> None:
    peer = ("type", "veth", "peer", "name", b.device, "netns", b.host.path)
    a.host.run("ip", "link", "add", a.device, *peer)
    # A connection that nobody has any more can keep a host for minutes, but not the cable.
    stack.callback(a.host.run, "ip", "link", "delete", a.device)
    for end in (a, b):
        end.host.run("ip", "link", "set", end.device, "mtu", str(MTU))
        # Checksums as well: what carries frames by hand needs them complete.
        offloads = [word for name in ("tso", "gso", "gro", "tx") for word in (name, "off")]
        end.host.run("ethtool", "-K", end.device, *offloads)
        end.up()


@contextmanager
def _returning() -> Iterator[None]:
    """Have the calling thread be on the host where it was, afterwards."""
    own = _open_own_namespace()
    try:
        yield
    finally:
        try:
            _checked(_libc.setns(own, _CLONE_NEWNET))
        finally:
            os.close(own)


def _open_own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
