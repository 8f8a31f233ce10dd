"""A SOCKS5 proxy (RFC 1928): the CONNECT command, without authentication.

    python examples/socks5_proxy.py 1080

Then `curl --proxy socks5h://127.0.0.1:1080 http://example.org/` goes through it.
"""

import errno
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from ipaddress import ip_address

from gevent import Timeout, socket
from gevent.server import StreamServer

import gsplice

TIMEOUT = 10.0  # seconds, for the request and for each address that is tried
HOST_UNREACHABLE, COMMAND_NOT_SUPPORTED, ADDRESS_TYPE_NOT_SUPPORTED = 4, 7, 8
FAILURES = {errno.ENETUNREACH: 3, errno.ECONNREFUSED: 5}  # all others: HOST_UNREACHABLE


def receive(sock: socket.socket, count: int) -> bytes:
    """Just count bytes, however they arrive; what follows them stays for the relay."""
    data = b""
    while len(data) < count:
        if not (piece := sock.recv(count - len(data))):
            raise ConnectionError("closed in the middle of its request")
        data += piece
    return data


def reply(code: int, address: tuple = ("0.0.0.0", 0)) -> bytes:
    host = ip_address(address[0]).packed
    return bytes([5, code, 0, 1 if len(host) == 4 else 4]) + host + address[1].to_bytes(2, "big")


def read_request(client: socket.socket) -> tuple[str | bytes, int]:
    version, count = receive(client, 2)
    if version != 5 or 0 not in receive(client, count):  # method 0: no authentication
        client.sendall(b"\x05\xff")
        raise ConnectionError("not SOCKS5, or it wants to authenticate")
    client.sendall(b"\x05\x00")
    _, command, _, kind = receive(client, 4)
    if command != 1 or kind not in (1, 3, 4):
        client.sendall(reply(COMMAND_NOT_SUPPORTED if command != 1 else ADDRESS_TYPE_NOT_SUPPORTED))
        raise ConnectionError(f"command {command} with address type {kind}")
    size = receive(client, 1)[0] if kind == 3 else {1: 4, 4: 16}[kind]
    host, port = receive(client, size), int.from_bytes(receive(client, 2), "big")
    return host if kind == 3 else str(ip_address(host)), port  # a name may stay bytes


def connect(client: socket.socket, target: tuple[str | bytes, int]) -> socket.socket:
    try:
        return socket.create_connection(target, TIMEOUT)
    except OSError as error:
        client.sendall(reply(FAILURES.get(error.errno, HOST_UNREACHABLE)))
        raise


def serve(client: socket.socket, peer: tuple) -> None:
    try:
        with Timeout(TIMEOUT, TimeoutError("no request in time")):
            target = read_request(client)
        with connect(client, target) as backend:
            client.sendall(reply(0, backend.getsockname()))
            gsplice.relay(client, backend)
    except OSError as error:
        print(f"{peer[0]}:{peer[1]}: {error}", file=sys.stderr)
    # relay closes neither socket: `with` closes the backend's, StreamServer the client's.


if __name__ == "__main__":
    cli = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    cli.add_argument("port", type=int, help="on 127.0.0.1: whoever reaches a proxy may use it")
    server = StreamServer(("127.0.0.1", cli.parse_args().port), serve)
    server.start()
    print(f"listening on {server.server_host}:{server.server_port}", file=sys.stderr)
    server.serve_forever()
