"""Workers for gunicorn that serve plain connections: on every core, with the arbiter in charge.

::

    gunicorn -k gsplice.gunicorn.StreamWorker --workers 2 --bind :7000 echo:handle
    gunicorn -k gsplice.gunicorn.ServerWorker --workers 2 --bind :8080 forwarder:application

The arbiter starts the workers, replaces those that die, reloads them (SIGHUP) and ends them
(SIGTERM), as it does with workers for HTTP.

Invariant: a connection that a worker has accepted is served to its end, or to the end of
``--graceful-timeout``, whatever the arbiter wants of the worker in the meantime. One that nobody
has accepted yet waits in the queue of the listening socket, which all workers share: a reload
loses neither. (With ``--reuse-port`` each worker has a queue of its own. A `ForwardServer` serves
what waits in it; with another server that is lost with the worker, but where the sysctl
``net.ipv4.tcp_migrate_req`` is set.)
"""

from __future__ import annotations

import time
from typing import Any, Final

import gevent
from gevent.baseserver import BaseServer
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from gsplice.server import ForwardServer

__all__ = ["ServerWorker", "StreamWorker"]

#: Seconds between two signs of life, as in gunicorn's own workers.
_HEARTBEAT: Final = 1.0


class _Worker(GeventWorker):
    """What the workers have in common: a server for each listening socket, from start to end."""

    alive: bool  # told by signals, and by `_count`
    servers: list[Any]

    def make_server(self, listener: Any) -> Any:
        """Return a server that accepts at *listener*."""
        raise NotImplementedError

    def load_wsgi(self) -> None:
        """Load the application, and have an error in it end the arbiter rather than each worker."""
        super().load_wsgi()
        self.servers = [self._server(listener) for listener in self.sockets]

    def run(self) -> None:
        """Serve until the arbiter says that it is enough."""
        for server in self.servers:
            server.start()
        pause = min(_HEARTBEAT, self.timeout) or _HEARTBEAT  # 0: the arbiter does not look
        while self.alive:
            self.notify()
            gevent.sleep(pause)
        self._finish(pause)

    def _finish(self, pause: float) -> None:
        """Accept no more, and end when all connections have, or have had their time."""
        deadline = time.monotonic() + self.cfg.graceful_timeout
        stopping = [gevent.spawn(server.stop, self.cfg.graceful_timeout) for server in self.servers]
        for greenlet in stopping:
            while not greenlet.ready():
                self.notify()
                greenlet.join(pause)
        if time.monotonic() >= deadline:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    def _server(self, listener: Any) -> Any:
        server = self.make_server(listener)
        if not isinstance(server, BaseServer):
            raise TypeError(
                f"the application must return a gevent server for a listening socket, not "
                f"{server!r}; a handler of connections is for {__name__}.StreamWorker"
            )
        self._limit(server)
        if self.cfg.workers > 1 and not self.cfg.reuse_port:
            server.max_accept = 1  # leave some to the others, as GeventWorker does
        if self.cfg.max_requests:
            self._count(server)
        return server

    def _limit(self, server: Any) -> None:
        """Have ``--worker-connections`` limit a server that has no limit of its own."""
        if isinstance(server, ForwardServer):
            server.shares_listener = not self.cfg.reuse_port
            if server.max_connections is None:
                server.max_connections = self.worker_connections
        elif server.pool is None:
            # It is also what lets connections finish: stop() waits for those in a pool alone.
            server.set_spawn(Pool(self.worker_connections))

    def _count(self, server: Any) -> None:
        """Have the worker replaced after ``--max-requests`` connections."""
        do_handle = server.do_handle

        def count(*args: Any) -> None:
            do_handle(*args)
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after %s connections.", self.nr)
                self.alive = False

        server.do_handle = count


class StreamWorker(_Worker):
    """Has the application, a ``handle(socket, address)``, serve each connection in a greenlet.

    As in a `gevent.server.StreamServer`, the socket is closed when it returns. With ``--certfile``
    it is a TLS socket.
    """

    def make_server(self, listener: Any) -> StreamServer:
        """Return a server that calls the application."""
        tls = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        return StreamServer(listener, self.wsgi, **tls)


class ServerWorker(_Worker):
    """Has the application, a ``server(listener)``, make the server that accepts at a socket.

    A class will do, or one with its arguments: ``functools.partial(ForwardServer, target=...)``.
    A server that limits its connections itself is not limited by ``--worker-connections``.
    """

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse settings that would be without effect."""
        if cfg.is_ssl:
            raise RuntimeError(
                f"{__name__}.ServerWorker leaves TLS to the server that the application makes: "
                "give the certificate to that, or use StreamWorker"
            )

    def make_server(self, listener: Any) -> Any:
        """Return what the application makes of *listener*."""
        return self.wsgi(listener)
