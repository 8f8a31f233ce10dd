"""Everything that gsplice knows of the private attributes of gevent's sockets and hub.

They are the watchers and the C socket of a ``gevent.socket.socket``, and how ``Hub.cancel_wait``
finds whom to tell that a socket is being closed. A new gevent is a matter of this file alone, but
for its WSGI server: as with any library that is taken over, what `gevent.pywsgi` keeps to itself is
known to `_pywsgi` and to the takeover of that name.

Invariant: a watcher is started with a bound method of an object that has ``throw``. Then a
``close()`` or ``shutdown()`` in another greenlet reaches that object as ``throw(cancel_wait_ex)``
before the fd is closed, and no fd that has been reused is ever touched.
"""

from __future__ import annotations

import _socket
import errno
import os
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import gevent
from gevent import socket
from gevent.exceptions import ConcurrentObjectUseError, InvalidThreadUseError
from gevent.ssl import SSLSocket

#: The class, named as in prose: other things are called socket as well.
GeventSocket: TypeAlias = socket.socket

#: The families whose stream sockets are TCP's, and with them those whose bytes are those of the fd.
TCP_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
STREAM_FAMILIES: Final = (*TCP_FAMILIES, socket.AF_UNIX)

#: A stream socket whose class has one of these of its own does something to the bytes.
_DATA_METHODS: Final = ("recv", "recv_into", "send", "sendall")
#: What a watcher waits for (EV_READ and EV_WRITE, in libev; libuv's are the same numbers).
_READ: Final = 1
_WRITE: Final = 2


class LeanSocket(GeventSocket):
    """A gevent socket that costs little to make and to close.

    gevent gives each socket two watchers from the beginning, and looks at its end for whoever may
    wait on them. This one has a watcher for a way once it is waited for that way.
    """

    __slots__ = ("_reading", "_writing")

    _reading: Any
    _writing: Any

    @classmethod
    def over(cls, raw: _socket.socket) -> LeanSocket:
        """Return one whose C socket is *raw*, which is in non-blocking mode."""
        self = cls.__new__(cls)
        self._sock = raw
        self._closed = False
        self._io_refs = 0
        self._reading = self._writing = None
        self.hub = gevent.get_hub()
        self.timeout = None  # type: ignore[misc]
        return self

    @property
    def _read_event(self) -> Any:
        if self._reading is None and (fd := self._sock.fileno()) >= 0:
            self._reading = self.hub.loop.io(fd, _READ)
        return self._reading

    @_read_event.setter
    def _read_event(self, watcher: Any) -> None:
        self._reading = watcher

    @property
    def _write_event(self) -> Any:
        if self._writing is None and (fd := self._sock.fileno()) >= 0:
            self._writing = self.hub.loop.io(fd, _WRITE)
        return self._writing

    @_write_event.setter
    def _write_event(self, watcher: Any) -> None:
        self._writing = watcher

    def shutdown(self, how: int) -> None:
        """Shut down one way or both; who waits for that way is told, as by gevent's."""
        if how == socket.SHUT_WR and self._writing is None:
            self._sock.shutdown(how)
        else:
            super().shutdown(how)

    def _real_close(self, *arguments: Any) -> None:
        for watcher in (self._reading, self._writing):
            if watcher is not None:
                if watcher.callback is not None:
                    super()._real_close(*arguments)  # type: ignore[misc]
                    return
                watcher.close()
        self._reading = self._writing = None
        self._sock.close()


def new_raw_socket(family: int) -> _socket.socket:
    """Return a C stream socket in non-blocking mode."""
    return _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)


def accept(listener: Any) -> tuple[LeanSocket, Any] | None:
    """Return the next client of the C socket *listener* and its address; None if nobody waits."""
    try:
        fd, address = listener._accept()
    except BlockingIOError:
        return None
    raw = _socket.socket(listener.family, listener.type, listener.proto, fd)
    raw.setblocking(False)
    return LeanSocket.over(raw), address


def raw_socket(sock: GeventSocket) -> Any:
    """Return the C socket under *sock*: non-blocking, and with fileno() -1 once it is closed."""
    return sock._sock


def socket_family(sock: GeventSocket) -> int:
    """Return the family of *sock*, as a number: gevent's own makes an enum of it at each look."""
    family: int = sock._sock.family
    return family


def socket_type(sock: GeventSocket) -> int:
    """Return the type of *sock* without the flags that Linux keeps beside it (socket(2))."""
    kind: int = sock._sock.type
    return kind & 0xF


def own_data_methods(sock: GeventSocket) -> list[str]:
    """Return those of the methods that carry bytes which *sock*, or its class, replaces."""
    cls = type(sock)
    if cls is GeventSocket or cls is LeanSocket:
        return []  # and no instance of it has room for attributes
    own = getattr(sock, "__dict__", ())
    return [
        name
        for name in _DATA_METHODS
        if name in own or getattr(cls, name) is not getattr(GeventSocket, name)
    ]


