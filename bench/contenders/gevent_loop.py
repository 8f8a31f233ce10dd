"""What a gevent user writes today: ``recv`` and ``sendall``, a greenlet for each direction.

Every ratio of the bench is to this one.
"""

from pathlib import Path
from typing import Any

from bench.addresses import Address
from bench.contenders import Contender
from bench.contenders._gevent import relay_with, serve_with

READ_SIZE = 65536  # smaller ones make the loop slower, larger ones do not make it faster


def pump(source: Any, sink: Any) -> None:
    from gevent import socket

    while data := source.recv(READ_SIZE):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def relay(client: Any, backend: Any) -> None:
    # Imported here, as in the other files: to find the contenders must load none of them.
    import gevent

    up = gevent.spawn(pump, client, backend)
    pump(backend, client)
    up.get()


def serve(at: Address, backend: Address) -> None:
    relay_with(at, backend, relay)


def send_file(at: Address, path: Path) -> None:
    def handle(client: Any, address: object) -> None:
        with client, path.open("rb") as file:
            while data := file.read(READ_SIZE):
                client.sendall(data)

    serve_with(at, handle)


CONTENDERS = [
    Contender(
        "gevent",
        "recv + sendall, two greenlets for each relay",
        serve,
        send_file=send_file,
        ticks=True,
    )
]
