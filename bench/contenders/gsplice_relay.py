"""gsplice: called from a handler as a user would, in its three modes, and as its own server."""

import importlib.util
from collections.abc import Callable
from functools import partial

from bench.contenders import Contender, announce


def _report_stats() -> None:
    import json

    import gsplice

    print(json.dumps(gsplice.stats()._asdict()), flush=True)


def serve(backend_port: int, mode: str = "auto") -> None:
    import signal

    import gevent
    from gevent import socket
    from gevent.server import StreamServer

    import gsplice

    def handle(client: socket.socket, address: object) -> None:
        with socket.create_connection(("127.0.0.1", backend_port)) as backend:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            gsplice.relay(client, backend, mode=mode)

    gevent.signal_handler(signal.SIGUSR1, _report_stats)
    server = StreamServer(("127.0.0.1", 0), handle, backlog=4096)
    server.start()
    announce(server.socket.getsockname()[1])
    server.serve_forever()


def serve_forward_server(backend_port: int) -> None:
    import signal

    import gevent

    from gsplice.server import ForwardServer

    gevent.signal_handler(signal.SIGUSR1, _report_stats)
    server = ForwardServer(("127.0.0.1", 0), ("127.0.0.1", backend_port))
    server.start()
    announce(server.socket.getsockname()[1])
    server.serve_forever()


def missing() -> str:
    return "" if importlib.util.find_spec("gsplice") else "gsplice is not installed"


def contender(
    name: str, description: str, serve: Callable[[int], None], by_default: bool = False
) -> Contender:
    return Contender(name, description, serve, missing, answers_stats=True, by_default=by_default)


CONTENDERS = [
    contender("gsplice", "gsplice.relay in a StreamServer's handler", serve, by_default=True),
    contender("gsplice-splice", 'the same with mode="splice"', partial(serve, mode="splice")),
    contender("gsplice-copy", 'the same with mode="copy"', partial(serve, mode="copy")),
    contender("gsplice-server", "gsplice.server.ForwardServer", serve_forward_server),
]
