"""The standard library's ``http.client``: a source as a request's body, a response as a source."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any, Final

from gsplice import _body, _own_methods
from gsplice._body import Body
from gsplice._body_sender import BodySender
from gsplice._chunked import LAST_CHUNK
from gsplice._gevent import GeventSocket
from gsplice._recognition import is_real_stream_socket
from gsplice.takeover._replacements import Replacements
from gsplice.transfer import can_splice

MODULE: Final = "http.client"

#: What is used of a connection besides the methods that are replaced.
_NEEDED: Final = ("sock", "auto_open", "connect", "debuglevel", "_buffer", "_http_vsn")

#: Bytes to read at once where they cannot be spliced.
_BLOCK: Final = 16 * 1024


class ResponseBody(Body):
    """The body of an ``HTTPResponse`` that has a length, or ends with its connection."""

    __slots__ = ("_response",)

    def __init__(self, response: Any) -> None:
        super().__init__(response.fp, response.length)
        self._response = response

    def took(self, count: int) -> None:
        """Count down the response's own length."""
        if self._response.length is not None:
            self._response.length -= count

    def read(self, limit: int) -> bytes:
        """Read, and end the response where nothing is left of it."""
        data: bytes = self._response.read1(limit)
        if self._response.length == 0:
            self._response.read(0)  # which ends the response; read1() does from Python 3.13 on
        return data


def look_at_response(response: Any) -> ResponseBody | None:
    """Return the body of *response*, None where there is none or it comes in chunks."""
    if response.fp is None or response.chunked or response._method == "HEAD":
        return None
    return ResponseBody(response) if response.length != 0 else None


_body.see_through("http.client.HTTPResponse", look_at_response)
# What urlopen() raises for 404 and the like can be read, and is the response in a wrapper.
_body.unwrap("urllib.error.HTTPError", "fp", _own_methods.READING)


def install(module: ModuleType, replacements: Replacements) -> None:
    """Take over ``HTTPConnection.send`` and what ``request`` sends a body with."""
    connection = module.HTTPConnection
    replacements.require(connection, *_NEEDED)
    _install_send(connection, replacements)
    _install_send_output(connection, replacements)


def _install_send(connection: Any, replacements: Replacements) -> None:
    original = replacements.original(connection, "send", "self", "data")

    @functools.wraps(original)
    def send(self: Any, data: Any) -> None:
        if not _may_be_source(data):
            original(self, data)
            return
        if self.sock is None:
            original(self, b"")  # it connects, or says why it does not
        if _takes(self, data):
            _send_body(self, data, in_chunks=False)
        else:
            original(self, data)

    replacements.replace(connection, "send", send)


def _install_send_output(connection: Any, replacements: Replacements) -> None:
    original = replacements.original(
        connection, "_send_output", "self", "message_body", "encode_chunked"
    )

    @functools.wraps(original)
    def send_output(self: Any, message_body: Any = None, encode_chunked: bool = False) -> None:
        if _may_be_source(message_body):
            _connect(self)
            if _takes_as_body(self, message_body):
                original(self)  # the head
                in_chunks = encode_chunked and self._http_vsn == 11
                _send_body(self, message_body, in_chunks, by_send=_has_own_send(self))
                return
        original(self, message_body, encode_chunked)

    replacements.replace(connection, "_send_output", send_output)


def _send_body(connection: Any, body: Any, in_chunks: bool, by_send: bool = False) -> None:
    sock = connection.sock
    sys.audit("http.client.send", connection, body)
    if by_send or (in_chunks and not is_real_stream_socket(sock)):  # then it is from a socket
        while data := body.recv(_BLOCK):
            connection.send(b"%x\r\n%b\r\n" % (len(data), data) if in_chunks else data)
    else:
        BodySender(sock, in_chunks).send(body)
    if in_chunks:
        connection.send(LAST_CHUNK)


def _connect(connection: Any) -> None:
    """Connect where ``send`` would, with what it leaves behind where that fails."""
    if connection.sock is None and connection.auto_open:
        try:
            connection.connect()
        except BaseException:
            del connection._buffer[:]
            raise


def _may_be_source(data: Any) -> bool:
    return isinstance(data, GeventSocket) or hasattr(data, "read")


def _takes(connection: Any, data: Any) -> bool:
    """Whether to send *data* in our way. A socket always: ``http.client`` cannot send one."""
    sock = connection.sock
    if not isinstance(sock, GeventSocket) or connection.debuglevel > 0:  # it prints each block
        return False
    return isinstance(data, GeventSocket) or can_splice(data, sock)


def _takes_as_body(connection: Any, data: Any) -> bool:
    """Whether to send *data* in our way, where ``send`` would be called for each block of it."""
    if _has_own_send(connection) and not isinstance(data, GeventSocket):
        return False
    return _takes(connection, data)


def _has_own_send(connection: Any) -> bool:
    """Whether ``send`` of *connection* may count what is sent, or change it."""
    return _own_methods.has_own(connection, ("send",), MODULE)
