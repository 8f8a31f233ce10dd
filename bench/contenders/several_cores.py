"""One port on several cores: a ForwardServer in each of gunicorn's workers, and HAProxy's threads.

A second worker helps where it has a core for itself, and connections to share. With
``SO_REUSEPORT`` each worker has a socket, and the kernel spreads connections over them by their
port; without, whoever wakes first accepts.
"""

import importlib.util
import sys
from functools import partial
from typing import Any

from bench.addresses import BACKLOG, Address, announce, listening
from bench.contenders import Contender, haproxy
from bench.contenders import gsplice_relay as gsplice
from bench.contenders._own_listener import reserved


def serve(at: Address, backend: Address, workers: int, reuse_port: bool = False) -> None:
    """Run gunicorn, in this process as its arbiter."""
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):
        def load_config(self) -> None:
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            from gsplice.server import ForwardServer

            return partial(ForwardServer, target=backend)

    def started(worker: Any) -> None:
        if worker.age == workers:  # those before it have been started, and their CPU is counted
            announce(address)

    settings: dict[str, object] = {
        "worker_class": "gsplice.gunicorn.ServerWorker",
        "workers": workers,
        "worker_connections": 12_000,
        "backlog": BACKLOG,
        "loglevel": "warning",
        "control_socket_disable": True,
        "post_worker_init": started,
    }
    if reuse_port:
        address = reserved(at)
        settings |= {"reuse_port": True, "bind": "{}:{}".format(*address)}
    else:
        listener = listening(at)
        address = listener.getsockname()
        settings["bind"] = f"fd://{listener.detach()}"
    sys.argv[1:] = []
    Application().run()


def missing() -> str:
    there = importlib.util.find_spec("gunicorn")
    return gsplice.missing() or ("" if there else "gunicorn is not installed")


def serve_haproxy(at: Address, backend: Address, threads: int) -> None:
    haproxy.CONFIGURATION = haproxy.CONFIGURATION.replace("nbthread 1", f"nbthread {threads}")
    haproxy.serve(at, backend, haproxy.SPLICE)


CONTENDERS = [
    *(
        Contender(
            f"gunicorn-{workers}{'-reuse-port' * reuse_port}",
            f"gunicorn, {workers} worker{'s' * (workers > 1)} with a ForwardServer each"
            + ", SO_REUSEPORT" * reuse_port,
            partial(serve, workers=workers, reuse_port=reuse_port),
            missing,
            by_default=False,
        )
        for workers, reuse_port in ((1, False), (2, False), (2, True))
    ),
    Contender(
        "haproxy-2",
        "HAProxy, two threads, splice both ways",
        partial(serve_haproxy, threads=2),
        haproxy.missing,
        by_default=False,
    ),
]
