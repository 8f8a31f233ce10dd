"""What WSGI servers do with a file wrapper (PEP 3333), whichever they are.

What is wrapped is a source: a file, a backend's response, a socket, anything that can be read. Each
server has its own way to send the head and to account for the body: `_pywsgi`, `takeover.gunicorn`.
"""

from __future__ import annotations

from typing import Any, Final

from gsplice import _body, _options, _recognition
from gsplice._gevent import GeventSocket
from gsplice.transfer import can_splice

#: Bytes: as much as wrappers read at once, and as a reader may have in its buffer when it has
#: given the head of a response. An answer that is one block is cheaper to read and send. Under
#: pywsgi that takes 0.8 times the CPU of ``sendfile`` for a file of 8,000 bytes, but 1.2 times for
#: one of 12,000.
_BLOCK: Final = 8 * 1024


def reads_to_the_end(wrapper: Any) -> bool:
    """Whether the blocks of *wrapper* are together what it wraps.

    Those of no bytes end it at once, and with a negative size the one block is all that there is.
    """
    size = getattr(wrapper, "blksize", None)
    return isinstance(size, int) and size > 0


def worth_splicing(under: Any, sock: Any, length: int | None) -> Any:
    """Return what to send to *sock*, None where it is the blocks that the wrapper of *under* gives.

    That is *under*, looked at once where it is a file. A socket is always, where that can be: it
    has no ``read``, so its wrapper gives no blocks.
    """
    if isinstance(under, GeventSocket):
        return under if _recognition.is_real_stream_socket(sock) else None
    if length is not None and (length <= _BLOCK or _is_small_body(under, length)):
        return None
    file = _recognition.regular_file(under)
    if file is not None:
        return file if _recognition.is_real_stream_socket(sock) else None
    return under if can_splice(under, sock) else None


def _is_small_body(under: Any, length: int) -> bool:
    """Whether `can_splice` would say no for its size: it takes as long as to send some KiB."""
    return _body.is_small(length) and _body.is_known(under) and _options.mode("auto") == "auto"


def first_block(under: Any) -> bytes:
    """Wait for the first bytes of *under*, before the head goes out; none means its end.

    Until then an error can still become an answer of its own.
    """
    return _recognition.source(under).take(_BLOCK)
