"""What the WSGI servers run: files, and a reverse proxy as small as can be.

It is the same with gsplice and without, but for the one line that turns gsplice on.
"""

import http.client
import os
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.util import FileWrapper

# What is wrapped is read in blocks of this size where it is not spliced. Smaller ones make it
# slower.
BLOCK = 64 * 1024
PASSED_ON = ("Content-Type", "Content-Length")

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


def create(backend_port: int, folder: str, with_gsplice: bool) -> Application:
    if with_gsplice:
        import gsplice

        gsplice.patch_all()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/static/"):
            return serve_file(environ, start_response, folder)
        if environ["PATH_INFO"].startswith("/bytes/"):
            return serve_bytes(environ, start_response)
        return serve_backend(environ, start_response, backend_port)

    return application


def serve_file(environ: Environ, start_response: StartResponse, folder: str) -> Iterable[bytes]:
    file = open(folder + environ["PATH_INFO"], "rb")  # noqa: SIM115 - the server closes the wrapper
    size = os.fstat(file.fileno()).st_size
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
    return wrapped(environ, file)


def serve_bytes(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    body = bytes(int(environ["PATH_INFO"].removeprefix("/bytes/")))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def serve_backend(environ: Environ, start_response: StartResponse, port: int) -> Iterable[bytes]:
    backend = http.client.HTTPConnection("127.0.0.1", port, blocksize=BLOCK)
    headers, body = {"Connection": "close"}, None
    if environ.get("CONTENT_LENGTH"):
        headers["Content-Length"] = environ["CONTENT_LENGTH"]
        body = environ["wsgi.input"]
    backend.request(environ["REQUEST_METHOD"], environ["PATH_INFO"], body, headers)
    response = backend.getresponse()
    passed_on = [(name, value) for name, value in response.getheaders() if name in PASSED_ON]
    start_response(f"{response.status} {response.reason}", passed_on)
    return wrapped(environ, response)


def wrapped(environ: Environ, body: Any) -> Iterable[bytes]:
    wrapper: Callable[[Any, int], Iterable[bytes]]
    wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
    return wrapper(body, BLOCK)
