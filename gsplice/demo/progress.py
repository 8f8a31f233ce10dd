"""A bar on a terminal; elsewhere a line for each title."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final, TextIO

from gsplice import _output
from gsplice._meter import REWRITE

#: Characters of the bar: with the longest title, a line has fewer than 80.
_WIDTH: Final = 12
#: Seconds between two drawings.
_PERIOD: Final = 0.1


class Progress:
    """How far a number of *steps* has come, shown on *stream*."""

    def __init__(self, stream: TextIO | None) -> None:
        self.steps = 1
        self._stream = stream
        self._live = _output.is_terminal(stream)
        self._title = self._name = ""
        self._done = 0
        self._step_size = 1.0
        self._step_moved = 0.0
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @contextlib.contextmanager
    def step(self, title: str, name: str, size: float) -> Iterator[None]:
        """Show *title*, done with *name*, while the block moves a total of *size*."""
        if title != self._title and not self._live:
            self._write(f"gsplice: {title}\n")
        self._title, self._name = title, name
        self._step_size, self._step_moved = size, 0.0
        self._draw()
        yield
        self._done += 1

    def moved(self, amount: float) -> None:
        """So much more of the current step is done."""
        self._step_moved += amount
        if time.monotonic() >= self._drawn + _PERIOD:
            self._draw()

    def skip(self, steps: int) -> None:
        """So many steps will not be."""
        self.steps -= steps

    def clear(self) -> None:
        """Leave the line to others."""
        if self._live:
            self._write(REWRITE)

    def _draw(self) -> None:
        if self._live:
            self._drawn = time.monotonic()
            part = (self._done + min(self._step_moved / self._step_size, 1.0)) / self.steps
            bar = ("#" * round(part * _WIDTH)).ljust(_WIDTH, ".")
            self._write(f"{REWRITE}[{bar}] {part:4.0%}  {self._title}: {self._name}")

    def _write(self, text: str) -> None:
        _output.say(text, self._stream)
