"""What ends the demonstration before its time: an error, and a step in which nothing happens."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


class DemoError(Exception):
    """The demonstration cannot go on; the message is for the user."""


@contextlib.contextmanager
def alive(step: str, seconds: float) -> Iterator[Callable[[], object]]:
    """Raise `DemoError` in the block, whatever it waits for, once nothing happens for *seconds*.

    That something has happened is told by calling what the context manager gives. It works in the
    main thread alone, through SIGALRM: no call in the block needs a time-out.
    """

    def stalled(*_: Any) -> None:
        raise DemoError(f"{step}: nothing has happened for {seconds:g} seconds")

    def happened() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    handler_before = signal.signal(signal.SIGALRM, stalled)
    left_before, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield happened
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)
        signal.setitimer(signal.ITIMER_REAL, left_before)  # somebody else's, as good as untouched
