"""Routes TLS connections by the server name (SNI) in the ClientHello, and decrypts nothing.

    python examples/sni_router.py 127.0.0.1:8443 a.example=10.0.0.1:443 10.0.0.2:443

The route without a name is for all other clients.
"""

import ssl
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from gevent import Timeout, socket
from gevent.server import StreamServer

import gsplice

HELLO_LIMIT = 65536  # bytes; even with post-quantum keys a ClientHello takes a few KiB


def note_name(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int:
    tls.name_asked_for = name
    return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # ends a handshake that is not ours to make


PARSER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # OpenSSL knows best what a ClientHello may be;
PARSER.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED  # whether its version and ciphers are
PARSER.set_ciphers("ALL:@SECLEVEL=0")  # good enough is for the backend to say
PARSER.sni_callback = note_name


def read_hello(client: socket.socket) -> tuple[bytes, str, bytes]:
    """The bytes that the client has sent, its server name, and the alert that would refuse it."""
    incoming, outgoing, head = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    tls = PARSER.wrap_bio(incoming, outgoing, server_side=True)
    while piece := client.recv(HELLO_LIMIT - len(head)):
        head += piece
        incoming.write(piece)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:  # only a part of it has arrived
            continue
        except ssl.SSLError:
            if not hasattr(tls, "name_asked_for"):
                raise  # not TLS, or broken
            return head, (tls.name_asked_for or "").lower(), outgoing.read()
    raise ConnectionError("no whole ClientHello")  # at end of file, or at HELLO_LIMIT


def route(client: socket.socket, peer: tuple, routes: dict, timeout: float) -> None:
    try:
        with Timeout(timeout, TimeoutError("no ClientHello in time")):
            head, name, alert = read_hello(client)
        if not (target := routes.get(name) or routes.get("")):
            client.sendall(alert)
            raise ConnectionError(f"no route for {name!r}")
        with socket.create_connection(target, timeout) as backend:
            backend.sendall(head)
            gsplice.relay(client, backend)
    except OSError as error:  # SSLError, TimeoutError and ConnectionError are among them
        print(f"{peer[0]}:{peer[1]}: {error}", file=sys.stderr)
    # relay closes neither socket: `with` closes the backend's, StreamServer the client's.


def named_address(text: str) -> tuple[str, tuple[str, int]]:
    name, _, address = text.rpartition("=")
    host, port = address.rsplit(":", 1)
    return name.lower(), (host.strip("[]"), int(port))


if __name__ == "__main__":
    cli = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    cli.add_argument("listen", type=named_address, metavar="HOST:PORT")
    cli.add_argument("routes", type=named_address, metavar="[NAME=]HOST:PORT", nargs="+")
    cli.add_argument("--timeout", type=float, default=10.0, help="to say hello, and to connect")
    args = cli.parse_args()
    server = StreamServer(args.listen[1], lambda *a: route(*a, dict(args.routes), args.timeout))
    server.start()
    print(f"listening on {server.server_host}:{server.server_port}", file=sys.stderr)
    server.serve_forever()
