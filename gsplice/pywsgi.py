"""A handler for `gevent.pywsgi.WSGIServer` that provides ``wsgi.file_wrapper``.

::

    import gsplice.pywsgi

    WSGIServer(("", 8080), application, handler_class=gsplice.pywsgi.WSGIHandler).serve_forever()

It is what ``gsplice.patch_pywsgi()`` makes of every handler, for one server alone.
"""

from __future__ import annotations

from typing import Any

from gevent import pywsgi

from gsplice._pywsgi import FILE_WRAPPER, send_file

__all__ = ["WSGIHandler"]


class WSGIHandler(pywsgi.WSGIHandler):
    """Sends what an application has wrapped in ``environ["wsgi.file_wrapper"]`` (PEP 3333).

    A file goes out by ``sendfile(2)``, the response of a backend by ``splice(2)``, and anything
    else block by block. Of a wrapper no byte is sent past ``Content-Length``, and none in an answer
    to HEAD or with status 204 or 304.
    """

    def get_environ(self) -> dict[str, Any]:
        """Return the environment of a request."""
        environ: dict[str, Any] = super().get_environ()
        environ.setdefault(*FILE_WRAPPER)
        return environ

    def process_result(self) -> None:
        """Send what the application has returned."""
        if not send_file(self):
            super().process_result()
