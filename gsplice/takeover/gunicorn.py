"""gunicorn's gevent workers: a wrapped backend's response goes out spliced, a request's body too.

``-k gevent_pywsgi`` is `gevent.pywsgi`'s affair, but for the wrapper's class. Regular files are
gunicorn's own: it has the socket's ``sendfile`` send them, which is a takeover of the socket. Small
ones go out in one piece with their head, which saves more than the looks at files and sockets cost.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from gsplice import _body, _recognition
from gsplice._body import Body
from gsplice._body_sender import BodySender
from gsplice._wsgi import first_block, in_full_segments, is_small_stream, worth_splicing
from gsplice.takeover._replacements import Replacements

MODULE: Final = "gunicorn.http.wsgi"

#: What is used of a response besides the method that is replaced.
_NEEDED: Final = (
    "can_sendfile",
    "cfg",
    "chunked",
    "req",
    "response_length",
    "sent",
    "sock",
    "write",
)

#: Bytes of a file whose head waits for it: with more, it is a small part of what there is to do.
_CORKED: Final = 64 * 1024


class RequestBody(Body):
    """The body of a request with a Content-Length: ``environ["wsgi.input"]``.

    Some of it may be in the body's own buffer, which has been counted, and some in the parser's
    (the "unreader"), which has not.
    """

    __slots__ = ("_body", "_counted")

    def __init__(self, body: Any) -> None:
        left = body.buf.tell() + body.reader.length
        super().__init__(body.reader.unreader.sock, left)
        self._body = body
        self._counted = 0

    def read(self, limit: int) -> bytes:
        """Read as the application would."""
        data: bytes = self._body.read(limit)
        return data

    def take_buffered(self, limit: int | None) -> bytes:
        """Take what is in the two buffers, and of this body; at most *limit* bytes."""
        body, unreader = self._body, self._body.reader.unreader
        body.buf, own = _split(body.buf, limit)
        self._counted += len(own)
        rest = body.reader.length if limit is None else min(limit - len(own), body.reader.length)
        unreader.buf, ahead = _split(unreader.buf, rest)
        return own + ahead

    def took(self, count: int) -> None:
        """Count down what the reader has left."""
        self._body.reader.length -= count - self._counted

    def failed(self, error: OSError) -> Exception:
        """Have gunicorn use the connection for no further request."""
        self._body.failed = True
        return error


def _split(buffer: io.BytesIO, size: int | None) -> tuple[io.BytesIO, bytes]:
    """Return what is left of *buffer*, with its position at its end, and the bytes before."""
    data = buffer.getvalue()
    taken = data[:size]
    rest = io.BytesIO()
    rest.write(data[len(taken) :])
    return rest, taken


def _look_at_request(body: Any) -> RequestBody | None:
    readers = (type(body.reader).__name__, type(getattr(body.reader, "unreader", None)).__name__)
    if readers != ("LengthReader", "SocketUnreader"):
        return None
    unreader = body.reader.unreader
    if not isinstance(unreader.buf, io.BytesIO):
        return None
    found = RequestBody(body)
    return found if found.left else None


_body.see_through("gunicorn.http.body.Body", _look_at_request)
_body.unwrap("gunicorn.http.wsgi.FileWrapper", "filelike", ("__getitem__", "__next__"))


def install(module: ModuleType, replacements: Replacements) -> None:
    """Take over ``Response.write_file``."""
    response = module.Response
    original = replacements.original(response, "write_file", "self", "respiter")
    replacements.require(response, *_NEEDED)

    @functools.wraps(original)
    def write_file(self: Any, respiter: Any) -> None:
        if type(self) is not response:  # HTTP/2's frames what it writes in its own way
            original(self, respiter)
        elif _recognition.is_file(respiter.filelike):
            _write_regular_file(self, respiter, original)
        elif _takes(self, respiter):
            _send_file(self, respiter.filelike)
        else:
            original(self, respiter)

    replacements.replace(response, "write_file", write_file)


def _takes(response: Any, wrapper: Any) -> bool:
    # First: to ask the configuration costs a hundredth of a small answer.
    if is_small_stream(wrapper.filelike, response.response_length):
        return False
    under = _body.wrapped(wrapper)
    if under is wrapper:
        return False
    if response.cfg.is_ssl or not response.can_sendfile():
        return False
    if getattr(response, "_omits_body", response.req.method == "HEAD"):
        return False
    return worth_splicing(wrapper, under, response.sock, response.response_length) is not None


def _write_regular_file(response: Any, wrapper: Any, original: Callable[..., None]) -> None:
    length = response.response_length
    if length is not None and length <= _CORKED:
        in_full_segments(response.sock, original, response, wrapper)
    else:
        original(response, wrapper)


def _send_file(response: Any, under: Any) -> None:
    first = first_block(under)
    response.write(first)
    if not first:
        return
    length = response.response_length
    sender = BodySender(response.sock, response.chunked)
    try:
        sender.send(under, None if length is None else max(length - response.sent, 0))
    finally:
        response.sent += sender.moved
