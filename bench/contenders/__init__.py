"""The contenders: a file each, found by being in this folder.

A file has a list ``CONTENDERS``. What a contender has to do is in :class:`Contender`; that is all.
"""

import importlib
import os
import pkgutil
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BACKLOG = 4096


def nothing() -> str:
    return ""


@dataclass(frozen=True)
class Contender:
    """A relay.

    ``serve`` runs in a process of its own. It is given the backend's port on 127.0.0.1, listens
    on a port that it chooses there, connects to the backend for each client, prints ``ready PORT``
    when a client may connect (see :func:`announce`), and relays until the process is killed. It may
    exec another program. It sets ``TCP_NODELAY`` on both sockets of a relay, as all others do.

    ``missing`` says what is not there on this machine, if anything is; the contender is then left
    out.
    """

    name: str
    description: str
    serve: Callable[[int], None]
    missing: Callable[[], str] = nothing
    answers_stats: bool = False  # SIGUSR1, with gsplice.stats() as a line of JSON
    by_default: bool = True  # else only when it is asked for by name


def announce(port: int) -> None:
    print(f"ready {port}", flush=True)


def program(name: str) -> str | None:
    """The path of a program; Debian puts servers where a user's PATH does not look."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def inherited_listener() -> socket.socket:
    """A socket that listens, for a program that does not say when it does."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.set_inheritable(True)
    return listener


def declared(package: str, path: Sequence[str], name: str) -> Iterator[Any]:
    """What the modules of a package have in their lists called ``name``, by their file names."""
    for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
        if not module.name.startswith("_"):
            yield from getattr(importlib.import_module(f"{package}.{module.name}"), name)


def all_contenders() -> list[Contender]:
    return list(declared(__name__, __path__, "CONTENDERS"))


def contender_named(name: str) -> Contender:
    for contender in all_contenders():
        if contender.name == name:
            return contender
    raise LookupError(f"no contender is called {name!r}")
