"""The servers: a file each, found by being in this folder.

A file has a list ``SERVERS``. What a server has to do is in :class:`Server`; that is all. There may
be a list ``SWITCHED`` as well: of servers with the application of ``bench/web/switched.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import declared, nothing
from bench.web.cases import PROXY, STATIC, UPLOAD

EVERY_KIND = frozenset({PROXY, UPLOAD, STATIC})


@dataclass(frozen=True)
class Server:
    """An HTTP server.

    ``serve`` runs in a process of its own. It is given the port of a backend on 127.0.0.1 (0 in
    cases that need none) and a folder of files. It listens on a port that it chooses on 127.0.0.1,
    prints ``ready ADDRESS`` when a client may connect, or shortly before (``announce`` in
    ``bench/addresses.py``), and serves until the process is killed: the files in ``folder/static``
    as ``/static/...``, and as ``/proxy/...`` the backend's answers to the same requests, with their
    length. It may exec another program. It has one thread, or one worker process, and keeps its
    defaults for the rest.

    ``missing`` says what is not there on this machine, if anything is; the server is then left
    out.
    """

    name: str
    description: str
    serve: Callable[[int, Path], None]
    missing: Callable[[], str] = nothing
    kinds: frozenset[str] = EVERY_KIND  # of cases that it is measured in
    as_it_is: str = ""  # the name of the same server without gsplice
    by_default: bool = True  # else only when it is asked for by name


def all_servers() -> list[Server]:
    """In the order of the file names."""
    return list(declared(__name__, __path__, "SERVERS"))


def switched_servers() -> list[Server]:
    """Those whose process turns gsplice on and off."""
    return list(declared(__name__, __path__, "SWITCHED"))


def server_named(name: str) -> Server:
    for server in (*all_servers(), *switched_servers()):
        if server.name == name:
            return server
    raise LookupError(f"no server is called {name!r}")
