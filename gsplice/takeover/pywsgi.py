"""gevent's WSGI server: what `gsplice.pywsgi.WSGIHandler` does, for every handler."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, Final

from gsplice import _body
from gsplice._body import Body
from gsplice._pywsgi import FILE_WRAPPER, NEEDED, send_file
from gsplice.takeover._replacements import Replacements

MODULE: Final = "gevent.pywsgi"


class RequestBody(Body):
    """The body of a request with a Content-Length: ``environ["wsgi.input"]``."""

    __slots__ = ("_ask_for_body", "_input")

    def __init__(self, wsgi_input: Any) -> None:
        left = wsgi_input.content_length - wsgi_input.position
        super().__init__(wsgi_input.rfile, left)
        self._input = wsgi_input
        self._ask_for_body = wsgi_input._send_100_continue

    def read(self, limit: int) -> bytes:
        """Read as the application would."""
        data: bytes = self._input.read(limit)
        return data

    def prepare(self) -> None:
        """Tell the client to go on, if it waits for that (RFC 9110, 10.1.1)."""
        self._ask_for_body()

    def took(self, count: int) -> None:
        """Move the position on, from where the server will look for the next request."""
        self._input.position += count


def _look_at_request(wsgi_input: Any) -> RequestBody | None:
    if wsgi_input.chunked_input or wsgi_input.content_length is None:
        return None
    return RequestBody(wsgi_input) if wsgi_input.position < wsgi_input.content_length else None


_body.see_through("gevent.pywsgi.Input", _look_at_request)


def install(module: ModuleType, replacements: Replacements) -> None:
    """Take over what makes the environment, and what sends the application's result."""
    handler = module.WSGIHandler
    original_environ = replacements.original(handler, "get_environ", "self")
    original_result = replacements.original(handler, "process_result", "self")
    replacements.require(handler, *NEEDED)

    @functools.wraps(original_environ)
    def get_environ(self: Any) -> dict[str, Any]:
        environ: dict[str, Any] = original_environ(self)
        environ.setdefault(*FILE_WRAPPER)
        return environ

    @functools.wraps(original_result)
    def process_result(self: Any) -> None:
        if not send_file(self):
            original_result(self)

    replacements.replace(handler, "get_environ", get_environ)
    replacements.replace(handler, "process_result", process_result)
