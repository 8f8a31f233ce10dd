"""A terminal for programs that show more on one."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from typing import Any

from gevent import socket
from peers import wait_until
from programs import ENVIRONMENT, PATIENCE


class Terminal:
    """A program, and the pseudo-terminal that it runs on."""

    def __init__(self, *command: str) -> None:
        self.screen = ""
        self._fd, end = pty.openpty()
        try:
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, stdin=end, stdout=end, stderr=end, start_new_session=True
            )
        finally:
            os.close(end)

    def expect(self, expression: str) -> re.Match[str]:
        """Read until *expression* is on the screen."""
        while not (found := re.search(expression, self.screen)):
            socket.wait_read(self._fd, timeout=PATIENCE)
            self.screen += os.read(self._fd, 4096).decode()
        return found

    def hold(self) -> None:
        """Press Ctrl-S, and wait until that holds what is shown (termios(3), IXON)."""
        os.write(self._fd, b"\x13")
        with open(f"/proc/{self.process.pid}/fd/2", "wb", buffering=0) as end:
            wait_until(lambda: not select.select([], [end], [], 0)[1])

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
