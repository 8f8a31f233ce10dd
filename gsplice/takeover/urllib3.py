"""urllib3's responses, and so requests' ``raw``, as sources: as they are on the wire.

There is nothing to turn on: no call site is changed.
"""

from __future__ import annotations

from typing import Any

from gsplice import _body
from gsplice._body import Body


class PooledBody(Body):
    """The body of an ``HTTPResponse`` of urllib3's, around one of http.client's."""

    __slots__ = ("_response", "_under")

    def __init__(self, response: Any, under: Body) -> None:
        # It counts, and gives its connection back, wherever it is read from.
        super().__init__(under.under, under.left, getattr(response, "read1", response.read))
        self._response = response
        self._under = under

    def took(self, count: int) -> None:
        """Count for the response, and for the one under it."""
        self._under.took(count)
        self._response._fp_bytes_read += count
        if self._response.length_remaining is not None:
            self._response.length_remaining -= count

    def failed(self, error: Exception) -> Exception:
        """Have urllib3 close its connection, and say in its own terms what happened."""
        try:
            with self._response._error_catcher():
                raise error
        except Exception as translated:
            return translated


def _look(response: Any) -> PooledBody | None:
    decodes = response.decode_content and response.headers.get("content-encoding")
    if decodes or len(response._decoded_buffer):
        return None
    under = _body.look(response._fp)
    return None if under is None else PooledBody(response, under)


_body.see_through("urllib3.response.HTTPResponse", _look)
