"""gevent's own WSGI server."""

from functools import partial
from pathlib import Path
from typing import Any

from bench.addresses import announce, set_no_delay
from bench.contenders.gsplice_relay import missing
from bench.web.cases import BYTES, PROXY, STATIC
from bench.web.servers import Server


def serve(backend_port: int, folder: Path, with_gsplice: bool) -> None:
    from gevent import monkey

    monkey.patch_all()
    from bench.web.application import create

    serve_application(create(backend_port, str(folder), with_gsplice))


def serve_switched(backend_port: int, folder: Path) -> None:
    from gevent import monkey

    monkey.patch_all()
    from bench.web.switched import create

    serve_application(create(backend_port, str(folder)), no_delay=True)


def serve_application(application: Any, no_delay: bool = False) -> None:
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    if no_delay:  # which the connections inherit, on Linux
        set_no_delay(server.socket)
    announce(server.socket.getsockname())
    server.serve_forever()


SERVERS = [
    Server("pywsgi", "gevent.pywsgi as it is", partial(serve, with_gsplice=False)),
    Server(
        "pywsgi-gsplice",
        "gevent.pywsgi after gsplice.patch_all()",
        partial(serve, with_gsplice=True),
        missing,
        as_it_is="pywsgi",
    ),
]
SWITCHED = [
    Server(
        "pywsgi-switched",
        "gevent.pywsgi, with TCP_NODELAY",
        serve_switched,
        missing,
        frozenset({PROXY, STATIC, BYTES}),
    ),
]
