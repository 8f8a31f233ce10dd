"""Forwards every connection on one port to another address.

    python examples/port_forwarder.py 127.0.0.1:8080 example.org:80

Shows how gsplice.relay fits into the handler of a gevent server of your own. If you want no more
than this program does, it exists ready-made: `python -m gsplice forward 127.0.0.1:8080
example.org:80` on the command line, gsplice.server.ForwardServer in a program.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import partial

from gevent import socket
from gevent.server import StreamServer

import gsplice

CONNECT_TIMEOUT = 10.0  # seconds; it bounds the connect alone, relay has its own idle_timeout


def forward(
    client: socket.socket, peer: tuple, target: tuple[str, int], idle_timeout: float | None
) -> None:
    name = f"{peer[0]}:{peer[1]}"
    try:
        with socket.create_connection(target, CONNECT_TIMEOUT) as backend:
            sent, received = gsplice.relay(client, backend, idle_timeout=idle_timeout)
    except OSError as error:  # refused, unreachable, reset, idle for too long
        print(f"{name}: {error}", file=sys.stderr)
    else:
        print(f"{name}: {sent:,} bytes up, {received:,} down", file=sys.stderr)
    # relay closes neither socket: `with` closes the backend's, StreamServer the client's.


def address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("listen", type=address, metavar="LISTEN", help="HOST:PORT to listen on")
    parser.add_argument("target", type=address, metavar="TARGET", help="HOST:PORT to forward to")
    parser.add_argument(
        "--idle-timeout",
        type=float,
        metavar="SECONDS",
        help="end a connection after so long without a byte either way (default: never)",
    )
    args = parser.parse_args()
    handler = partial(forward, target=args.target, idle_timeout=args.idle_timeout)
    server = StreamServer(args.listen, handler)
    server.start()
    print(f"listening on {server.server_host}:{server.server_port}", file=sys.stderr)
    server.serve_forever()
