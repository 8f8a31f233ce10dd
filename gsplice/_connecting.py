"""Connecting in callbacks on the hub: to a number, or to the path of a unix socket.

Invariant: connect(2) itself says how far it is. Called again on the same socket it answers 0 once
the connection is there, EALREADY while it is under way, and else the error that has ended it. So
the first call and every later one are the same step. (Where a forked child has the socket as well,
and was the first to ask, the 0 was for the child. Then it answers EISCONN.)

Between two steps a TCP socket is waited for until it can be written. Where the backlog of a unix
socket is full the answer is EAGAIN, and nothing tells when there is room: that is tried again after
a while. On the same host there is nothing to wait for: TCP answers EINPROGRESS to every connect
that may not block, but when it does, loopback has made the connection, or refused it, already.

Invariant: it ends once, and then has no watcher and no timer. Whoever asked is told, unless it was
they who stopped it.

What has to be looked up first, and a callable, may wait in any way: they take a greenlet.
"""

from __future__ import annotations

import _socket
import errno
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from gevent import socket
from gevent.event import AsyncResult
from gevent.socket import AF_UNIX

from gsplice import _addresses, _gevent, _kernel
from gsplice._gevent import GeventSocket, LeanSocket

#: Seconds between two tries to connect to a unix socket whose backlog is full: nothing tells when
#: there is room (connect(2), EAGAIN).
_RETRY: Final = 0.01

#: Where a client's connection goes: ``(host, port)``, the path of a unix socket, or a callable
#: that takes the client's address and returns a connected stream socket.
Target: TypeAlias = tuple[str, int] | str | os.PathLike[str] | Callable[[Any], socket.socket]

#: When a silent peer is asked whether it is still there, how often, and how many times in vain
#: (tcp(7)): one that has vanished is given up after two minutes. The kernel's own figures would
#: have it keep its place for more than two hours.
_KEEPALIVE: Final = [
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
    if hasattr(socket, name)  # not everywhere by that name
]

#: What looking up a name may take: files of the resolver's, a socket, the event loop of a thread.
_FDS_OF_A_LOOKUP: Final = 6
#: With fewer it is in vain for sure: one for the lookup, one for what comes of it.
_FEWEST_FDS_OF_A_LOOKUP: Final = 2

#: The answers of connect(2) that are no end.
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN})


class Destination(NamedTuple):
    """Where to connect to, with nothing left to look up."""

    family: int
    address: Any


def check(target: Any) -> Target:
    """Return *target* if it is one; raise TypeError or ValueError where it cannot be."""
    checked: Target = target
    if isinstance(target, str | os.PathLike):
        _addresses.check(os.fsdecode(target))
    elif isinstance(target, tuple) and [type(part) for part in target] == [str, int]:
        _addresses.check(target)
    elif not callable(target):
        raise TypeError(
            f"target must be (host, port), the path of a unix socket, or a callable, not {target!r}"
        )
    return checked


def destination(target: Any) -> Destination | None:
    """Return where *target* is; None for a name that has to be looked up, and for a callable."""
    if callable(target):
        return None
    if not isinstance(target, tuple):
        return Destination(AF_UNIX, os.fspath(target))
    family = _addresses.numeric_family(target[0])
    return None if family is None else Destination(family, target)


class Reserve:
    """The socket of the next connection to a target, made before there is a client for it.

    For a target that finds a socket by itself it stands for the fd.
    """

    __slots__ = ("_raw", "_target", "destination")

    def __init__(self) -> None:
        self._raw: _socket.socket | None = None
        self._target: Any = None
        self.destination: Destination | None = None  # of the target, unless it has to be asked

    def fill(self, target: Any, ask: bool) -> None:
        """Have a socket for *target*; *ask* where it is to be asked in any case."""
        if target is not self._target:
            self.close()
            self.destination = None if ask else destination(target)
            self._target = target
        if self._raw is None:
            self._raw = self._new_socket()

    def _new_socket(self) -> _socket.socket:
        if self.destination is not None:
            try:
                return _gevent.new_raw_socket(self.destination.family)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                self.destination = None  # each client is told by itself, and the log
        return _gevent.new_raw_socket(AF_UNIX)

    def take(self) -> _socket.socket | None:
        """Return the socket, if there is one."""
        raw, self._raw = self._raw, None
        return raw

    def close(self) -> None:
        """Do without; a second call does nothing."""
        raw = self.take()
        if raw is not None:
            raw.close()


