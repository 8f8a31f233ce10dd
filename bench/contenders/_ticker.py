"""A ticker beside the relays, on the event loop that relays, as other work of the program.

It begins at a SIGUSR2, and at the next one it prints a line of JSON, and ends.
"""

import json
import time

PERIOD_SECONDS = 0.005


class Ticker:
    """Counts the ticks that came before the next one was due, and the longest time without one."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._due = self._begun + PERIOD_SECONDS
        self._ticks = 0
        self._longest = 0.0
        self.running = True

    def delay(self) -> float:
        """Seconds to sleep until the next tick."""
        return max(0.0, self._due - time.monotonic())

    def tick(self) -> None:
        """Called after the sleep, however long it has taken."""
        moment = time.monotonic()
        self._longest = max(self._longest, moment - self._last)
        self._last = moment
        self._ticks += 1
        self._due += PERIOD_SECONDS
        while self._due <= moment:  # these are lost
            self._due += PERIOD_SECONDS

    def report(self) -> None:
        self.running = False
        moment = time.monotonic()
        expected = (moment - self._begun) / PERIOD_SECONDS
        longest = max(self._longest, moment - self._last)
        share = min(1.0, self._ticks / expected)
        print(json.dumps({"share": share, "longest_gap": longest}), flush=True)
