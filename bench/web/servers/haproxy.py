"""HAProxy in HTTP mode on one thread, with and without splice."""

from functools import partial
from pathlib import Path

from bench.contenders import inherited_listener
from bench.contenders.haproxy import SPLICE, execute, missing
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
    listener = inherited_listener()
    text = CONFIGURATION.format(
        options=options, listener=listener.fileno(), backend_port=backend_port
    )
    execute(text, listener)


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