def begin(
    sock: LeanSocket, address: Any, done: Callable[[OSError | None], None], timeout: float | None
) -> Connecting | None:
    """Begin to connect *sock*, a new socket, to *address*.

    :param done: called at the end, with the error if there is no connection.
    :param timeout: seconds after which to give up; None for as long as the kernel tries.
    :return: what is under way; None if *done* has been called before this returns.
    """
    answer = _ask(sock, address)
    if answer in _UNDER_WAY:
        return Connecting(sock, address, done, timeout, answer)
    done(_error(answer))
    return None


def _ask(sock: LeanSocket, address: Any) -> int:
    """Return how far it is, as connect(2) says it."""
    connect: Callable[[Any], int] = _gevent.raw_socket(sock).connect_ex
    answer = connect(address)
    if answer == errno.EINPROGRESS:
        answer = connect(address)
    return 0 if answer == errno.EISCONN else answer


def _error(answer: int) -> OSError | None:
    return OSError(answer, os.strerror(answer)) if answer else None


class Connecting:
    """The connecting of one socket that has to wait, begun by `begin`."""

    __slots__ = ("_address", "_again", "_deadline", "_done", "_sock", "_watcher")

    def __init__(
        self,
        sock: LeanSocket,
        address: Any,
        done: Callable[[OSError | None], None],
        timeout: float | None,
        answer: int,
    ) -> None:
        self._sock = sock
        self._address = address
        self._done = done
        self._watcher: Any = None  # of the socket, which is its to close
        self._again: Any = None  # the timer of the next try
        self._deadline: Any = None
        if answer == errno.EAGAIN:
            self._again = _gevent.timer(_RETRY, repeat=True)
            self._again.start(self._step, update=True)
        else:
            self._watcher = _gevent.write_watcher(sock)
            _gevent.start(self._watcher, self._on_writable)
        if timeout is not None:
            self._deadline = _gevent.timer(timeout)
            self._deadline.start(self._timed_out, update=True)

    def stop(self) -> None:
        """End at once, and tell nobody; after the end it does nothing."""
        watcher, self._watcher = self._watcher, None
        timers = (self._again, self._deadline)
        self._again = self._deadline = None
        if watcher is not None:
            watcher.stop()
        for timer in timers:
            if timer is not None:
                timer.close()

    def throw(self, error: Any) -> None:
        """Called by gevent before it closes a socket that is waited for."""
        self._end(_gevent.thrown(error))

    def _step(self) -> bool:
        """Ask how far it is; return whether it has to go on."""
        answer = _ask(self._sock, self._address)
        if answer in _UNDER_WAY:
            return True
        self._end(_error(answer))
        return False

    def _on_writable(self, events: int = 1) -> None:
        if self._step() and events < 0:
            _gevent.restart(self._watcher, self._on_writable)

    def _timed_out(self) -> None:
        self._end(TimeoutError("timed out"))

    def _end(self, error: OSError | None) -> None:
        self.stop()
        self._done(error)


def connect(to: Destination) -> GeventSocket:
    """Return a new socket that is connected, while the calling greenlet waits."""
    sock = LeanSocket.over(_gevent.new_raw_socket(to.family))
    outcome: AsyncResult[OSError | None] = AsyncResult()
    connecting = None
    try:
        connecting = begin(sock, to.address, outcome.set, None)
        if (error := outcome.get()) is not None:
            raise error
    except BaseException:
        if connecting is not None:
            connecting.stop()
        sock.close()
        raise
    return sock


def make_prompt(sock: Any) -> None:
    """Have each message sent at once, and a peer that has vanished noticed."""
    if sock.family in _gevent.TCP_FAMILIES:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def check_connected(backend: Any) -> socket.socket:
    """Return *backend*, which a target has returned, if it is a socket of gevent's."""
    if isinstance(backend, socket.socket):
        return backend
    if isinstance(backend, _socket.socket):
        backend.close()  # nobody else will
    raise TypeError(f"a target has to return a connected gevent socket, not {backend!r}")


def is_worth_a_retry(target: Any) -> bool:
    """Return whether there may be fds enough to connect to *target*, for which there were not.

    A name that is looked up without one has gevent's thread pool print a traceback each time.
    """
    if callable(target) or destination(target) is not None:
        return True
    return _kernel.has_fds(_FEWEST_FDS_OF_A_LOOKUP)


def was_short_of_fds(error: OSError) -> bool:
    """Return whether *error*, which connecting met, came of the limit of fds."""
    if error.errno in _kernel.NO_FD:
        return True
    if isinstance(error, socket.gaierror):  # it does not say why it could not look
        return not _kernel.has_fds(_FDS_OF_A_LOOKUP)
    return False
