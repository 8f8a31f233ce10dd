"""Where something listens: ``HOST:PORT`` with a numeric host, or ``unix:PATH``.

In Python an address is what `socket` takes: a pair, or the path.
"""

import socket

Address = tuple[str, int] | str

BACKLOG = 4096


def parse(text: str) -> Address:
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    return host, int(port)


def show(address: Address) -> str:
    return f"unix:{address}" if isinstance(address, str) else "{}:{}".format(*address)


def family(address: Address) -> int:
    return socket.AF_UNIX if isinstance(address, str) else socket.AF_INET


def listening(address: Address) -> socket.socket:
    """A socket that listens, which another program may be handed."""
    listener = socket.socket(family(address))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def set_no_delay(sock: socket.socket) -> None:
    """A unix socket has no delay to turn off."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def connected(address: Address) -> socket.socket:
    sock = socket.socket(family(address))
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def announce(address: Address) -> None:
    """Tell the bench that a client may connect."""
    print(f"ready {show(address)}", flush=True)
