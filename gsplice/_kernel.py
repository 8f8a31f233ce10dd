"""The system calls of the data path, made here and nowhere else.

A new kernel, or a fault to inject in a test, is a matter of this file alone. The two calls that
are missing, ``recv_into`` and ``send``, are bound methods of the C socket (`_gevent.raw_socket`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any, Final

from gevent import monkey

# The C library, for what CPython has not. It is imported here, and not where it is needed: that is
# in the hub, which an import would hold up. Where a ``long`` is shorter, a struct itimerspec may be
# another than that of `start_timer`.
_libc: Any = None
with contextlib.suppress(ImportError, OSError):  # Python without libffi, a static C library
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True) if struct.calcsize("l") == 8 else None

#: What a kernel, a file system or a limit says that will not splice this pair. Nothing has been
#: consumed when it comes, so the same bytes can be copied (splice(2), sendfile(2), pipe(2)).
REFUSALS: Final = frozenset(
    {
        errno.EINVAL,
        errno.ENOSYS,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EOPNOTSUPP,
    }
)

#: What the kernel says at the process's limit of fds, and at the system's.
NO_FD: Final = frozenset({errno.EMFILE, errno.ENFILE})

#: ``os.splice`` is in CPython from 3.10, on Linux, where the C library has it.
HAVE_SPLICE: Final = hasattr(os, "splice")
HAVE_SENDFILE: Final = hasattr(os, "sendfile")

# SPLICE_F_NONBLOCK covers the pipe alone (the sockets are non-blocking themselves).
# SPLICE_F_MORE is left out on purpose: it holds small messages back for 200 ms (golang #10948).
_SPLICE_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 1) | getattr(os, "SPLICE_F_NONBLOCK", 2)
#: Holds partial segments back; None where there is no such option (tcp(7)).
TCP_CORK: Final[int | None] = getattr(socket, "TCP_CORK", None)
#: The same for what is sent with it, until something is sent without it (send(2)).
MSG_MORE: Final[int] = getattr(socket, "MSG_MORE", 0)
_READ_SIZE: Final = 1024 * 1024
#: Linux's number for terminals is that for sockets (linux/sockios.h); elsewhere it is not.
_HAVE_OUTQ: Final = sys.platform == "linux"
_F_SETPIPE_SZ: Final = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_F_GETPIPE_SZ: Final = getattr(fcntl, "F_GETPIPE_SZ", 1032)


def splice(source: int, sink: int, length: int, sink_offset: int | None = None) -> int:
    """Move at most *length* bytes between two fds of which one is a pipe; return how many.

    *length* must not be 0: the kernel would answer 0, which means end of file.
    """
    return os.splice(source, sink, length, offset_dst=sink_offset, flags=_SPLICE_FLAGS)


def sendfile(sink: int, file: int, offset: int, length: int) -> int:
    """Send at most *length* bytes of *file* from *offset* to the socket *sink*."""
    return os.sendfile(sink, file, offset, length)


def pread(file: int, length: int, offset: int) -> bytes:
    """Read at most *length* bytes of *file* at *offset*; its position stays where it is."""
    return os.pread(file, length, offset)


def pwrite(file: int, data: bytes | memoryview, offset: int) -> int:
    """Write *data* to *file* at *offset* (at its end under ``O_APPEND``); return how much."""
    return os.pwrite(file, data, offset)


def is_regular(fd: int) -> bool:
    """Return whether *fd* is that of a regular file."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def file_size(fd: int) -> int:
    """Return how many bytes the file of *fd* has now."""
    return os.fstat(fd).st_size


def appends(fd: int) -> bool:
    """Return whether the file of *fd* was opened to append; splice(2) refuses such a file."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def open_pipe() -> tuple[int, int]:
    """Return the read and the write end of a new pipe: non-blocking, closed on exec."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def resize_pipe(fd: int, capacity: int) -> None:
    """Ask for a pipe of *capacity* bytes.

    Past ``pipe-user-pages-soft`` the kernel refuses with EPERM and the pipe stays as it was
    (pipe(7)), which is why the size is read back and not believed.
    """
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, capacity)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise


def pipe_capacity(fd: int) -> int:
    """Return how many bytes the pipe has room for (in whole pages; spliced ones may be more)."""
    return fcntl.fcntl(fd, _F_GETPIPE_SZ)


def empty_pipe(fd: int) -> bytes:
    """Take all bytes that are in a pipe out of it."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(fd, _READ_SIZE):
            parts.append(part)
    return b"".join(parts)


def open_timer() -> int:
    """Return a timerfd(2), not started yet: non-blocking, closed on exec."""
    return _call_libc("timerfd_create", time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)


def start_timer(timer: int, period: float) -> None:
    """Have *timer* be readable each *period* seconds from now on; never, where that is 0."""
    seconds, nanoseconds = divmod(round(period * 1e9), 10**9)
    itimerspec = struct.pack("4l", *(seconds, nanoseconds) * 2)
    _call_libc("timerfd_settime", timer, 0, itimerspec, None)


def take_tick(timer: int) -> None:
    """Have *timer* not be readable until the next time, if it is."""
    with contextlib.suppress(BlockingIOError):
        os.read(timer, 8)


def _call_libc(name: str, *arguments: int | bytes | None) -> int:
    """Call a function that ``os`` has not on each CPython (``timerfd_create``: from 3.13 on)."""
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unacknowledged(fd: int) -> int | None:
    """Return how many bytes the socket *fd* has sent that its peer has not got.

    For TCP they are those that have not been acknowledged (tcp(7), SIOCOUTQ), for unix sockets what
    the peer has not read, with the kernel's own overhead. None where there is no telling.
    """
    if fd < 0 or not _HAVE_OUTQ:
        return None
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return None


@contextlib.contextmanager
def replaced(fd: int, other: int) -> Iterator[None]:
    """Have the number *fd* stand for the file of *other* meanwhile; then all is as it was."""
    saved = os.dup(fd)
    try:
        inheritable = os.get_inheritable(fd)
        os.dup2(other, fd, inheritable)
        try:
            yield
        finally:
            os.dup2(saved, fd, inheritable)
    finally:
        os.close(saved)


def has_fds(count: int) -> bool:
    """Return whether the process can have *count* more fds now."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            try:
                fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
            stack.callback(os.close, fd)
    return True


def is_ready(fd: int, events: int) -> bool:
    """Return whether *fd* has one of *events* now, ``select.POLLIN`` and so on, or an error."""
    poller = monkey.get_original("select", "poll")()  # gevent's own would wait
    poller.register(fd, events)
    return bool(poller.poll(0))


def close(fd: int) -> None:
    """Close *fd*."""
    os.close(fd)
