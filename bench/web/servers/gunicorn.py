"""gunicorn with one gevent worker."""

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path

from bench.addresses import announce, listening
from bench.contenders import gsplice_relay as gsplice
from bench.web.servers import Server


def missing() -> str:
    return "" if importlib.util.find_spec("gunicorn") else "gunicorn is not installed"


def serve(backend_port: int, folder: Path, worker: str, with_gsplice: bool) -> None:
    listener = listening(("127.0.0.1", 0))
    application = f"bench.web.application:create({backend_port}, {str(folder)!r}, {with_gsplice})"
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
    command += ["--worker-class", worker, "--workers", "1", "--log-level", "warning"]
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # for its control socket, else in the user's home
    announce(listener.getsockname())
    os.execv(sys.executable, [*command, application])


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


SERVERS = [
    *with_and_without("gunicorn", "gevent"),
    *with_and_without("gunicorn-pywsgi", "gevent_pywsgi", by_default=False),
]
