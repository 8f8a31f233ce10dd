"""Addresses as they are written on a command line: ``host:port``, ``[v6]:port``, ``unix:/path``."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import Any, Final, TypeAlias

from gevent import socket

#: ``(host, port)``, or the path of a unix socket.
Address: TypeAlias = tuple[str, int] | str

_HOST_AND_PORT: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>[0-9]{1,5})"
)
#: Bytes that ``sun_path`` has room for, beside the NUL at its end (unix(7)).
_LONGEST_PATH: Final = 107
_FORMS: Final = "host:port, [v6]:port or unix:/path"


def parse(text: str, *, to_listen: bool = False) -> Address:
    """Return the address that *text* names.

    :param to_listen: whether an empty host (any) and port 0 (one that is free) make sense.
    :raises ValueError: where it names none; the message says what is wrong.
    """
    address: Address = text.removeprefix("unix:")
    if address == text:
        match = _HOST_AND_PORT.fullmatch(text)
        if match is None:
            raise ValueError(f"bad address {text!r}: expected {_FORMS}")
        address = (match["v6"] or match["host"] or "", int(match["port"]))
    if problem := _problem_of(address, to_listen):
        raise ValueError(f"bad address {text!r}: {problem}")
    return address


def check(address: Address) -> None:
    """Raise ValueError where *address* is none that can be connected to; it says why."""
    if problem := _problem_of(address, to_listen=False):
        raise ValueError(f"bad address {address!r}: {problem}")


def _problem_of(address: Address, to_listen: bool) -> str:
    if isinstance(address, str):
        return _problem_of_path(address)
    host, port = address
    first = 0 if to_listen else 1
    if not first <= port <= 65535:
        return f"the port must be from {first} to 65535"
    if not host:
        return "" if to_listen else "the host is missing"
    try:
        host.encode("idna")  # as the standard library does before it looks the name up
    except UnicodeError:
        return "no host has such a name"
    return "the host has a NUL in it" if "\0" in host else ""


def _problem_of_path(path: str) -> str:
    if not path:
        return "the path is missing"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        return f"the path has more than {_LONGEST_PATH} bytes"
    is_abstract = path.startswith("\0")  # unix(7): any bytes may follow
    return "the path has a NUL in it" if "\0" in path and not is_abstract else ""


def show(address: Any) -> str:
    """Return *address*, as `parse` or ``getsockname()`` gave it, as it is written."""
    if not isinstance(address, tuple):
        return f"unix:{os.fsdecode(address)}".replace("\0", "@")  # an abstract name (unix(7))
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def numeric_family(host: str) -> int | None:
    """Return the family of *host* if that is a number, and None if it has to be looked up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return int(family)
    return None


def listen(address: Address, backlog: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket that listens at *address*.

    :param reuse_port: see `bound`.
    :raises OSError: where that cannot be; its ``strerror`` says why.
    """
    if isinstance(address, str):
        _remove_stale_socket(address)
        return bound(socket.AF_UNIX, address, backlog)
    host, port = address
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, resolved = found[0]
    return bound(family, resolved, backlog, reuse_port=reuse_port)


def bound(family: int, address: Any, backlog: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket that listens at *address*, in the form that *family* has it.

    :param reuse_port: whether other sockets of the same user's, in this process or in others, may
        listen at the same address, and the kernel spread connections over them (socket(7)).
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale_socket(path: str) -> None:
    """Remove a unix socket that a process which is no more has left at *path* (unix(7))."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # one with a full backlog is not stale, and not waited for
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
