"""gevent's sockets: ``sendall(source)``, and a ``sendfile`` that uses sendfile(2).

``sendall`` of bytes sends at once what there is room for, and is gevent's own for the rest. That
asks the socket for the size of its buffer first, which only PyPy needs: a system call, and a third
of the time of a small message. What gevent would have refused with a TypeError, and can be read
from, is now a source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from gsplice import _gevent, _options, _recognition, _sendfile
from gsplice._endpoint import FileSource
from gsplice._gevent import GeventSocket
from gsplice.takeover._replacements import Replacements
from gsplice.transfer import copy

MODULE: Final = "gevent.socket"

_PLAIN_BYTES: Final[frozenset[type]] = frozenset({bytes, bytearray})
_BYTES: Final = _PLAIN_BYTES | {memoryview}
#: Bytes: what gevent's own ``sendfile`` reads and sends at once. So much costs it no more system
#: calls than it would here, and needs no look at the file.
_BLOCK: Final = 8 * 1024
_READ_METHODS: Final = ("recv_into", "recv", "read")


def install(module: ModuleType, replacements: Replacements) -> None:
    """Take over gevent's socket class."""
    sendall = replacements.original(GeventSocket, "sendall", "self", "data", "flags")
    sendfile = replacements.original(GeventSocket, "sendfile", "self", "file", "offset", "count")
    replacements.replace(GeventSocket, "sendall", _new_sendall(sendall))
    replacements.replace(GeventSocket, "sendfile", _new_sendfile(sendfile))


def _new_sendall(original: Callable[..., Any]) -> Callable[..., Any]:
    send = GeventSocket.send

    @functools.wraps(original)
    def sendall(self: GeventSocket, data: Any, flags: int = 0) -> Any:
        kind = type(data)
        if kind in _PLAIN_BYTES and type(self) is GeventSocket:
            # No bytes are not sent at all, and a non-blocking socket has errors of its own.
            if data and self.timeout != 0.0 and GeventSocket.send is send:
                try:
                    sent = _gevent.raw_socket(self).send(data, flags)
                except BlockingIOError:
                    sent = 0
                if sent == len(data):
                    return None
                data = memoryview(data)[sent:]
            return original(self, data, flags)
        if kind in _BYTES or flags or not _is_source(data):
            return original(self, data, flags)
        copy(data, self)
        return None

    return sendall


def _is_source(data: Any) -> bool:
    try:
        memoryview(data)
    except TypeError:
        if isinstance(data, type):  # what has these methods is its objects
            return False
        return any(callable(getattr(data, name, None)) for name in _READ_METHODS)
    return False  # a buffer (an mmap has a read method as well): its bytes are what is meant


def _new_sendfile(original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def sendfile(self: GeventSocket, file: Any, offset: int = 0, count: int | None = None) -> int:
        if count.__class__ is int and count <= _BLOCK and _is_read_as_cheaply(file):
            return original(self, file, offset, count)
        if not _recognition.is_real_stream_socket(self):
            return original(self, file, offset, count)
        source = _recognition.regular_file(file)
        if source is not None:
            return _send_regular_file(self, source, offset, count)
        if not offset and _recognition.is_socket_source(file):
            _gevent.check_sendfile(self, file, offset, count)
            return copy(file, self, count)
        return original(self, file, offset, count)

    return sendfile


def _is_read_as_cheaply(file: Any) -> bool:
    return _recognition.is_file(file) and _options.mode("auto") != "splice"


def _send_regular_file(
    sock: GeventSocket, source: FileSource, offset: int, count: int | None
) -> int:
    """Send like gevent's own ``sendfile``, position and errors included.

    Like that, and unlike the standard library's, it starts at the file's position where *offset*
    is 0, and leaves the position at *offset* plus the number of bytes sent.
    """
    file = source.file
    _gevent.check_sendfile(sock, file, offset, count)
    if offset:
        file.seek(offset)
    start = file.tell()
    try:
        sent = 0 if count is None else _sendfile.send_at_once(source, start, sock, count)
        if sent != count:
            sent += copy(source, sock, None if count is None else count - sent)
        return sent
    finally:
        if start != offset:
            sent = file.tell() - start
            if sent:
                file.seek(offset + sent)
