"""``python -m gsplice forward`` as a process of its own, and the connections to it."""

from __future__ import annotations

import sys
from typing import Any

from gevent import socket
from peers import wait_until
from programs import PATIENCE, Program


class Forwarder(Program):
    """A ``python -m gsplice forward``, and the connections to it."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(sys.executable, "-m", "gsplice", "forward", *arguments)
        self.address = ""
        self._dialled: list[socket.socket] = []

    def wait_until_ready(self) -> None:
        self.address = self.expect(r"^gsplice: listening on (\S+), forwarding to \S+$")[1]

    def dial(self) -> socket.socket:
        self._dialled.append(dial(self.address))
        return self._dialled[-1]

    def ended(self) -> int:
        """Wait for it, while the hub runs; return its exit status."""
        wait_until(lambda: self.process.poll() is not None, PATIENCE)
        return self.stop()

    def __exit__(self, *_: Any) -> None:
        for sock in self._dialled:
            sock.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.ended()  # with the hub running: a backend in the test has to see the end as well
        super().__exit__(None, None, None)


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
