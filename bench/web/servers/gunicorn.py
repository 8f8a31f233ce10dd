"""gunicorn with one gevent worker."""

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path

from bench.addresses import announce, listening
from bench.contenders import gsplice_relay as gsplice
from bench.web.cases import BYTES, PROXY, STATIC
from bench.web.servers import Server

IDLE_SECONDS = 60  # that a client's connection may be idle: more than between two batches


def missing() -> str:
    return "" if importlib.util.find_spec("gunicorn") else "gunicorn is not installed"


def serve(backend_port: int, folder: Path, worker: str, with_gsplice: bool) -> None:
    create = f"bench.web.application:create({backend_port}, {str(folder)!r}, {with_gsplice})"
    become_gunicorn(folder, "--worker-class", worker, create)


def serve_switched(backend_port: int, folder: Path, worker: str) -> None:
    create = f"bench.web.switched:create({backend_port}, {str(folder)!r})"
    become_gunicorn(folder, "--worker-class", worker, "--keep-alive", str(IDLE_SECONDS), create)


def become_gunicorn(folder: Path, *words: str) -> None:
    listener = listening(("127.0.0.1", 0))
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
    command += ["--workers", "1", "--log-level", "warning"]
    # When it is told to end nothing is under way, and its worker would notice within a second.
    command += ["--graceful-timeout", "0", *words]
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # for its control socket, else in the user's home
    announce(listener.getsockname())
    os.execv(sys.executable, command)


def with_and_without(name: str, worker: str, by_default: bool = True) -> list[Server]:
    description = f"gunicorn -k {worker}, one worker,"
    plain = partial(serve, worker=worker, with_gsplice=False)
    spliced = partial(serve, worker=worker, with_gsplice=True)
    return [
        Server(name, f"{description} as it is", plain, missing, by_default=by_default),
        Server(
            f"{name}-gsplice",
            f"{description} after gsplice.patch_all()",
            spliced,
            lambda: missing() or gsplice.missing(),
            as_it_is=name,
            by_default=by_default,
        ),
    ]


def with_and_without_in_turn(name: str, worker: str) -> Server:
    return Server(
        f"{name}-switched",
        f"gunicorn -k {worker}, one worker",
        partial(serve_switched, worker=worker),
        lambda: missing() or gsplice.missing(),
        frozenset({PROXY, STATIC, BYTES}),
    )


SERVERS = [
    *with_and_without("gunicorn", "gevent"),
    *with_and_without("gunicorn-pywsgi", "gevent_pywsgi", by_default=False),
]
SWITCHED = [
    with_and_without_in_turn("gunicorn", "gevent"),
    with_and_without_in_turn("gunicorn-pywsgi", "gevent_pywsgi"),
]
