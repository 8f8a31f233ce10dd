"""The contenders: a file each, found by being in this folder.

A file has a list ``CONTENDERS``. What a contender has to do is in :class:`Contender`; that is all.
"""

import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.addresses import Address
from bench.regimes import MOST_RELAYS, RelayRegime, relays_allowed


def nothing() -> str:
    return ""


@dataclass(frozen=True)
class Contender:
    """A relay.

    ``serve`` runs in a process of its own. It is given the address to listen at (with port 0 where
    it may choose one) and the backend's, connects to the backend for each client, prints ``ready
    ADDRESS`` when a client may connect (see :func:`bench.addresses.announce`), and relays until the
    process is killed. It may exec another program. It sets ``TCP_NODELAY`` on both sockets of a
    relay, as all others do. ``send_file`` is given a path instead of a backend, and sends each
    client that file.

    ``missing`` says what is not there on this machine, if anything is; the contender is then left
    out. ``source`` is compiled before the first round.
    """

    name: str
    description: str
    serve: Callable[[Address, Address], None]
    missing: Callable[[], str] = nothing
    source: Path | None = None
    send_file: Callable[[Address, Path], None] | None = None
    answers_stats: bool = False  # SIGUSR1, with gsplice.stats() as a line of JSON
    ticks: bool = False  # on SIGUSR2: see _ticker.py
    by_default: bool = True  # else only when it is asked for by name
    process_for_each: bool = False  # connection that it relays
    most_connections: int = MOST_RELAYS
    fds_each: int = 2  # that a connection needs

    def why_not(self, regime: RelayRegime) -> str:
        """What keeps it out of a regime; nothing if it can take part."""
        if regime.shape.backend is None and self.send_file is None:
            return "it sends no files"
        if regime.connections > self.most_connections:
            return f"it is not asked for more than {self.most_connections} connections"
        if regime.connections > relays_allowed(self.fds_each):
            return f"it needs {self.fds_each} fds for each connection, and may not have as many"
        if self.process_for_each and not regime.shape.connections_last:
            return "its processes have ended before their CPU can be read"
        return ""


def program(name: str) -> str | None:
    """The path of a program; Debian puts servers where a user's PATH does not look."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def execute(path: str | Path | None, *words: str | int) -> None:
    """Become that program."""
    assert path is not None
    os.execv(path, [str(path), *map(str, words)])


def file_in_memory(name: str, text: str) -> str:
    """A path at which this process, and the program it becomes, can read the text."""
    fd = os.memfd_create(name, 0)
    os.write(fd, text.encode())
    return f"/proc/self/fd/{fd}"


def declared(package: str, path: Sequence[str], name: str) -> Iterator[Any]:
    """What the modules of a package have in their lists called ``name``, by their file names."""
    for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
        if not module.name.startswith("_"):
            yield from getattr(importlib.import_module(f"{package}.{module.name}"), name, ())


def all_contenders() -> list[Contender]:
    return list(declared(__name__, __path__, "CONTENDERS"))


def contender_named(name: str) -> Contender:
    for contender in all_contenders():
        if contender.name == name:
            return contender
    raise LookupError(f"no contender is called {name!r}")
