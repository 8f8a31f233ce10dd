"""What WSGI servers do with a file wrapper (PEP 3333), whichever they are.

What is wrapped is a source: a file, a backend's response, a socket, anything that can be read. Each
server has its own way to send the head and to account for the body: `_pywsgi`, `takeover.gunicorn`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from gevent.socket import IPPROTO_TCP

from gsplice import _body, _gevent, _kernel, _options, _recognition
from gsplice._gevent import GeventSocket
from gsplice.transfer import can_splice

#: Bytes: as much as wrappers read at once, and as a reader may have in its buffer when it has
#: given the head of a response. An answer that is one block is cheaper to read and send.
_BLOCK: Final = 8 * 1024
#: Bytes of a file that is one block: with more, ``sendfile`` is cheaper.
_FILE_BLOCK: Final = 32 * 1024


def worth_splicing(wrapper: Any, under: Any, sock: Any, length: int | None) -> Any:
    """Return what to send to *sock*, None where it is the blocks that *wrapper* of *under* gives.

    That is *under*, looked at once where it is a file. A socket is always, where that can be: it
    has no ``read``, so its wrapper gives no blocks.
    """
    size = getattr(wrapper, "blksize", None)
    if not isinstance(size, int) or size <= 0:
        return None  # no bytes end it at once, and a negative number of them is all that there is
    if isinstance(under, GeventSocket):
        return under if _recognition.is_real_stream_socket(sock) else None
    if length is not None and _is_small(under, length, size):
        return None
    file = _recognition.regular_file(under)
    if file is not None:
        return file if _recognition.is_real_stream_socket(sock) else None
    return under if can_splice(under, sock) else None


def is_small_stream(under: Any, length: int | None) -> bool:
    """Whether *length* bytes of *under*, which is no file, are cheaper to read and send.

    A socket's never are: it has no ``read``. This is `worth_splicing`'s own answer, for whoever has
    looks to take that cost more.
    """
    if length is None or isinstance(under, GeventSocket) or not hasattr(under, "read"):
        return False
    try:
        return length <= _BLOCK or _is_small_body(under, length)
    except ValueError:  # a bad mode, which is to be told of where the mode matters
        return False


def _is_small(under: Any, length: int, size: int) -> bool:
    """Whether *length* bytes of *under*, in blocks of *size*, are cheaper to read and send."""
    if length <= _BLOCK:
        return True
    if _recognition.is_file(under):
        return length <= min(size, _FILE_BLOCK)
    return _is_small_body(under, length)


def _is_small_body(under: Any, length: int) -> bool:
    """Whether `can_splice` would say no for its size: it takes as long as to send some KiB."""
    return _body.is_small(length) and _body.is_known(under) and _options.mode("auto") == "auto"


def first_block(under: Any) -> bytes:
    """Wait for the first bytes of *under*, before the head goes out; none means its end.

    Until then an error can still become an answer of its own.
    """
    return _recognition.source(under).take(_BLOCK)


def in_full_segments(sock: Any, send: Callable[..., None], *arguments: Any) -> None:
    """Call *send*; what it sends to *sock* goes out in segments as full as can be (tcp(7))."""
    cork = _kernel.TCP_CORK
    if cork is None or not _can_be_corked(sock, cork):
        send(*arguments)
        return
    raw = _gevent.raw_socket(sock)
    raw.setsockopt(IPPROTO_TCP, cork, 1)
    try:
        send(*arguments)
    finally:
        with contextlib.suppress(OSError):  # it may be closed by now
            raw.setsockopt(IPPROTO_TCP, cork, 0)


def _can_be_corked(sock: Any, cork: int) -> bool:
    """Whether *sock* is one of gevent's TCP sockets, and its owner has not corked it already."""
    if type(sock) is not GeventSocket or _gevent.socket_family(sock) not in _gevent.TCP_FAMILIES:
        return False
    return not _gevent.raw_socket(sock).getsockopt(IPPROTO_TCP, cork)
