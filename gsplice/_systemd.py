"""Sockets that systemd, or another that speaks its protocol, has opened: ``sd_listen_fds(3)``.

Invariant: an fd is touched only where ``LISTEN_PID`` says that it is meant for this process, and no
child of this process can take it for its own: the variables are gone from the environment, and the
fds do not survive an ``exec``.
"""

from __future__ import annotations

import os
from typing import Final

from gevent import socket

#: The first fd that is passed; the others follow it (SD_LISTEN_FDS_START).
_FIRST: Final = 3
_WORD: Final = "systemd"
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def is_meant(text: str) -> bool:
    """Return whether *text* stands for a socket of systemd's: ``systemd`` or ``systemd:NAME``."""
    return text.partition(":")[0] == _WORD


def listener(text: str) -> socket.socket:
    """Return the socket that *text* stands for.

    :raises ValueError: where there is none, or more than one; the message says what is wrong.
    :raises OSError: where what was passed is no socket.
    """
    _, colon, name = text.partition(":")
    if colon and not name:
        raise ValueError(f"bad address {text!r}: the name of the socket is missing")
    passed = _passed()
    found = [fd for fd, its_name in passed if not colon or its_name == name]
    if len(found) != 1:
        names = ", ".join(its_name for _, its_name in passed)
        raise ValueError(f"{text} must stand for one socket: what was passed is named {names}")
    return _checked(socket.socket(fileno=found[0]))


def _passed() -> list[tuple[int, str]]:
    """Return the fds that were passed to this process, each with its name."""
    pid, count, names = (
        os.environ.pop(variable, "") for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if not (pid.isdecimal() and count.isdecimal() and int(count)):
        raise ValueError("systemd has passed no socket: LISTEN_PID and LISTEN_FDS tell of none")
    if int(pid) != os.getpid():
        raise ValueError(f"systemd has passed its sockets to process {pid}, not to {os.getpid()}")
    fds = range(_FIRST, _FIRST + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    own_names = names.split(":") if names else []
    return list(zip(fds, own_names + ["unknown"] * (len(fds) - len(own_names)), strict=False))


def _checked(sock: socket.socket) -> socket.socket:
    if (
        sock.family in _FAMILIES
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        return sock
    sock.close()
    raise ValueError("what systemd has passed is no TCP or unix socket that listens (Accept=no)")
