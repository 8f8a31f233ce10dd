"""What a WSGI server does with a file wrapper (PEP 3333), for handlers of `gevent.pywsgi`.

The wrapper is the standard library's. What it wraps is a source: a file, a backend's response,
anything that can be read.

Invariant: what goes out is what the server itself would have sent for the same result, but for
two things which it leaves to the application: no byte follows the last one that Content-Length
allows, and none at all the head of an answer that has no body.
"""

from __future__ import annotations

from typing import Any, Final
from wsgiref.util import FileWrapper

from gsplice import _body
from gsplice._chunked import ChunkedSink
from gsplice._recognition import is_regular_file
from gsplice.transfer import Transfer, can_splice

#: Its key in the environment, and what an application finds there.
FILE_WRAPPER: Final = ("wsgi.file_wrapper", FileWrapper)

_WITHOUT_BODY: Final = (204, 304)
_LAST_CHUNK: Final = b"0\r\n\r\n"

_body.unwrap("wsgiref.util.FileWrapper", "filelike")
_body.unwrap("werkzeug.wsgi.FileWrapper", "file")


def send_file(handler: Any) -> bool:
    """Send the result of *handler*'s application if it is a file wrapper; else return False."""
    under = _body.wrapped(handler.result)
    if under is handler.result or hasattr(handler.result, "read"):
        return False
    if handler.headers_sent or not handler.status:  # write() was used, or nothing at all
        return False
    handler.write(b"")  # the head
    if handler.command == "HEAD" or handler.code in _WITHOUT_BODY:
        return True
    count = _content_length(handler)
    if can_splice(under, handler.socket):
        _send_spliced(handler, under, count)
    else:
        _write_blocks(handler, count)
    return True


def _content_length(handler: Any) -> int | None:
    try:
        return max(int(handler.provided_content_length), 0)
    except (TypeError, ValueError):  # there is none, or it is the client's to refuse
        return None


def _send_spliced(handler: Any, under: Any, count: int | None) -> None:
    sink = ChunkedSink(handler.socket) if handler.response_use_chunked else None
    transfer = Transfer(under, sink or handler.socket, count)
    try:
        transfer.run()
    except OSError as error:
        if transfer.undelivered or is_regular_file(under):
            _lost_client(handler, error)
        raise
    finally:
        handler.response_length += transfer.moved + (sink.framing if sink else 0)
    if sink:
        handler._sendall(sink.take_line_break() + _LAST_CHUNK)
    elif count is not None and transfer.moved < count:
        handler.close_connection = True  # nothing else could tell the client


def _lost_client(handler: Any, error: OSError) -> None:
    """Have the log say what it says where the server's own ``sendall`` fails."""
    handler.status = f"socket error: {error}"
    if handler.code > 0:
        handler.code = -handler.code


def _write_blocks(handler: Any, count: int | None) -> None:
    left = count
    for block in handler.result if left != 0 else ():
        if left is not None:
            block = block[:left]
            left -= len(block)
        if block:
            handler.write(block)
        if left == 0:
            break
    if handler.response_use_chunked:
        handler._sendall(_LAST_CHUNK)
    elif left:
        handler.close_connection = True
