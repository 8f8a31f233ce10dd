"""``gunicorn --preload``: workers are forked from a process that has pipes and transfers."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from forks import pipes_of
from peers import pattern
from programs import ENVIRONMENT, PATIENCE, Gunicorn, free_port, wait_until

WORKERS = 2
SIZE = 1_200_003

#: Loaded in the arbiter: pipes in its pool, a transfer with a full pipe, and one that waits.
APPLICATION = """
import gevent.monkey
gevent.monkey.patch_all(gsplice=True)
import http.client, json, os, socket
import gevent, gsplice
from forks import gsplices_pipes
from peers import MORE_THAN_BUFFERS, wait_until, waits_to_write


def line():
    client, source = socket.socketpair()
    sink, backend = socket.socketpair()
    return client, source, sink, backend

stalled, used, idle = [line() for _ in range(3)]
transfers = [gsplice.Transfer(source, sink, mode="splice").start() for _, source, sink, _ in
             (stalled, idle)]
gevent.spawn(stalled[0].sendall, bytes(MORE_THAN_BUFFERS))
wait_until(lambda: waits_to_write(stalled[2]))
gevent.spawn(used[0].sendall, bytes(100_000))
gevent.spawn(used[3].recv, 100_000, socket.MSG_WAITALL)
assert gsplice.copy(used[1], used[2], 100_000, mode="splice") == 100_000
PIPES = gsplices_pipes()
ARBITER = os.getpid()

def application(environ, start_response):
    if environ["PATH_INFO"] == "/facts":
        facts = {"pid": os.getpid(), "arbiter": ARBITER, "inherited": sorted(PIPES)}
        body = json.dumps(facts | gsplice.stats()._asdict()).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    upstream = http.client.HTTPConnection("127.0.0.1", int(os.environ["BACKEND"]))
    upstream.request("GET", environ["PATH_INFO"])
    response = upstream.getresponse()
    start_response("200 OK", [("Content-Length", response.headers["Content-Length"])])
    return environ["wsgi.file_wrapper"](response)
"""


class Backend(BaseHTTPRequestHandler):
    """Gives each path bytes of its own."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        self.wfile.write(pattern(SIZE, int(self.path[1:])))

    def log_message(self, *_: Any) -> None:
        """Not a word."""


@pytest.fixture
def backend() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["gevent", "gevent_pywsgi"])
def port(request: pytest.FixtureRequest, backend: int, tmp_path: Path) -> Iterator[int]:
    """Run gunicorn with the application preloaded."""
    (tmp_path / "preloaded.py").write_text(APPLICATION)
    number = free_port()
    search = f"{Path(__file__).parent}:{ENVIRONMENT['PYTHONPATH']}"
    program = Gunicorn(
        *(request.param, "preloaded:application", number, "--preload", "-w", str(WORKERS)),
        cwd=tmp_path,
        PYTHONPATH=search,
        BACKEND=str(backend),
    )
    with program:
        for _ in range(WORKERS):
            program.expect("Booting worker")
        yield number
        program.stop()
        assert "Traceback" not in program.output, program.output


def fetch(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().read()
    finally:
        connection.close()


def test_workers_of_a_preloaded_application_have_nothing_of_its_pipes_and_transfers(
    port: int,
) -> None:
    workers: dict[int, dict[str, Any]] = {}

    def every_worker_has_spliced() -> bool:
        with ThreadPoolExecutor(8) as pool:
            for key, body in enumerate(pool.map(lambda key: fetch(port, f"/{key}"), range(16))):
                assert body == pattern(SIZE, key)
        facts = json.loads(fetch(port, "/facts"))
        if facts["spliced"]:
            workers[facts["pid"]] = facts
        return len(workers) == WORKERS

    wait_until(every_worker_has_spliced, "each worker has had its share")
    for pid, facts in workers.items():
        assert pid != facts["arbiter"]
        assert len(facts["inherited"]) == 2, "one in the pool, one in the stalled transfer"
        assert set(facts["inherited"]) <= pipes_of(facts["arbiter"]), "the arbiter keeps its own"
        assert not set(facts["inherited"]) & pipes_of(pid)
        assert facts["active"] == 0
        assert facts["fallbacks"] == {}
