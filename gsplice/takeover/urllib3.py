"""urllib3's responses, and so requests' ``raw``, as sources: as they are on the wire.

There is nothing to turn on: no call site is changed.
"""

from __future__ import annotations

from typing import Any

from gsplice import _body
from gsplice._body import Body


class PooledBody(Body):
    """The body of an ``HTTPResponse`` of urllib3's, around one of http.client's."""

    __slots__ = ("_catch_errors", "_http_body", "_read", "_response")

    def __init__(self, response: Any, http_body: Body) -> None:
        super().__init__(http_body.under, http_body.left)
        # It counts, and gives its connection back, wherever it is read from.
        self._read = getattr(response, "read1", response.read)
        self._response = response
        self._http_body = http_body
        self._catch_errors = response._error_catcher
        self._count(0)

    def read(self, limit: int) -> bytes:
        """Read as anyone would."""
        data: bytes = self._read(limit)
        return data

    def took(self, count: int) -> None:
        """Count for the response, and for the one under it."""
        self._http_body.took(count)
        self._count(count)

    def _count(self, count: int) -> None:
        self._response._fp_bytes_read += count
        if self._response.length_remaining is not None:
            self._response.length_remaining -= count

    def failed(self, error: OSError) -> Exception:
        """Have urllib3 close its connection, and say in its own terms what happened."""
        try:
            with self._catch_errors():
                raise error
        except Exception as translated:
            error.with_traceback(None)  # its frames refer to it, and to the response
            return translated.with_traceback(None)


def _look(response: Any) -> PooledBody | None:
    decodes = response.decode_content and response.headers.get("content-encoding")
    has_decoded = getattr(response, "_has_decoded_content", False)  # then `read` refuses the rest
    if decodes or has_decoded or len(response._decoded_buffer):
        return None
    http_body = _body.look(response._fp)
    return None if http_body is None else PooledBody(response, http_body)


_body.see_through("urllib3.response.HTTPResponse", _look)
