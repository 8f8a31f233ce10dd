"""Sends every byte back to where it came from: the smallest use of gsplice.copy.

    python examples/echo_server.py 127.0.0.1:7000
    nc 127.0.0.1 7000

The same socket is source and sink here. A long stream never enters Python: the kernel
moves it through a pipe and back into the socket.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from gevent import socket
from gevent.server import StreamServer

import gsplice


def echo(client: socket.socket, peer: tuple) -> None:
    client.settimeout(60)  # gsplice.copy waits no longer than the socket itself would
    try:
        count = gsplice.copy(client, client)
    except OSError as error:  # a reset by the client, or a minute of silence
        print(f"{peer[0]}:{peer[1]}: {error}", file=sys.stderr)
    else:
        print(f"{peer[0]}:{peer[1]}: {count:,} bytes", file=sys.stderr)
    # StreamServer closes the client's socket when its handler returns.


def address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("listen", type=address, metavar="HOST:PORT", help="port 0 takes a free one")
    args = parser.parse_args()
    server = StreamServer(args.listen, echo)
    server.start()
    print(f"listening on {server.server_host}:{server.server_port}", file=sys.stderr)
    server.serve_forever()
