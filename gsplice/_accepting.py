"""How a server accepts clients at its limits: where there is no fd for them, and at its end.

Invariant: a client whom the kernel has accepted is not dropped while it can be served. Without an
fd it waits in the backlog. When the server closes its socket the kernel resets those who wait there
(tcp(7) has no call that lets nobody else in), so they are accepted first; but where others accept
at the same socket those are theirs.
"""

from __future__ import annotations

import _socket
import logging
import os
import select
from collections.abc import Callable
from typing import Any, Final

from gevent import GreenletExit
from gevent.server import StreamServer

from gsplice import _hub, _kernel

_logger = logging.getLogger("gsplice.server")

#: So many clients are accepted at the end, at the most: what the kernel keeps in a backlog
#: (net.core.somaxconn), and not all who go on coming.
_MOST_AT_THE_END: Final = 4096


class TryLater(GreenletExit):
    """Has `StreamServer` try again later, as after any error, and print nothing (`Hub.NOT_ERROR`).

    A traceback for each try would fill the log just when the machine has nothing to spare.
    """


class AcceptingServer(StreamServer):
    """A server that says in one line that it has no fds, and leaves nobody behind at its end."""

    #: Whether other processes accept at the same socket, at the end of this one as well. They get
    #: the clients who wait then.
    shares_listener = False

    _said_no_fd = False  # since the last time that nobody was left waiting
    _process = -1  # where it listens

    def init_socket(self) -> None:
        """Listen, where the listener was given as an address."""
        super().init_socket()
        self._process = os.getpid()

    def close(self) -> None:
        """Accept those who wait, and then no more."""
        try:
            # In a forked child clients are the parent's.
            if self.started and not self.shares_listener and self._process == os.getpid():
                self._accept_the_last()
        finally:
            super().close()

    def accept_by(self, accept: Callable[[], Any]) -> Any:
        """Return what *accept* does: a client, or None where nobody waits.

        :raises TryLater: where somebody waits, and there is no fd.
        """
        try:
            client = self._accept_with_an_fd(accept)
        except OSError as error:
            if error.errno not in _kernel.NO_FD:
                raise
            # The kernel looks for an fd before it looks for a client (accept(2)).
            if self._somebody_waits():
                self._say_no_fd(error)
                raise TryLater from None
            return None
        if client is None:
            self._said_no_fd = False
        return client

    def _accept_with_an_fd(self, accept: Callable[[], Any]) -> Any:
        try:
            return accept()
        except OSError as error:
            pipes = _hub.resources().pipes
            if error.errno not in _kernel.NO_FD or not pipes.idle:
                raise
            pipes.close()  # without one bytes are copied, without an fd a client is not served
            return accept()

    def _accept_the_last(self) -> None:
        try:
            for _ in range(_MOST_AT_THE_END):
                client = None if self.full() else self.do_read()
                if client is None:
                    return
                self.do_handle(*client)
        except (OSError, TryLater):
            pass  # there is nothing to accept with

    def _somebody_waits(self) -> bool:
        return _kernel.is_ready(self.socket.fileno(), select.POLLIN)

    def _say_no_fd(self, error: OSError) -> None:
        if not self._said_no_fd:
            self._said_no_fd = True
            _logger.warning("clients wait in the backlog: there is no fd (%s)", error.strerror)


def check_listener(listener: Any, reuse_port: bool) -> None:
    """Raise TypeError where *listener* cannot be what a server accepts at."""
    if reuse_port and hasattr(listener, "accept"):
        raise TypeError(f"reuse_port is for an address to listen at: {listener!r} has one already")
    # gevent.socket.create_server is the standard library's, and so is what it returns.
    if isinstance(listener, _socket.socket) and listener.gettimeout() != 0:
        raise TypeError(
            f"{listener!r} would block the hub: listen with a gevent.socket.socket, or give the "
            "address and leave that to the server"
        )
