"""What handlers of `gevent.pywsgi` do with a file wrapper, which is the standard library's.

Invariant: what goes out is what the server itself would have sent for the same result, but for
two things which it leaves to the application: no byte follows the last one that Content-Length
allows, and none at all the head of an answer that has no body.

Invariant: the head waits for the first block, as it does in the server's own loop: until then an
error can still become an answer of its own. The two go out together, where a client that delays
its acknowledgements would else delay the second (RFC 1122, 4.2.3.2 and 4.2.3.4).

Invariant: a handler that has a method of its own to write with, which may count the bytes or change
them, is left to the server's own loop.
"""

from __future__ import annotations

from typing import Any, Final
from wsgiref.util import FileWrapper

from gsplice import _body, _kernel, _own_methods
from gsplice._body_sender import BodySender
from gsplice._chunked import LAST_CHUNK
from gsplice._endpoint import FileSource
from gsplice._wsgi import first_block, worth_splicing

#: Its key in the environment, and what an application finds there.
FILE_WRAPPER: Final = ("wsgi.file_wrapper", FileWrapper)

#: What `send_file` uses of a handler.
NEEDED: Final = (
    *("socket", "result", "command", "status", "code", "close_connection", "write", "_sendall"),
    *("headers_sent", "provided_content_length", "response_use_chunked", "response_length"),
)

#: What it sends all that it sends by, and where those methods are defined.
_WRITING: Final = ("write", "_write", "_write_with_headers", "_sendall")
_SERVER: Final = "gevent.pywsgi"

_WITHOUT_BODY: Final = (204, 304)
#: Bytes of a block: more would take longer to join to the head than to send after it.
_JOINED: Final = 64 * 1024

_body.unwrap("wsgiref.util.FileWrapper", "filelike", ("__next__",))


def send_file(handler: Any) -> bool:
    """Send the result of *handler*'s application if it is a file wrapper; else return False."""
    under = _body.wrapped(handler.result)
    if under is handler.result or hasattr(handler.result, "read"):
        return False  # what can be read is no file wrapper, but an HTTPError, say: it has lines
    if _own_methods.has_own(handler, _WRITING, _SERVER):
        return False
    if handler.headers_sent or not handler.status:  # write() was used, or nothing at all
        return False
    if handler.command == "HEAD" or handler.code in _WITHOUT_BODY:
        handler.write(b"")
        return True
    left = _content_length(handler)
    if spliced := worth_splicing(handler.result, under, handler.socket, left):
        left = _send_spliced(handler, spliced, left)
    else:
        left = _send_blocks(handler, left)
    if handler.response_use_chunked:
        handler._sendall(LAST_CHUNK)
    elif left:
        handler.close_connection = True  # nothing else could tell the client
    return True


def _content_length(handler: Any) -> int | None:
    try:
        length = int(handler.provided_content_length)
    except (TypeError, ValueError):  # there is none, or it is the client's to refuse
        return None
    return length if length >= 0 else None  # a negative one is the client's to refuse as well


def _send_blocks(handler: Any, left: int | None) -> int | None:
    """Send what the wrapper gives, at most *left* bytes; return how many are missing."""
    for block in handler.result:
        if left == 0:
            break  # it has been asked once more, and so has met its end
        left = _write(handler, block, left)
    if not handler.headers_sent:
        handler.write(b"")
    return left


def _send_spliced(handler: Any, under: Any, left: int | None) -> int | None:
    """Send what *under* has in the kernel, at most *left* bytes; return how many are missing."""
    if isinstance(under, FileSource):
        return _send_file(handler, under, left)
    first = first_block(under)
    left = _write(handler, first, left)
    return _less(left, _send_rest(handler, under, left)) if first else left


def _send_file(handler: Any, file: FileSource, left: int | None) -> int | None:
    """Send *file*, at most *left* bytes; return how many are missing."""
    head = b"".join(_unsent(handler, b""))
    try:
        handler.socket.sendall(head, _kernel.MSG_MORE)
    except OSError as error:
        _lost_client(handler, error)
        raise
    handler.response_length += len(head)
    return _less(left, _send_rest(handler, file, left))


def _unsent(handler: Any, block: bytes) -> list[bytes]:
    """Have *handler* write *block*, its head before it, and return that instead of sending it."""
    parts: list[bytes] = []
    handler._sendall = parts.append
    try:
        handler.write(block)
    finally:
        del handler._sendall
    return parts


def _write(handler: Any, block: bytes, left: int | None) -> int | None:
    """Write *block*, and the head before it where it is the first; return what *left* becomes.

    A block that is no bytes, such as text, is the server's own to fail at, behind the head.
    """
    if left is not None:
        block = block[:left]
        left -= len(block)
    if handler.headers_sent or not isinstance(block, bytes) or len(block) > _JOINED:
        handler.write(block)
    else:
        handler._sendall(b"".join(_unsent(handler, block)))
    return left


def _less(left: int | None, sent: int) -> int | None:
    return None if left is None else left - sent


def _send_rest(handler: Any, under: Any, left: int | None) -> int:
    """Send what is left of *under*, at most *left* bytes; return how many that were."""
    sender = BodySender(handler.socket, handler.response_use_chunked)
    try:
        sender.send(under, left)
    except OSError as error:
        if sender.undelivered or isinstance(under, FileSource):
            _lost_client(handler, error)
        raise
    finally:
        handler.response_length += sender.moved + sender.framing
    return sender.moved


def _lost_client(handler: Any, error: OSError) -> None:
    """Have the log say what it says where the server's own ``sendall`` fails."""
    handler.status = f"socket error: {error}"
    handler.code = -abs(handler.code)
