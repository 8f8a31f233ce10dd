"""HAProxy in TCP mode on one thread, with and without splice."""

import resource
import socket
from functools import partial

from bench.addresses import Address, announce, listening
from bench.contenders import Contender, execute, file_in_memory, program

CONFIGURATION = """
global
    nbthread 1
    maxconn {most_connections}
    maxpipes {pipes}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{options}
listen relay
    bind fd@{listener}
    server backend {backend}
"""
# "splice-auto" would leave it to HAProxy's own guess when to; without either, it never does.
SPLICE = """
    option splice-request
    option splice-response
"""
OWN_FDS = 200  # at the most, beside those of connections
PIPES = 500  # by default it has one for four connections


def missing() -> str:
    return "" if program("haproxy") else "haproxy is not installed"


def serve(at: Address, backend: Address, options: str = "") -> None:
    listener = listening(at)
    text = CONFIGURATION.format(
        options=options,
        listener=listener.fileno(),
        most_connections=most_connections(),
        pipes=PIPES,
        backend=f"unix@{backend}" if isinstance(backend, str) else "{}:{}".format(*backend),
    )
    become_haproxy(text, listener)


def most_connections() -> int:
    """As many as there are fds for: HAProxy does not start if it is promised more."""
    fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(12_000, (fds - OWN_FDS) // 2 - PIPES)


def become_haproxy(configuration: str, listener: socket.socket) -> None:
    """HAProxy with that configuration, and that socket."""
    announce(listener.getsockname())
    execute(program("haproxy"), "-db", "-f", file_in_memory("haproxy.cfg", configuration))


CONTENDERS = [
    Contender("haproxy", "HAProxy, one thread, without splice", serve, missing),
    Contender(
        "haproxy-splice",
        "HAProxy, one thread, splice both ways",
        partial(serve, options=SPLICE),
        missing,
    ),
]
