"""What the command line says, on standard output and standard error.

Invariant: all of it but the log goes through `say`, and an `OutputError` comes from nowhere else.
So an end of the output is never mistaken for one of a connection, whose errors are of the same
classes.
"""

from __future__ import annotations

import os
import sys
from typing import Any


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
