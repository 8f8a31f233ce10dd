"""How the end of a stream is told to the other side while the other direction goes on.

For TCP and unix sockets it is ``shutdown(SHUT_WR)``. TLS says it with a close_notify alert before
(RFC 8446, 6.1), without which many peers take the end for an attack. Python has no call that sends
the alert and leaves the session open for reading.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
from typing import Any, Final

from gevent.socket import SHUT_WR
from gevent.ssl import SSLSocket

from gsplice import _gevent, _kernel
from gsplice._gevent import GeventSocket

#: What the kernel says of a peer that has gone.
_GONE: Final = frozenset({errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET})
#: So many passes of the loop a direction may take until it reads; else nobody does.
_PASSES: Final = 8
#: More than an alert takes in any version of TLS, padding and all.
_ALERT_SIZE: Final = 1024


def half_close(sock: GeventSocket) -> None:
    """Tell *sock*'s peer that no more bytes will come; reading from it goes on as before.

    A peer that has gone already needs no telling: every byte before the end has been accepted, and
    the direction that reads from it finds out what became of it.
    """
    try:
        if isinstance(sock, SSLSocket):
            _end_tls(sock)
        else:
            sock.shutdown(SHUT_WR)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _end_tls(sock: SSLSocket) -> None:
    raw = _gevent.raw_socket(sock)
    session = _gevent.tls_session(sock)
    if session is not None and _is_read_up(session):
        alert = memoryview(_alert(sock.fileno(), session))
        while alert:
            try:
                alert = alert[raw.send(alert) :]
            except BlockingIOError:
                _gevent.wait_writable(sock)
    raw.shutdown(SHUT_WR)  # SSLSocket.shutdown() drops the session: recv() would give ciphertext


def _is_read_up(session: Any) -> bool:
    """Whether there is no rest of a record of which somebody has read a part.

    The alert would have it thrown away. The direction that reads takes it when it runs, and it may
    not have begun.
    """
    for _ in range(_PASSES):
        if not session.pending():
            return True
        _gevent.let_loop_pass()
    return not session.pending()


def _alert(fd: int, session: Any) -> bytes:
    """Return *session*'s close_notify alert as it has to be sent on *fd*.

    ``session.shutdown()`` sends the alert, and then it reads: a record that has just come would be
    lost with it, and the session at its end (SSL_shutdown(3)). So for the length of that call the
    number *fd* stands for a socket of our own, where it finds nothing to read.
    """
    try:
        near, far = _socket.socketpair()
    except OSError:
        return b""  # at the fd limit the end of the TCP stream has to say it alone
    try:
        near.setblocking(False)
        far.setblocking(False)
        # OSError: SSLWantReadError (it would read the peer's alert), or no fd left after all.
        with contextlib.suppress(OSError), _kernel.replaced(fd, near.fileno()):
            session.shutdown()
        with contextlib.suppress(BlockingIOError):
            return far.recv(_ALERT_SIZE)
        return b""  # it had been sent before
    finally:
        near.close()
        far.close()
