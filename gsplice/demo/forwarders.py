"""The two forwarders that are compared, a process each: the first argument says which."""

from __future__ import annotations

import sys
from typing import Any, Final

import gevent
from gevent import socket
from gevent.server import StreamServer

import gsplice
from gsplice.demo import processes
from gsplice.server import ForwardServer

_Address = tuple[str, int]

#: Bytes that the usual code receives at once. Larger ones are no faster: the rest of a big buffer
#: has left the processor's cache before it is sent.
BUFFER_SIZE: Final = 64 * 1024


def recv_and_sendall(target: _Address) -> StreamServer:
    """Return the forwarder as it is usually written with gevent."""

    def serve(client: socket.socket, _: Any) -> None:
        with socket.create_connection(target) as backend:
            for sock in (client, backend):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up = gevent.spawn(copy, client, backend)
            down = gevent.spawn(copy, backend, client)
            gevent.joinall((up, down))

    def copy(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(BUFFER_SIZE):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    return StreamServer(("127.0.0.1", 0), serve)


def gsplice_server(target: _Address) -> StreamServer:
    """Return the forwarder that is ready to run."""
    return ForwardServer(("127.0.0.1", 0), target)


def serve(name: str, port: int) -> None:
    """Forward to *port* until the parent has gone."""
    make = dict(zip(processes.NAMES, (recv_and_sendall, gsplice_server), strict=True))[name]
    server = make(("127.0.0.1", port))
    server.start()
    processes.announce(server.socket.getsockname()[1])
    while True:
        socket.wait_read(sys.stdin.fileno())
        stats = gsplice.stats()
        if not processes.answer_parent(stats.spliced, stats.copied):
            return


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
