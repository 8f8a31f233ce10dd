"""Faults at system calls, to see what becomes of the bytes.

All system calls of the data path go through these: the ``os``, the ``fcntl`` and the C library that
`gsplice._kernel` sees, and the C socket under each of gevent's. While `injected` lasts one call of
theirs is counted, and something else than usual happens at its n-th time. Everything else is real.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import pytest
from gevent import socket

import gsplice
from gsplice import _hub, _kernel

#: Is called instead of the system call, with the call itself and its arguments.
Effect: TypeAlias = Callable[..., Any]

#: Where each call has the number of bytes, or the bytes, that it is to move.
_AMOUNTS: Final = {
    "splice": 2,
    "sendfile": 3,
    "pread": 1,
    "pwrite": 1,
    "read": 1,
    "recv": 0,
    "recv_into": 0,
    "send": 0,
    "sendmsg": 0,
}
_FOR_EVER: Final = 1 << 60
#: What a kernel, a file system or a limit says that will not splice: promise 4.
REFUSALS: Final = (
    *(errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    errno.EOPNOTSUPP,
)


class Fault:
    """Has *effect* take the place of a call from the *first* to the *last* time that it is made.

    :param name: of the call; for ``fcntl`` its command follows: ``"fcntl F_SETPIPE_SZ"``.
    :param last: by default it is the first time alone.
    """

    def __init__(self, name: str, effect: Effect, first: int = 1, last: int | None = None) -> None:
        self.name, _, detail = name.partition(" ")
        self._command = getattr(fcntl, detail) if self.name == "fcntl" else None
        self._effect = effect
        self._first = first
        self._last = first if last is None else last
        self.calls = 0

    @property
    def reached(self) -> bool:
        """Whether it has had an effect."""
        return self.calls >= self._first

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the call, or have the effect instead."""
        if self._command is not None and args[1] != self._command:
            return function(*args, **kwargs)
        self.calls += 1
        if self._first <= self.calls <= self._last:
            return self._effect(function, *args, **kwargs)
        return function(*args, **kwargs)


def always(name: str, effect: Effect, first: int = 1) -> Fault:
    """Return a fault that stays from the *first* time on."""
    return Fault(name, effect, first, _FOR_EVER)


def failing(number: int) -> Effect:
    """Have the call fail with the errno *number*, and do nothing."""

    def effect(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return effect


def raising_after(error: type[BaseException]) -> Effect:
    """Have *error* raised when the call has been made, as by the handler of a signal."""

    def effect(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(OSError):
            function(*args, **kwargs)
        raise error

    return effect


def preceded_by(strike: Callable[[], Any]) -> Effect:
    """Have *strike* called right before the call is made."""

    def effect(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        strike()
        return function(*args, **kwargs)

    return effect


def shortened(portion: Callable[[int], int]) -> Effect:
    """Have the call move no more than *portion* of the bytes that it would move."""

    def effect(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = function.__name__
        position = _AMOUNTS[name]
        amount = args[position]
        most = portion(min(_size(amount), _readable(name, function, args)))
        changed = [*args]
        changed[position] = _cut(amount, max(most, 1))
        return function(*changed, **kwargs)

    return effect


def one_byte(_: int) -> int:
    """Return the least that a call can move."""
    return 1


def half(length: int) -> int:
    """Return half of *length*."""
    return length // 2


def _size(amount: Any) -> int:
    if isinstance(amount, int):
        return amount
    return sum(map(len, amount)) if isinstance(amount, list) else len(amount)


def _cut(amount: Any, most: int) -> Any:
    if isinstance(amount, int):
        return min(amount, most)
    if isinstance(amount, list):
        return [b"".join(amount)[:most]]
    return memoryview(amount)[:most]


def _readable(name: str, function: Any, args: Sequence[Any]) -> int:
    """Return how many bytes there are to take, for a call that takes them from a pipe or socket."""
    if name in ("splice", "read"):
        fd = args[0]
    elif name in ("recv", "recv_into"):
        fd = function.__self__.fileno()
    else:
        return _FOR_EVER
    answer = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


class _Disturbed:
    """Stands for a module, or a C socket, on whose calls *faults* have their effect."""

    def __init__(self, original: Any, faults: Sequence[Fault]) -> None:
        self._original = original
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._original, name)
        for fault in self._faults:
            if fault.name == name:
                found = functools.partial(fault, found)
        return found


@contextlib.contextmanager
def injected(*faults: Fault, sockets: Sequence[socket.socket] = ()) -> Iterator[None]:
    """Have *faults* in the system calls of gsplice, those on *sockets* included, meanwhile.

    A transfer has to be made within it: it keeps the C sockets that it has found.
    """
    standing = [_Disturbed(sock._sock, faults) for sock in sockets]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernel, "os", _Disturbed(os, faults))
        patch.setattr(_kernel, "fcntl", _Disturbed(fcntl, faults))
        patch.setattr(_kernel, "_libc", _Disturbed(_kernel._libc, faults))
        for sock, disturbed in zip(sockets, standing, strict=True):
            sock._sock = disturbed
        try:
            yield
        finally:
            for sock, disturbed in zip(sockets, standing, strict=True):
                if sock._sock is disturbed:  # it has not been closed meanwhile
                    sock._sock = disturbed._original


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Have a failure say in which run it was."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


def forget_pipes() -> None:
    """Have no pipe left over from before, nor the pause that follows a refused one."""
    pool = _hub.resources().pipes
    pool.close()
    pool._not_before = 0.0


def new_fallbacks(before: gsplice.Stats) -> dict[str, int]:
    """Return the fallbacks counted since *before*."""
    now = gsplice.stats().fallbacks
    return {
        reason: count - before.fallbacks.get(reason, 0)
        for reason, count in now.items()
        if count != before.fallbacks.get(reason, 0)
    }
