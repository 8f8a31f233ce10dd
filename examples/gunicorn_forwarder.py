"""Forwards every connection on one port to another address, on as many cores as there are workers.

    python -m pip install gunicorn
    gunicorn -k gsplice.gunicorn.ServerWorker --workers 2 --bind 127.0.0.1:8080 \\
        --chdir examples 'gunicorn_forwarder:forwarder("example.org:80")'

gunicorn is told as usual how many workers to have, where to listen and how long to wait for
connections when it reloads (--graceful-timeout). Or have a program of your own run it:

    python examples/gunicorn_forwarder.py 127.0.0.1:8080 example.org:80 --workers 2
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial

from gunicorn.app.base import BaseApplication

from gsplice.server import ForwardServer


def address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def forwarder(target: str, idle_timeout: float | None = 300) -> Callable[..., ForwardServer]:
    """The application: what makes a server of a listening socket, in each worker."""
    return partial(ForwardServer, target=address(target), idle_timeout=idle_timeout)


class Forwarder(BaseApplication):
    def __init__(self, application: Callable[..., ForwardServer], **settings: object) -> None:
        self.application = application
        self.settings = settings
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("worker_class", "gsplice.gunicorn.ServerWorker")
        self.cfg.set("when_ready", say_where)
        for name, value in self.settings.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., ForwardServer]:
        return self.application


def say_where(arbiter) -> None:
    for listener in arbiter.LISTENERS:
        host, port = listener.getsockname()[:2]
        print(f"listening on {host}:{port}", file=sys.stderr, flush=True)


def host_and_port(text: str) -> str:
    address(text)  # of a ValueError argparse makes a line
    return text


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "listen", type=host_and_port, metavar="LISTEN", help="HOST:PORT to listen on"
    )
    parser.add_argument(
        "target", type=host_and_port, metavar="TARGET", help="HOST:PORT to forward to"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    args = parser.parse_args()
    application = forwarder(args.target)
    Forwarder(application, bind=args.listen, workers=args.workers, loglevel="warning").run()
