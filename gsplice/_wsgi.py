"""What WSGI servers do with a file wrapper (PEP 3333), whichever they are.

What is wrapped is a source: a file, a backend's response, a socket, anything that can be read. Each
server has its own way to send the head and to account for the body: `_pywsgi`, `takeover.gunicorn`.
"""

from __future__ import annotations

from typing import Any, Final

from gsplice import _recognition
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


def is_worthwhile(under: Any, sock: Any, length: int | None) -> bool:
    """Whether to send *under* to *sock*, and not the blocks that its wrapper gives.

    A socket is, where that can be: it has no ``read``, so its wrapper gives none.
    """
    if isinstance(under, GeventSocket):
        return _recognition.is_real_stream_socket(sock)
    return (length is None or length > _BLOCK) and can_splice(under, sock)


def first_block(under: Any) -> bytes:
    """Wait for the first bytes of *under*, before the head goes out; none means its end.

    Until then an error can still become an answer of its own.
    """
    return _recognition.source(under).take(_BLOCK)
