"""For programs that cannot be handed a socket that listens, and do not say when theirs does."""

import os
import socket
import time

from bench.addresses import Address, announce

START_SECONDS = 15.0
LISTENS = "0A"  # TCP_LISTEN, from <net/tcp_states.h>
ACCEPTS = 0x10000  # __SO_ACCEPTCON, from <linux/net.h>


def reserved(at: Address) -> Address:
    """A port that this process keeps, and lets whoever says ``reuseport`` listen on.

    It stays kept in the program that this process becomes. A unix socket's path needs no keeping.
    """
    if isinstance(at, str):
        return at
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    keeper.bind(at)
    keeper.set_inheritable(True)
    address: Address = keeper.getsockname()
    keeper.detach()
    return address


def announce_when_it_listens(at: Address) -> None:
    """By a process that waits for it, and is not a child of the program that this one becomes."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork() == 0:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(at) and time.monotonic() < deadline:
            time.sleep(0.002)
        announce(at)
    os._exit(0)


def _listens(at: Address) -> bool:
    """Whether somebody does. To connect would tell too, and be a connection to relay."""
    if isinstance(at, str):
        rows = (line.split() for line in _lines("unix"))
        return any(row[-1] == at and int(row[3], 16) & ACCEPTS for row in rows)
    port = f":{at[1]:04X}"
    rows = (line.split() for line in _lines("tcp"))
    return any(row[1].endswith(port) and row[3] == LISTENS for row in rows)


def _lines(table: str) -> list[str]:
    with open(f"/proc/self/net/{table}") as file:
        return file.readlines()[1:]
