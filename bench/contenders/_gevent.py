"""What the contenders on gevent have in common: server, connections, ticker."""

import signal
from collections.abc import Callable
from typing import Any

from bench.addresses import Address, announce, family, listening, set_no_delay

Handler = Callable[[Any, Any], None]


def connected(backend: Address) -> Any:
    """A gevent socket; ``create_connection`` knows no unix sockets."""
    from gevent import socket

    sock = socket.socket(family(backend))
    sock.connect(backend)
    return sock


def serve_with(at: Address, handle: Handler) -> None:
    """A ``StreamServer`` that hands each client to ``handle``."""
    from gevent.server import StreamServer

    run(StreamServer(gevent_listener(at), handle))


def relay_with(at: Address, backend: Address, relay: Handler) -> None:
    """The same, with a connection to the backend for each client."""

    def handle(client: Any, address: object) -> None:
        with connected(backend) as server:
            set_no_delay(client)
            set_no_delay(server)
            relay(client, server)

    serve_with(at, handle)


def gevent_listener(at: Address) -> Any:
    from gevent import socket

    return socket.socket(fileno=listening(at).detach())


def run(server: Any) -> None:
    _tick_when_told()
    server.start()
    announce(server.socket.getsockname())
    server.serve_forever()


def _tick_when_told() -> None:
    import gevent

    from bench.contenders._ticker import Ticker

    running: list[Ticker] = []

    def tick(ticker: Ticker) -> None:
        while ticker.running:
            gevent.sleep(ticker.delay())
            ticker.tick()

    def begin_or_end() -> None:
        if running:
            running.pop().report()
        else:
            running.append(Ticker())
            gevent.spawn(tick, running[0])

    gevent.signal_handler(signal.SIGUSR2, begin_or_end)
