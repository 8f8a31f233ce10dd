"""``python -m gsplice forward`` as a process of its own, and the connections to it."""

from __future__ import annotations

import sys

from dialled import DialledProgram
from gevent import socket
from programs import PATIENCE


class Forwarder(DialledProgram):
    """A ``python -m gsplice forward``, and the connections to it."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        super().__init__(sys.executable, "-m", "gsplice", "forward", *arguments, **environment)
        self.address = ""

    def wait_until_ready(self) -> None:
        self.address = self.expect(r"^gsplice: listening on (\S+), forwarding to \S+$")[1]

    def dial(self) -> socket.socket:
        self._dialled.append(dial(self.address))
        return self._dialled[-1]


def dial(address: str) -> socket.socket:
    """Connect to an address as it is written."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)))
    sock.settimeout(PATIENCE)
    return sock


def refuses(address: str) -> bool:
    """Whether nobody accepts at *address* any more."""
    try:
        dial(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except ConnectionResetError:
        pass  # it came between the last accept and the close: the next one is refused
    return False
