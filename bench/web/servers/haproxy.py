"""HAProxy in HTTP mode on one thread, with and without splice."""

from functools import partial
from pathlib import Path

from bench.addresses import listening
from bench.contenders.haproxy import SPLICE, become_haproxy, missing
from bench.web.cases import PROXY, UPLOAD
from bench.web.servers import Server

CONFIGURATION = """
global
    nbthread 1
    maxconn 2048
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{options}
listen web
    bind fd@{listener}
    server backend 127.0.0.1:{backend_port}
"""
KINDS = frozenset({PROXY, UPLOAD})


def serve(backend_port: int, folder: Path, options: str = "") -> None:
    listener = listening(("127.0.0.1", 0))
    text = CONFIGURATION.format(
        options=options, listener=listener.fileno(), backend_port=backend_port
    )
    become_haproxy(text, listener)


SERVERS = [
    Server("haproxy", "HAProxy, mode http, one thread, without splice", serve, missing, KINDS),
    Server(
        "haproxy-splice",
        "HAProxy, mode http, one thread, splice both ways",
        partial(serve, options=SPLICE),
        missing,
        KINDS,
    ),
]
