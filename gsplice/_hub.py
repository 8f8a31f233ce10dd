"""What the transfers on one hub share: a scratch buffer, a pool of pipes, and their turns.

Invariant: nothing is left in the scratch buffer when control goes back to the hub. So one buffer
serves any number of transfers, and an idle one holds none.

A hub belongs to one thread, so its resources need no lock. A forked child starts with none of it:
the kernel's pipes would be shared with the parent, and bytes could cross.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any, Final

from gevent import monkey

from gsplice import _account, _gevent
from gsplice._pipe import PipePool
from gsplice._turns import Turns

#: Bytes: the most that is copied at once. A stream that may not be spliced is copied at 1.4 to 2.4
#: times the rate that it would have with 64 KiB (``bench/NOTES.rst``).
SCRATCH_SIZE: Final = 512 * 1024
#: Bytes: what brings so much is a large read. For it two system calls that splice cost less than
#: two that copy.
LARGE_READ: Final = 16 * 1024
#: Bytes: room for a large message among small ones, which is better copied whole.
LARGE_MESSAGE: Final = 64 * 1024


class HubResources:
    """The scratch buffer, the pipes and the turns of one hub."""

    __slots__ = ("__weakref__", "_turns", "message_scratch", "pipes", "scratch", "small_scratch")

    def __init__(self) -> None:
        self._turns: Turns | None = None
        self.pipes = PipePool()
        self.scratch = memoryview(bytearray(SCRATCH_SIZE))
        self.small_scratch = self.scratch[:LARGE_READ]
        self.message_scratch = self.scratch[:LARGE_MESSAGE]
        weakref.finalize(self, self.pipes.close)

    def turns_on(self, loop: Any) -> Turns | None:
        """Return the turns of those who read on *loop*; None where it keeps the order itself."""
        if not _gevent.calls_backwards(loop):
            return None
        if self._turns is None or self._turns.loop is not loop:  # a hub may be given another
            self._turns = Turns(loop)
        return self._turns


# One hub for each thread, so a thread's resources are its hub's. gevent keeps the hub of a thread
# that has ended alive, but not what is local to the thread; so that closes the pipes in time. It
# has to be a native local: gevent's would be local to a greenlet.
_local: Any = monkey.get_original("_thread", "_local")()
_all: Final[weakref.WeakSet[HubResources]] = weakref.WeakSet()
_all_lock: Any = monkey.get_original("_thread", "RLock")()


def resources() -> HubResources:
    """Return what the current thread's hub has, made at the first call."""
    found: HubResources | None = getattr(_local, "resources", None)
    if found is None:
        found = _local.resources = HubResources()
        with _all_lock:
            _all.add(found)
    return found


def stats() -> _account.Stats:
    """Return what gsplice has done since the process began, as a `Stats`."""
    with _all_lock:
        pools = [found.pipes for found in _all]
    return _account.snapshot(sum(pool.opened for pool in pools), sum(pool.idle for pool in pools))


def _forget_parent() -> None:
    """Close the child's copies of the parent's pipes, and end its transfers without a word.

    The parent goes on with them. Were the child to go on too, both would take from the same
    sockets, and each would lose what the other has got.
    """
    for engine in _account.begin_anew():
        with contextlib.suppress(Exception):  # of a thread whose loop is gone, and calls nobody
            engine.abandon()
    for found in list(_all):
        found.pipes.close()
    _all.clear()
    if hasattr(_local, "resources"):
        del _local.resources


os.register_at_fork(after_in_child=_forget_parent)
