"""Pipes that carry spliced bytes, and the pool that lends them.

Invariant: a pipe in the pool is empty. A pipe is lent, filled from empty and emptied fully
before it is filled again, so that EAGAIN has one meaning on each side: on the way in the source
has nothing, on the way out the sink has no room. A pipe that still holds bytes is never lent
again: it is closed.
"""

from __future__ import annotations

import errno
import time
from typing import Final

from gsplice import _account, _kernel

#: Bytes to ask of the kernel for a pipe: the most that an unprivileged process may
#: (pipe-max-size, pipe(7)). On streams it takes a third less of the relay's CPU than 256 KiB.
PIPE_CAPACITY: Final = 1024 * 1024
#: So many pipes of a hub are that large, and further ones as the kernel makes them: 64 large ones
#: are all that a user may have (``pipe-user-pages-soft``, 16,384 pages).
_LARGE_PIPES: Final = 16
#: Less than this (what the kernel gives past the user's quota: one or two pages) is worse than
#: copying, so such a pipe is given back at once.
_LEAST_CAPACITY: Final = 64 * 1024
#: Pipes that a hub keeps open while nothing is in them. A transfer holds one only while its sink
#: is slower than its source, so a few serve very many.
_IDLE_PIPES: Final = 16
#: Seconds for which a refused pipe is not asked for again: at a limit every attempt costs a
#: system call and an exception.
_PAUSE_AFTER_REFUSAL: Final = 1.0


class Pipe:
    """One kernel pipe; `held` is the number of bytes in it, as the system calls said."""

    __slots__ = ("capacity", "held", "read_fd", "write_fd")

    def __init__(self, large: bool) -> None:
        self.read_fd, self.write_fd = _kernel.open_pipe()
        self.held = 0
        try:
            if large:
                _kernel.resize_pipe(self.write_fd, PIPE_CAPACITY)
            self.capacity = _kernel.pipe_capacity(self.write_fd)
        except BaseException:
            self.close()
            raise

    def take_back(self) -> bytes:
        """Return what the pipe holds, whatever `held` says, and leave it empty."""
        self.held = 0
        return _kernel.empty_pipe(self.read_fd)

    def close(self) -> None:
        """Close both ends; a second call does nothing."""
        read_fd, self.read_fd = self.read_fd, -1
        write_fd, self.write_fd = self.write_fd, -1
        for fd in (read_fd, write_fd):
            if fd >= 0:
                _kernel.close(fd)


class PipePool:
    """The pipes of one hub. Not for use from another thread than the hub's."""

    __slots__ = ("_idle", "_not_before", "opened")

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self._not_before = 0.0
        self.opened = 0  # open pipes, lent ones included

    @property
    def idle(self) -> int:
        """The number of pipes that are open and not lent."""
        return len(self._idle)

    def lend(self) -> Pipe | None:
        """Return an empty pipe, or None where the kernel will not give one now."""
        if self._idle:
            return self._idle.pop()
        return self._open()

    def give_back(self, pipe: Pipe) -> None:
        """Take back a lent pipe; keep it if it is empty and there is room."""
        if pipe.held or len(self._idle) >= _IDLE_PIPES:
            self.discard(pipe)
        else:
            self._idle.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a lent pipe."""
        self.opened -= 1
        pipe.close()

    def close(self) -> None:
        """Close the idle pipes."""
        while self._idle:
            self.discard(self._idle.pop())

    def _open(self) -> Pipe | None:
        if time.monotonic() < self._not_before:
            return None
        try:
            pipe = Pipe(large=self.opened < _LARGE_PIPES)
        except OSError as error:
            if error.errno not in _kernel.REFUSALS:
                raise
            self._refused(errno.errorcode[error.errno])
            return None
        if pipe.capacity < _LEAST_CAPACITY:
            pipe.close()
            self._refused("pipe quota")
            return None
        self.opened += 1
        return pipe

    def _refused(self, reason: str) -> None:
        self._not_before = time.monotonic() + _PAUSE_AFTER_REFUSAL
        _account.fell_back(reason)