def inherits_sendall(sock: GeventSocket) -> bool:
    """Whether ``sendall`` of *sock* is one that does nothing but call its ``send``."""
    cls, own = type(sock), getattr(sock, "__dict__", ())
    return cls.sendall in (GeventSocket.sendall, SSLSocket.sendall) and "sendall" not in own


def check_sendfile(sock: GeventSocket, file: Any, offset: int, count: int | None) -> None:
    """Raise what gevent's ``sendfile`` raises for bad arguments."""
    sock._check_sendfile_params(file, offset, count)
    if sock.gettimeout() == 0:
        raise ValueError("non-blocking sockets are not supported")


def tls_session(sock: SSLSocket) -> Any:
    """Return the TLS session of *sock*, or None before and after it."""
    return sock._sslobj


def read_watcher(sock: GeventSocket) -> Any:
    """Return the watcher that tells when *sock* can be read."""
    return _open_watcher(sock._read_event)


def write_watcher(sock: GeventSocket) -> Any:
    """Return the watcher that tells when *sock* can be written."""
    return _open_watcher(sock._write_event)


def _open_watcher(watcher: Any) -> Any:
    if watcher is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return watcher


def wait_writable(sock: GeventSocket) -> None:
    """Have the calling greenlet wait until *sock* has room."""
    sock._wait(sock._write_event)


def check_unused(watcher: Any) -> None:
    """Raise ConcurrentObjectUseError where a greenlet or another transfer waits on *watcher*."""
    if watcher.callback is not None:
        raise ConcurrentObjectUseError(
            f"This socket is already used by another greenlet: {watcher.callback!r}"
        )


def start(watcher: Any, callback: Callable[..., None]) -> None:
    """Have *callback* called in the hub as long as *watcher*'s socket is ready.

    libuv stops polling an fd once it has reported an error on it, whatever is left to read there,
    and says so in negative events only: there *callback* gets the events, and has to `restart`.
    """
    check_unused(watcher)
    _start(watcher, callback)


def _start(watcher: Any, callback: Callable[..., None]) -> None:
    if _is_libuvs(watcher):
        watcher.start(callback, pass_events=True)
    else:
        watcher.start(callback)


def claim(watcher: Any, callback: Callable[..., None]) -> None:
    """Have *watcher*'s socket in use, as `start` does, but wait for nothing: for no event."""
    check_unused(watcher)
    watcher.events = 0
    _start(watcher, callback)


def end_claim(watcher: Any) -> None:
    """Leave *watcher*, which was claimed for reading, as it was."""
    if watcher.callback is not None:  # else it has been closed
        watcher.stop()
        watcher.events = _READ


def loop_of(sock: GeventSocket) -> Any:
    """Return the event loop on which *sock* is waited for."""
    return sock.hub.loop


def calls_backwards(loop: Any) -> bool:
    """Whether *loop* calls what is ready from the last to the first, as libev does."""
    return not _is_libuvs(loop)


def is_in_c(loop: Any) -> bool:
    """Whether *loop* is gevent's libev in C.

    Where a callback raises it stops the watcher of an fd only; the other loops stop any.
    """
    return type(loop).__module__ == "gevent.libev.corecext"


def _is_libuvs(thing: Any) -> bool:
    """Whether a watcher, or a loop, is libuv's."""
    return type(thing).__module__.startswith("gevent.libuv")


def when_loop_runs(callback: Callable[[], None]) -> None:
    """Have *callback* called in the next turn of the hub."""
    gevent.get_hub().loop.run_callback(callback)


def thrown(error: Any) -> Any:
    """Return the exception that gevent throws at who waits; it gives one, or a class of them."""
    return error() if isinstance(error, type) else error


def restart(watcher: Any, callback: Callable[..., None]) -> None:
    """Go on polling after *callback* was called with negative events."""
    watcher.stop()
    _start(watcher, callback)


def read_watcher_of(fd: int) -> Any:
    """Return a watcher, not started yet, that tells when *fd*, which is no socket, can be read."""
    return gevent.get_hub().loop.io(fd, _READ)


def timer(seconds: float, repeat: bool = False) -> Any:
    """Return a timer for *seconds*, not started yet.

    libuv knows no shorter one than a millisecond, and warns where one is asked for.
    """
    seconds = max(seconds, 0.001)
    return gevent.get_hub().loop.timer(seconds, seconds if repeat else 0.0)


def let_loop_pass() -> None:
    """Let the event loop run once, with its timers and sockets.

    ``gevent.sleep(0)`` is not that: callbacks that callbacks add are run as well, for up to 5 ms,
    before the loop looks at anything else.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


def check_thread(sock: GeventSocket) -> None:
    """Raise InvalidThreadUseError where *sock* belongs to the hub of another thread."""
    if sock.hub is not gevent.get_hub():
        raise InvalidThreadUseError(
            f"{sock!r} belongs to the hub of another thread: use it in the thread that made it"
        )
