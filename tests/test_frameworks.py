"""Frameworks that know nothing of gsplice: what they wrap for the server is spliced."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import ENVIRONMENT, PATIENCE, Gunicorn, Program, free_port, wait_until

BODY = random.Random(34).randbytes(5_000_003)
SERVERS = ("pywsgi", "gunicorn-gevent", "gunicorn-gevent_pywsgi")
FRAMEWORKS = ("falcon", "flask", "webob", "bottle", "falcon-backend", "socket")

#: One application for each framework, as its documentation has it, and what they have moved.
APPLICATIONS = """
import gevent.monkey
gevent.monkey.patch_all()
import gsplice
gsplice.patch_all()
import http.client, json, os
import bottle, falcon, flask, webob.static

FILE = os.environ["SERVED_FILE"]

class FileResource:
    def on_get(self, request, response):
        response.content_type = "application/octet-stream"
        response.set_stream(open(FILE, "rb"), os.path.getsize(FILE))

class BackendResource:
    def on_get(self, request, response):
        connection = http.client.HTTPConnection("127.0.0.1", request.port)
        connection.request("GET", "/flask", headers={"Connection": "close"})
        answer = connection.getresponse()
        response.set_stream(answer, int(answer.headers["Content-Length"]))

falcon_application = falcon.App()
falcon_application.add_route("/falcon", FileResource())
falcon_application.add_route("/falcon-backend", BackendResource())

flask_application = flask.Flask("served")
flask_application.add_url_rule(
    "/flask", view_func=lambda: flask.send_file(FILE, mimetype="application/octet-stream")
)

webob_application = webob.static.FileApp(FILE, content_type="application/octet-stream")

bottle_application = bottle.Bottle()
bottle_application.route("/bottle")(
    lambda: bottle.static_file(
        os.path.basename(FILE), os.path.dirname(FILE), mimetype="application/octet-stream"
    )
)

def socket_application(environ, start_response):
    connection = http.client.HTTPConnection("127.0.0.1", environ["SERVER_PORT"])
    connection.request("GET", "/flask", headers={"Connection": "close"})
    sock = connection.sock
    while sock.recv(1) != b"\\n" or sock.recv(2) != b"\\r\\n":
        pass
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](sock)

def application(environ, start_response):
    name = environ["PATH_INFO"].strip("/").partition("-")[0]
    if name == "stats":
        start_response("200 OK", [])
        return [json.dumps(gsplice.stats()._asdict()).encode()]
    return globals()[name + "_application"](environ, start_response)

if __name__ == "__main__":
    from gevent.pywsgi import WSGIServer
    server = WSGIServer(("127.0.0.1", 0), application)
    server.start()
    print("listening on", server.server_port, flush=True)
    server.serve_forever()
"""


@pytest.fixture(scope="module", params=SERVERS)
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the applications under each server; the port is given."""
    directory: Path = tmp_path_factory.mktemp("applications")
    (directory / "applications.py").write_text(APPLICATIONS)
    (directory / "body").write_bytes(BODY)
    environment = {"SERVED_FILE": str(directory / "body"), "PYTHONPATH": ENVIRONMENT["PYTHONPATH"]}
    if request.param == "pywsgi":
        program = Program(sys.executable, directory / "applications.py", **environment)
        with program:
            yield int(program.expect(r"listening on (\d+)")[1])
        return
    number = free_port()
    kind = request.param.removeprefix("gunicorn-")
    with Gunicorn(
        kind, "applications:application", number, cwd=directory, **environment
    ) as program:
        program.expect("Booting worker")
        wait_until(lambda: answers(number), "gunicorn answers")
        yield number


def answers(port: int) -> bool:
    """Whether the server on *port* is there."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return fetch(port, "/stats")[0] == 200
    return False


def fetch(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    """Make a request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def spliced(port: int) -> int:
    """Return how many bytes the server's process has spliced."""
    found: int = json.loads(fetch(port, "/stats")[2])["spliced"]
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_file_goes_out_spliced_and_the_connection_stays(port: int, framework: str) -> None:
    before = spliced(port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request("GET", f"/{framework}")
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200
            assert hashlib.sha256(body).digest() == hashlib.sha256(BODY).digest()
    assert spliced(port) - before > 2 * len(BODY) * 0.9


@pytest.mark.parametrize("framework", ["falcon", "flask", "webob", "bottle"])
def test_head_has_the_length_and_no_body(port: int, framework: str) -> None:
    method = "GET" if framework == "falcon" else "HEAD"  # it has no responder for HEAD
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, f"/{framework}")
        response = connection.getresponse()
        assert response.headers["Content-Length"] == str(len(BODY))
        response.read()
        connection.request("GET", "/stats")
        assert connection.getresponse().status == 200


@pytest.mark.parametrize("framework", ["flask", "webob", "bottle"])
def test_a_range_is_that_range(port: int, framework: str) -> None:
    status, headers, body = fetch(port, f"/{framework}", Range="bytes=1000000-2999999")
    assert (status, headers["Content-Length"]) == (206, "2000000")
    assert body == BODY[1_000_000:3_000_000]


@pytest.mark.parametrize("framework", ["flask", "webob", "bottle"])
def test_what_has_not_changed_is_a_304(port: int, framework: str) -> None:
    modified = fetch(port, f"/{framework}", "HEAD")[1]["Last-Modified"]
    status, _, body = fetch(port, f"/{framework}", **{"If-Modified-Since": modified})
    assert (status, body) == (304, b"")
