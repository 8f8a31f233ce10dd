"""What a forwarder is doing, for a person who looks at a terminal."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final, TextIO

import gevent

from gsplice import _hub, _output
from gsplice.server import ForwardServer

#: Seconds between two live lines.
_PERIOD: Final = 1.0
#: Moves the cursor to the start of the line and clears it (ECMA-48: CR, EL).
REWRITE: Final = "\r\x1b[K"


class Meter:
    """Shows a live line on *stream* if that is a terminal, and a summary at the end."""

    def __init__(self, server: ForwardServer, stream: TextIO | None) -> None:
        self._server = server
        self._stream = stream
        #: What anything else that is written on *stream* has to begin with.
        self.line_start = REWRITE if _output.is_terminal(stream) else ""
        self._began = time.monotonic()
        self._ticker: gevent.Greenlet[..., None] | None = None

    def __enter__(self) -> Meter:
        if self.line_start:
            self._ticker = gevent.spawn(self._tick)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._ticker is not None:
            self._ticker.kill(block=False)
        # Who has watched has gone, then; that is no failure of what was watched, and hides none.
        with contextlib.suppress(_output.OutputError):
            self._write(f"{self.line_start}gsplice: {self._summary()}\n")

    def _tick(self) -> None:
        # A terminal that has gone costs the line. Left to the hub, the error would be printed on
        # that same terminal: what comes of this goes up in the hub, into whatever it calls next.
        with contextlib.suppress(_output.OutputError):
            self._show()

    def _show(self) -> None:
        then, moved = time.monotonic(), 0
        while True:
            gevent.sleep(_PERIOD)
            now, total = time.monotonic(), _moved()
            rate = (total - moved) / (now - then)
            then, moved = now, total
            relays = count(self._server.connections, "relay")
            self._write(f"{REWRITE}{relays}, {rate / 1e6:,.1f} MB/s, {spliced_share()}")

    def _summary(self) -> str:
        # How long it was there, which is not how long that took: no rate is to be made of it.
        uptime = f"up for {time.monotonic() - self._began:,.1f} s"
        connections = count(self._server.accepted, "connection")
        moved = f"{_moved() / 1e6:,.1f} MB both ways"
        return f"{connections}, {moved}, {spliced_share()}, {uptime}"

    def _write(self, text: str) -> None:
        if _output.has_room(self._stream):
            _output.say(text, self._stream)


def _moved() -> int:
    stats = _hub.stats()
    return stats.spliced + stats.copied


def spliced_share() -> str:
    """Return what share of all bytes was spliced, in words."""
    return f"{100 * _hub.stats().spliced / max(_moved(), 1):.0f} % spliced"


def count(number: int, noun: str) -> str:
    """Return *number* and *noun*, in the plural where that is due."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
