"""What another greenlet, or the handler of a signal, can do between two steps of a transfer.

Where other code runs between the readiness of a socket and the system call for it, is in the hub,
in a callback before the engine's own. Between two steps of one callback only the handler of a
signal or a finalizer can. `before_method` strikes at both.
"""

from __future__ import annotations

import os
import socket as standard_socket
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
import pytest
from fd_reuse import OTHERS_BYTES
from gevent import socket
from peers import Pair

from gsplice import _gevent


def before_method(
    monkeypatch: pytest.MonkeyPatch,
    engine: type[Any],
    name: str,
    strike: Callable[[], Any],
    number: int = 1,
) -> list[int]:
    """Have *strike* called right before the *number*-th call of *engine*'s method *name*.

    The list that is returned has the number of each call made so far.
    """
    original = getattr(engine, name)
    calls: list[int] = []

    def struck(self: Any, *args: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == number:
            strike()
        return original(self, *args)

    monkeypatch.setattr(engine, name, struck)
    return calls


def behind_method(
    monkeypatch: pytest.MonkeyPatch, engine: type[Any], name: str, look: Callable[[Any], Any]
) -> list[Any]:
    """Note what *look* says, given the engine, right behind each call of *engine*'s method *name*.

    The list that is returned has what it said of each call made so far.
    """
    original = getattr(engine, name)
    seen: list[Any] = []

    def looked_at(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        seen.append(look(self))
        return result

    monkeypatch.setattr(engine, name, looked_at)
    return seen


def interrupt() -> None:
    """Do what the handler of SIGINT does."""
    raise KeyboardInterrupt


def wait_until_interrupted(hub_errors: list[Any], wait: Callable[[], Any] | None = None) -> None:
    """Let the hub run, by *wait* if given, until what `interrupt` raises in it comes out here."""
    with pytest.raises(KeyboardInterrupt):
        wait() if wait is not None else gevent.sleep(5)
    hub_errors.clear()  # gevent tells the hub as well


class Reused(NamedTuple):
    """A connection that has got the number of a socket that was closed."""

    near: standard_socket.socket
    far: standard_socket.socket

    def adopted(self) -> Pair:
        """Return its ends as gevent's: once nobody waits for the one that had the number before."""
        near, far = (socket.socket(fileno=sock.detach()) for sock in self)
        return near, far


def closed_in_hub(sock: socket.socket) -> Reused:
    """Close *sock* for good, in the hub, and use its number again at once.

    That is what a callback does which runs just before ours in the same turn of the loop.
    """
    near, far = standard_socket.socketpair()
    far.sendall(OTHERS_BYTES)
    fd = sock.fileno()
    raw = _gevent.raw_socket(sock)
    sock.close()
    raw.close()  # gevent puts it off while the socket is waited for
    os.dup2(near.fileno(), fd)
    near.close()
    return Reused(standard_socket.socket(fileno=fd), far)
