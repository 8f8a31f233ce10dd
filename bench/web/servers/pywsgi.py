"""gevent's own WSGI server."""

from functools import partial
from pathlib import Path

from bench.addresses import announce
from bench.contenders.gsplice_relay import missing
from bench.web.servers import Server


def serve(backend_port: int, folder: Path, with_gsplice: bool) -> None:
    from gevent import monkey

    monkey.patch_all()
    from gevent.pywsgi import WSGIServer

    from bench.web.application import create

    application = create(backend_port, str(folder), with_gsplice)
    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
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
