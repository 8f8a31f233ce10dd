"""Call sites that splice with no new API: one module for each library that is taken over.

Nothing is replaced on import. A takeover replaces attributes in place, on the very object where
they are looked up (gevent's ``server``, ``ssl`` and ``pywsgi`` share one socket class), and every
original is kept here to be put back.

A further library is a further module with an ``install(replace)`` function, and a line in
`_INSTALLERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gsplice.takeover import socket as _socket

#: Puts a new attribute into a class or a module: ``replace(owner, name, new)``.
Replace = Callable[[Any, str, Any], None]

_INSTALLERS: Final[dict[str, Callable[[Replace], None]]] = {"socket": _socket.install}

#: Takeover → what it has replaced: owner, name, and the original (or `_INHERITED`).
_replaced: Final[dict[str, list[tuple[Any, str, Any]]]] = {}
_INHERITED: Final = object()


def patch_all(socket: bool = True) -> None:
    """Turn the takeovers on; those that are named false stay as they are.

    It may be called again, for more, and before or after ``gevent.monkey.patch_all()``.
    """
    if socket:
        patch_socket()


def patch_socket() -> None:
    """Have ``sendall(source)`` and ``sendfile(file)`` of gevent's sockets splice."""
    _patch("socket")


def unpatch_all() -> None:
    """Put every original back."""
    for name in list(_replaced):
        for owner, attribute, original in reversed(_replaced.pop(name)):
            if original is _INHERITED:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, original)


def is_patched(name: str) -> bool:
    """Return whether the takeover *name* (a keyword of `patch_all`) is on.

    :raises ValueError: where there is no takeover of that name.
    """
    if name not in _INSTALLERS:
        raise ValueError(f"no takeover is named {name!r}; there are: {', '.join(_INSTALLERS)}")
    return name in _replaced


def _patch(name: str) -> None:
    if name in _replaced:
        return
    record = _replaced[name] = []

    def replace(owner: Any, attribute: str, new: Any) -> None:
        record.append((owner, attribute, vars(owner).get(attribute, _INHERITED)))
        setattr(owner, attribute, new)

    _INSTALLERS[name](replace)
