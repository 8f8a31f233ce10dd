"""HAProxy in TCP mode on one thread, with and without splice."""

import os
import socket
from functools import partial

from bench.contenders import Contender, announce, inherited_listener, program

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


def missing() -> str:
    return "" if program("haproxy") else "haproxy is not installed"


def serve(backend_port: int, options: str = "") -> None:
    listener = inherited_listener()
    text = CONFIGURATION.format(
        options=options, listener=listener.fileno(), backend_port=backend_port
    )
    execute(text, listener)


def execute(text: str, listener: socket.socket) -> None:
    """Become HAProxy with that configuration, and that socket."""
    haproxy = program("haproxy")
    assert haproxy is not None
    configuration = os.memfd_create("haproxy.cfg", 0)
    os.write(configuration, text.encode())
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
