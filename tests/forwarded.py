"""A connection that is forwarded: its two ends, and what is between them."""

from __future__ import annotations

import _socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent import socket
from peers import Line, connected, receive, wait_until

from gsplice._forwarding import Forwarding
from gsplice._gevent import LeanSocket

OPTIONS: dict[str, Any] = {"idle_timeout": None, "mode": "auto", "moderation": 0.001}


def lean(sock: socket.socket) -> LeanSocket:
    """Return the same connection as a socket such as a server's are."""
    raw = _socket.socket(fileno=sock.detach())
    raw.setblocking(False)
    return LeanSocket.over(raw)


class Forwarded:
    """A client, a forwarding, and a backend."""

    def __init__(self, kind: str = "tcp", exchange: bool = True, **options: Any) -> None:
        self.client, source = connected(kind)
        sink, self.backend = connected(kind)
        self.line = Line(self.client, lean(source), lean(sink), self.backend)
        #: What it said at its end: a relay, or None.
        self.told: list[Any] = []
        options = OPTIONS | options
        self.forwarding = Forwarding(self.line.source, self.line.sink, options, self.told.append)
        self.forwarding.start(exchange)

    @property
    def is_exchange(self) -> bool:
        return self.forwarding._relay is None

    def error(self) -> BaseException | None:
        """Wait for its end; return what has ended it."""
        wait_until(lambda: self.told)
        (relay,) = self.told
        return None if relay is None else relay.exception

    def close(self) -> None:
        for sock in self.line:
            sock.close()


@pytest.fixture
def forwarded() -> Iterator[Callable[..., Forwarded]]:
    """Begin to forward; all is over at the end."""
    made: list[Forwarded] = []

    def begin(*args: Any, **options: Any) -> Forwarded:
        made.append(Forwarded(*args, **options))
        return made[-1]

    yield begin
    for one in made:
        one.forwarding.stop()
        one.error()
        one.close()


def there_and_back(one: Forwarded, message: bytes = b"hello") -> None:
    for near, far in ((one.client, one.backend), (one.backend, one.client)):
        near.sendall(message)
        assert receive(far, len(message)) == message
