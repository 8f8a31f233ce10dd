"""What the process has moved so far: the figures behind `stats`.

Invariant: a byte is counted once. Engines count in attributes of their own while they run (the
data path touches nothing shared), and their figures are added to the totals when they end.
"""

from __future__ import annotations

import collections
from typing import NamedTuple, Protocol

from gevent import monkey

# A native lock: it is held for a few instructions, by any thread. Re-entrant, because signal
# handlers and finalizers run between any two of them, and may ask for the figures.
_new_lock = monkey.get_original("_thread", "RLock")


class Counted(Protocol):
    """An engine: something that moves bytes and counts them."""

    moved: int
    spliced: int

    def abandon(self) -> None:
        """Let go of everything, in a forked child, without a word to anyone."""


class Stats(NamedTuple):
    """What gsplice did since the process began (a forked child begins anew)."""

    spliced: int
    """Bytes that went kernel to kernel, by ``splice(2)`` or ``sendfile(2)``."""
    copied: int
    """Bytes that passed through user space."""
    active: int
    """Transfers under way; a relay is two."""
    pipes: int
    """Open pipes, of all hubs."""
    idle_pipes: int
    """Those of them that wait in a pool."""
    fallbacks: dict[str, int]
    """Reason → how many times splicing was given up for it."""


class _Totals:
    def __init__(self) -> None:
        self.lock = _new_lock()
        self.moved = 0
        self.spliced = 0
        self.fallbacks: collections.Counter[str] = collections.Counter()
        self.running: set[Counted] = set()


_totals = _Totals()


def began(engine: Counted) -> None:
    """Count *engine* among the active ones."""
    with _totals.lock:
        _totals.running.add(engine)


def active() -> int:
    """Return how many engines are active."""
    return len(_totals.running)


def ended(engine: Counted) -> None:
    """Add what *engine* has moved to the totals; a second call does nothing."""
    with _totals.lock:
        if engine in _totals.running:
            _totals.running.remove(engine)
            _totals.moved += engine.moved
            _totals.spliced += engine.spliced


def sent_at_once(count: int) -> None:
    """Add *count* bytes that were sent from a file without an engine."""
    with _totals.lock:
        _totals.moved += count
        _totals.spliced += count


def moved_late(count: int) -> None:
    """Add *count* bytes that an engine had under way when it ended, and that were copied after."""
    with _totals.lock:
        _totals.moved += count


def fell_back(reason: str) -> None:
    """Count one time that splicing was given up for *reason*."""
    with _totals.lock:
        _totals.fallbacks[reason] += 1


def snapshot(pipes: int, idle_pipes: int) -> Stats:
    """Return the figures as they are now, beside the two that the hubs know."""
    with _totals.lock:
        running = list(_totals.running)
        moved = _totals.moved + sum(engine.moved for engine in running)
        spliced = _totals.spliced + sum(engine.spliced for engine in running)
        fallbacks = dict(_totals.fallbacks)
    return Stats(spliced, moved - spliced, len(running), pipes, idle_pipes, fallbacks)


def begin_anew() -> list[Counted]:
    """Set all figures to zero, in a forked child; return the engines the parent had running."""
    global _totals
    inherited = list(_totals.running)
    _totals = _Totals()  # the lock included: a thread that is not here may have held it
    return inherited
