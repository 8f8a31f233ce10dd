"""gsplice: called from a handler as a user would, in its three modes, and as its own server."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.addresses import Address
from bench.contenders import Contender
from bench.contenders._gevent import gevent_listener, relay_with, run, serve_with


def _answer_stats() -> None:
    import json
    import signal

    import gevent

    import gsplice

    def report() -> None:
        print(json.dumps(gsplice.stats()._asdict()), flush=True)

    gevent.signal_handler(signal.SIGUSR1, report)


def serve(at: Address, backend: Address, **options: Any) -> None:
    import gsplice

    _answer_stats()

    def relay(client: Any, server: Any) -> None:
        gsplice.relay(client, server, **options)

    relay_with(at, backend, relay)


def serve_forward_server(at: Address, backend: Address) -> None:
    from gsplice.server import ForwardServer

    _answer_stats()
    run(ForwardServer(gevent_listener(at), backend))


def send_file(at: Address, path: Path, **options: Any) -> None:
    import gsplice

    def handle(client: Any, address: object) -> None:
        with client, path.open("rb") as file:
            gsplice.copy(file, client, **options)

    serve_with(at, handle)


def missing() -> str:
    return "" if importlib.util.find_spec("gsplice") else "gsplice is not installed"


def contender(
    name: str,
    description: str,
    serve: Callable[[Address, Address], None],
    send_file: Callable[[Address, Path], None] | None = None,
    by_default: bool = True,
) -> Contender:
    return Contender(
        name,
        description,
        serve,
        missing,
        send_file=send_file,
        answers_stats=True,
        ticks=True,
        by_default=by_default,
    )


def variant(name: str, **options: Any) -> Contender:
    words = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return contender(
        name,
        f"the same with {words}",
        partial(serve, **options),
        None if "moderation" in options else partial(send_file, **options),
    )


CONTENDERS = [
    contender("gsplice", "gsplice.relay in a StreamServer's handler", serve, send_file),
    variant("gsplice-splice", mode="splice"),
    variant("gsplice-copy", mode="copy"),
    variant("gsplice-unmoderated", moderation=0),
    contender(
        "gsplice-server", "gsplice.server.ForwardServer", serve_forward_server, by_default=False
    ),
]
