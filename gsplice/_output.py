"""What the command line says, on standard output and standard error.

Invariant: all of it but the log goes through `say`, and an `OutputError` comes from nowhere else.
So an end of the output is never mistaken for one of a connection, whose errors are of the same
classes.

Invariant: once it forwards, a forwarder writes nothing that somebody would have to read first. A
pipe that is full, or a terminal that is held (Ctrl-S), costs lines, and no connection.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from typing import TYPE_CHECKING, Any, TextIO

from gsplice import _kernel

if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler  # no generic class at run time before Python 3.11


class OutputError(Exception):
    """Something could not be written; *reason* is the error that says why."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


def say(text: str, stream: Any) -> None:
    """Write *text* on *stream* now; nothing where there is no stream (`sys.stdout` may be None)."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        raise OutputError(error) from error


def has_room(stream: Any) -> bool:
    """Return whether a line can be written on *stream* without waiting for who reads it.

    A pipe that has room at all has some for 4,096 bytes (pipe(7), PIPE_BUF).
    """
    try:
        return _kernel.is_ready(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):
        return True  # what cannot be asked, like a buffer in memory, or on a platform without poll


class Log(_Handler):
    """Writes the log on standard error, as far as somebody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or lose it."""
        if has_room(self.stream):
            super().emit(record)
            self._lost = 0
        else:
            self._lost += 1

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, which says how many before it are lost."""
        lost = f" (nobody read on: {self._lost} before this are lost)" if self._lost else ""
        return f"{super().format(record)}{lost}"


def is_terminal(stream: Any) -> bool:
    """Whether *stream* is there, and a terminal."""
    return stream is not None and stream.isatty()


def forget() -> None:
    """Have nobody told of what Python could not write, and tries to once more at the end."""
    with open(os.devnull, "wb") as nowhere:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                os.dup2(nowhere.fileno(), stream.fileno())
