"""Call sites that splice with no new API: one module for each library that is taken over.

Nothing is replaced on import. A takeover replaces attributes in place, on the very object where
they are looked up (gevent's ``server``, ``ssl`` and ``pywsgi`` share one socket class), and every
original is kept to be put back. A library that is not what its takeover was written for is left
alone, and counted among the fallbacks.

A further library is a further module, with the name of the ``MODULE`` that it changes and a
function ``install(module, replacements)``; then a line in `_TAKEOVERS`, and to turn it on a keyword
of `patch_all` and a ``patch_...`` function. A module here may as well register how to see through
its library's objects (`gsplice._body`), which is on at all times: one that does nothing but that
is only imported.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from gsplice import _account
from gsplice.takeover import gunicorn as _gunicorn
from gsplice.takeover import http as _http
from gsplice.takeover import pywsgi as _pywsgi
from gsplice.takeover import shutil as _shutil
from gsplice.takeover import socket as _socket
from gsplice.takeover import urllib3 as _urllib3  # noqa: F401 - it only registers
from gsplice.takeover._imports import forget, when_imported
from gsplice.takeover._replacements import NotAsExpected, Replacements

_TAKEOVERS: Final[dict[str, Any]] = {
    "socket": _socket,
    "shutil": _shutil,
    "http": _http,
    "pywsgi": _pywsgi,
    "gunicorn": _gunicorn,
}

#: Those that are on, and what they have replaced.
_on: Final[dict[str, Replacements]] = {}


def patch_all(
    socket: bool = True,
    shutil: bool = True,
    http: bool = True,
    pywsgi: bool = True,
    gunicorn: bool = True,
) -> None:
    """Turn the takeovers on; those that are named false stay as they are.

    It may be called again, for more, and before or after ``gevent.monkey.patch_all()``. No library
    is imported: what is imported later is taken over then.
    """
    asked = {
        "socket": socket,
        "shutil": shutil,
        "http": http,
        "pywsgi": pywsgi,
        "gunicorn": gunicorn,
    }
    for name, wanted in asked.items():
        if wanted:
            _patch(name)


def patch_socket() -> None:
    """Have ``sendall(source)`` and ``sendfile(file)`` of gevent's sockets splice."""
    _patch("socket")


def patch_shutil() -> None:
    """Have ``shutil.copyfileobj`` splice, and take sockets as well."""
    _patch("shutil")


def patch_http() -> None:
    """Have ``http.client`` splice the bodies of requests."""
    _patch("http")


def patch_pywsgi() -> None:
    """Have `gevent.pywsgi` provide a ``wsgi.file_wrapper``, and splice what is wrapped in it."""
    _patch("pywsgi")


def patch_gunicorn() -> None:
    """Have gunicorn's gevent workers splice a response that wraps a backend's."""
    _patch("gunicorn")


def unpatch_all() -> None:
    """Put every original back."""
    forget()
    while _on:
        _, replacements = _on.popitem()
        replacements.undo()


def is_patched(name: str) -> bool:
    """Return whether the takeover *name* (a keyword of `patch_all`) is on.

    It is where its library is not imported yet, and is not where the library was left alone.

    :raises ValueError: where there is no takeover of that name.
    """
    if name not in tuple(_TAKEOVERS):  # compared: what cannot be hashed is no name either
        raise ValueError(f"no takeover is named {name!r}; there are: {', '.join(_TAKEOVERS)}")
    return name in _on


def _patch(name: str) -> None:
    if name in _on:
        return
    takeover, replacements = _TAKEOVERS[name], Replacements()
    _on[name] = replacements

    def install(module: ModuleType) -> None:
        try:
            takeover.install(module, replacements)
        except (NotAsExpected, AttributeError):
            replacements.undo()
            del _on[name]
            _account.fell_back(f"{takeover.MODULE} is not as expected")

    when_imported(takeover.MODULE, install)
