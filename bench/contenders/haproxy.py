"""HAProxy in TCP mode on one thread, with and without splice."""

import os
import shutil
import socket
from functools import partial

from bench.contenders import Contender, announce

CONFIGURATION = """
global
    nbthread 1
    maxconn 2048
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{options}
listen relay
    bind fd@{listener}
    server backend 127.0.0.1:{backend_port}
"""
# "splice-auto" would leave it to HAProxy's own guess when to; without either, it never does.
SPLICE = """
    option splice-request
    option splice-response
"""
BACKLOG = 4096


def program() -> str | None:
    # Debian puts it where a user's PATH does not look.
    return shutil.which("haproxy", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def missing() -> str:
    return "" if program() else "haproxy is not installed"


def serve(backend_port: int, options: str = "") -> None:
    haproxy = program()
    assert haproxy is not None
    # HAProxy does not say when it listens: it is handed a socket that does.
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    configuration = os.memfd_create("haproxy.cfg", 0)
    text = CONFIGURATION.format(
        options=options, listener=listener.fileno(), backend_port=backend_port
    )
    os.write(configuration, text.encode())
    listener.set_inheritable(True)
    announce(listener.getsockname()[1])
    os.execv(haproxy, [haproxy, "-db", "-f", f"/proc/self/fd/{configuration}"])


CONTENDERS = [
    Contender("haproxy", "HAProxy, one thread, without splice", serve, missing),
    Contender(
        "haproxy-splice",
        "HAProxy, one thread, splice both ways",
        partial(serve, options=SPLICE),
        missing,
    ),
]
