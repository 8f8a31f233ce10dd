"""Where a client, a relay and a backend are, and how they reach each other.

A place is opened for each measurement: what it makes (a folder, a network) is new each time, and
gone when it is closed.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from bench.addresses import Address
from bench.namespaces import BACKEND_HOST, CLIENT_HOST, RELAY_HOST, hosts_on_veth, why_no_hosts

ANY_PORT: Address = ("127.0.0.1", 0)


@dataclass(frozen=True)
class Opened:
    """A place that is there.

    The addresses are those to listen at; where a port is 0, it is the listener that knows it.
    """

    relay: Address = ANY_PORT
    backend: Address = ANY_PORT
    prefixes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """What runs a command where that host is; no process is added."""
        return [*self.prefixes.get(host, ()), *words]


@dataclass(frozen=True)
class Place:
    """How to open it, and why it cannot be had here, if so."""

    open: Callable[[], AbstractContextManager[Opened]]
    missing: Callable[[], str] = lambda: ""


@contextmanager
def _loopback() -> Iterator[Opened]:
    yield Opened()


@contextmanager
def _unix_to_tcp() -> Iterator[Opened]:
    with tempfile.TemporaryDirectory() as folder:
        yield Opened(relay=os.path.join(folder, "relay"))


@contextmanager
def _tcp_to_unix() -> Iterator[Opened]:
    with tempfile.TemporaryDirectory() as folder:
        yield Opened(backend=os.path.join(folder, "backend"))


@contextmanager
def _veth() -> Iterator[Opened]:
    with hosts_on_veth() as hosts:
        prefixes = {name: host.prefix for name, host in hosts.items()}
        yield Opened((hosts[RELAY_HOST].address, 0), (hosts[BACKEND_HOST].address, 0), prefixes)


LOOPBACK = Place(_loopback)
UNIX_TO_TCP = Place(_unix_to_tcp)
TCP_TO_UNIX = Place(_tcp_to_unix)
VETH = Place(_veth, why_no_hosts)

__all__ = [
    "BACKEND_HOST",
    "CLIENT_HOST",
    "LOOPBACK",
    "RELAY_HOST",
    "TCP_TO_UNIX",
    "UNIX_TO_TCP",
    "VETH",
    "Opened",
    "Place",
]
