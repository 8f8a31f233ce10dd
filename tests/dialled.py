"""Servers that are processes of their own, and the connections that a test has to them."""

from __future__ import annotations

import signal
from typing import Any

from gevent import socket
from peers import wait_until
from programs import PATIENCE, Program


class DialledProgram(Program):
    """A server; when its test is over, the connections to it are closed, and it is ended."""

    _END = signal.SIGTERM

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._dialled: list[socket.socket] = []

    def ended(self) -> int:
        """Wait for its end, while the hub runs; return its exit status."""
        wait_until(lambda: self.process.poll() is not None, PATIENCE)
        return self.stop()

    def __exit__(self, *_: Any) -> None:
        for sock in self._dialled:
            sock.close()
        if self.process.poll() is None:
            self.process.send_signal(self._END)
            self.ended()  # with the hub running: a backend in the test has to see the end as well
        super().__exit__(None, None, None)
