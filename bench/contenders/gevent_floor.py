"""The least that a program on gevent's loop can do: a callback, one receive and one send.

It shows what the interpreter and gevent need for a message, as ``ceiling`` shows what the kernel
needs for a stream. It is no product: it keeps no order among connections, counts nothing, and gives
up on what does not go out at once.
"""

from typing import Any

from bench.addresses import Address
from bench.contenders import Contender
from bench.contenders._gevent import relay_with

READ_SIZE = 16384


def relay(client: Any, backend: Any) -> None:
    # Imported here, as in the other files: to find the contenders must load none of them.
    from gevent.event import Event

    ended = Event()
    buffer = memoryview(bytearray(READ_SIZE))
    for source, sink in ((client, backend), (backend, client)):
        forward(source, sink, buffer, ended)
    ended.wait()


def forward(source: Any, sink: Any, buffer: memoryview, ended: Any) -> None:
    receive, send, watcher = source._sock.recv_into, sink._sock.send, source._read_event

    def readable() -> None:
        count = receive(buffer)
        if not count:
            watcher.stop()
            ended.set()
        elif send(buffer[:count]) < count:
            raise BufferError("there is no room for it")

    watcher.start(readable)


def serve(at: Address, backend: Address) -> None:
    relay_with(at, backend, relay)


CONTENDERS = [
    Contender(
        "gevent-floor",
        "watchers, recv_into and send, and nothing else; for messages",
        serve,
        by_default=False,
    )
]
