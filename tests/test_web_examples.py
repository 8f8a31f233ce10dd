"""The examples that speak HTTP, as processes of their own, between real clients and backends."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from programs import (
    ENVIRONMENT,
    PATIENCE,
    REPOSITORY,
    Gunicorn,
    Program,
    free_port,
    installed,
    run,
    wait_until,
)

EXAMPLES = REPOSITORY / "examples"
BODY = random.Random(33).randbytes(5_000_003)
LARGE_ENOUGH = len(BODY) * 0.9
SERVERS = ("pywsgi", "gunicorn-gevent", "gunicorn-gevent_pywsgi")

#: The example's application, with a page that tells what its process has spliced.
OBSERVED = """
import json, os, gsplice, wsgi_reverse_proxy
def application(environ, start_response):
    if environ["PATH_INFO"] != "/__stats__":
        return wsgi_reverse_proxy.application(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    stats = gsplice.stats()
    fds = len(os.listdir("/proc/self/fd")) - 2 * stats.pipes
    return [json.dumps({**stats._asdict(), "fds": fds}).encode()]
if __name__ == "__main__":
    import sys
    from gevent.pywsgi import WSGIServer
    server = WSGIServer(("127.0.0.1", 0), application)
    server.start()
    print("listening on", server.server_port, flush=True)
    server.serve_forever()
"""


class Backend(BaseHTTPRequestHandler):
    """Answers by path; keeps connections alive."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade"):
            self._upgrade()
        elif self.path.startswith("/chunked"):
            self._answer(200, [("Transfer-Encoding", "chunked")])
            for start in range(0, len(BODY), 100_000):
                piece = BODY[start : start + 100_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path.startswith("/until-close"):
            self._answer(200, [("Connection", "close")])
            self.wfile.write(BODY)
            self.close_connection = True
        elif self.path.startswith("/empty"):
            # A length, as of the body that would have been: RFC 9110, 8.6 allows it with 304.
            self._answer(int(self.path[-3:]), [("Content-Length", "100")] * ("304" in self.path))
        elif self.path.startswith("/headers"):
            self._answer_with(json.dumps(list(self.headers.items())).encode())
        else:
            self._answer_with(BODY if self.path == "/" else self.path.encode())

    def do_HEAD(self) -> None:
        self._answer(200, [("Content-Length", str(len(BODY)))])

    def do_PUT(self) -> None:
        digest, length = hashlib.sha256(), self.headers.get("Content-Length")
        if length is None:
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            digest.update(self.rfile.read(int(length)))
        self._answer_with(digest.hexdigest().encode())

    def _upgrade(self) -> None:
        self._answer(101, [("Connection", "Upgrade"), ("Upgrade", "websocket")])
        self.wfile.write(b"early")  # in one segment with the head, or nearly
        while data := self.connection.recv(65536):
            self.wfile.write(data)
        self.close_connection = True

    def _answer_with(self, body: bytes) -> None:
        self._answer(200, [("Content-Length", str(len(body))), ("X-Seen", "yes")])
        self.wfile.write(body)

    def _answer(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""


class Proxy(NamedTuple):
    """A reverse proxy under test."""

    port: int
    program: Program

    def get(self, path: str, method: str = "GET", **request: Any) -> tuple[int, Any, bytes]:
        """Make a request; return the status, the headers and the body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as client:
            return exchange(client, method, path, **request)

    def observed(self) -> dict[str, Any]:
        """Return what the process says of itself."""
        found: dict[str, Any] = json.loads(self.get("/__stats__")[2])
        return found


def exchange(
    client: http.client.HTTPConnection, method: str, path: str, **request: Any
) -> tuple[int, Any, bytes]:
    """Make a request on *client*; return the status, the headers and the body."""
    client.timeout = PATIENCE
    client.request(method, path, **request)
    response = client.getresponse()
    return response.status, response.headers, response.read()


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    """Run a backend; its address is given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def start_proxy(kind: str, directory: Path, backend: str) -> tuple[Program, int]:
    """Start the example under a server of this kind; return it and its port."""
    (directory / "observed.py").write_text(OBSERVED)
    path = f"{EXAMPLES}:{directory}:{ENVIRONMENT['PYTHONPATH']}"
    if kind == "pywsgi":
        program = Program(
            sys.executable, directory / "observed.py", PYTHONPATH=path, BACKEND=backend
        )
        return program, int(program.expect(r"listening on (\d+)")[1])
    port = free_port()
    program = Gunicorn(
        *(kind.removeprefix("gunicorn-"), "observed:application", port),
        cwd=directory,
        PYTHONPATH=path,
        BACKEND=backend,
    )
    program.expect("Booting worker")
    wait_until(lambda: _accepts(port), "gunicorn accepts")
    return program, port


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture(scope="module", params=SERVERS)
def proxy(
    request: pytest.FixtureRequest, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Run the example's application under each server."""
    program, port = start_proxy(request.param, tmp_path_factory.mktemp("proxy"), backend)
    with program:
        yield Proxy(port, program)
        program.stop()
        assert "Traceback" not in program.output


def test_a_response_is_spliced_and_the_connection_stays_usable(proxy: Proxy) -> None:
    before = proxy.observed()["spliced"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port)) as client:
        for _ in range(3):
            status, headers, body = exchange(client, "GET", "/")
            assert (status, headers["X-Seen"], body == BODY) == (200, "yes", True)
            assert exchange(client, "GET", "/small?a=b")[2] == b"/small?a=b"
    assert proxy.observed()["spliced"] - before > 3 * LARGE_ENOUGH


def test_a_response_until_end_of_file_is_spliced_in_chunks(proxy: Proxy) -> None:
    before = proxy.observed()["spliced"]
    status, headers, body = proxy.get("/until-close")
    assert (status, headers["Transfer-Encoding"], body == BODY) == (200, "chunked", True)
    assert proxy.observed()["spliced"] - before > LARGE_ENOUGH


def test_a_chunked_response_is_passed_on(proxy: Proxy) -> None:
    assert proxy.get("/chunked")[2] == BODY


def test_a_request_body_with_a_length_is_spliced(proxy: Proxy) -> None:
    before = proxy.observed()["spliced"]
    digest = proxy.get("/", "PUT", body=BODY)[2]
    assert digest.decode() == hashlib.sha256(BODY).hexdigest()
    assert proxy.observed()["spliced"] - before > LARGE_ENOUGH


def test_a_chunked_request_body_is_passed_on(proxy: Proxy) -> None:
    pieces = (BODY[start : start + 70_000] for start in range(0, len(BODY), 70_000))
    digest = proxy.get("/", "PUT", body=pieces)[2]
    assert digest.decode() == hashlib.sha256(BODY).hexdigest()


def test_head_and_statuses_without_a_body(proxy: Proxy) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port)) as client:
        status, headers, body = exchange(client, "HEAD", "/")
        assert (status, headers["Content-Length"], body) == (200, str(len(BODY)), b"")
        assert exchange(client, "GET", "/empty-204")[::2] == (204, b"")
        assert exchange(client, "GET", "/empty-304")[::2] == (304, b"")
        assert exchange(client, "GET", "/small")[2] == b"/small"


def test_headers_that_concern_one_connection_stay_there(proxy: Proxy) -> None:
    sent = {"Connection": "X-Mine", "X-Mine": "1", "X-Theirs": "2", "TE": "trailers"}
    sent |= {"X-Forwarded-For": "192.0.2.1", "Keep-Alive": "5"}
    seen = dict(json.loads(proxy.get("/headers", headers=sent)[2]))
    assert seen["X-Theirs"] == "2"
    assert seen["X-Forwarded-For"] == "192.0.2.1, 127.0.0.1"
    assert not {"X-Mine", "Te", "TE", "Keep-Alive"} & seen.keys()


def test_an_upgrade_is_relayed_with_what_came_right_behind_the_head(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client:
        client.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        with client.makefile("rb") as reader:
            assert reader.readline().startswith(b"HTTP/1.1 101")
            while reader.readline().strip():
                pass
            assert reader.read(5) == b"early"
            sender = threading.Thread(target=client.sendall, args=(BODY,))
            sender.start()
            assert reader.read(len(BODY)) == BODY
            sender.join()
            client.shutdown(socket.SHUT_WR)
            assert reader.read() == b""


def test_a_client_that_goes_away_leaves_nothing_behind(proxy: Proxy) -> None:
    before = proxy.observed()["fds"]
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert len(client.recv(1000)) > 0
    wait_until(lambda: proxy.observed()["fds"] <= before, f"{before} fds again")
    assert proxy.get("/")[2] == BODY


@pytest.mark.parametrize("kind", SERVERS)
def test_a_backend_that_refuses_is_a_502(kind: str, tmp_path: Path) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{refusing.getsockname()[1]}"
        program, port = start_proxy(kind, tmp_path, address)
        with program:
            status, _, body = Proxy(port, program).get("/")
            assert status == 502
            assert b"Connection refused" in body


def test_the_example_runs_as_a_program(backend: str) -> None:
    with Program(
        sys.executable, EXAMPLES / "wsgi_reverse_proxy.py", "127.0.0.1:0", backend
    ) as program:
        port = int(program.expect(r"listening on \S+:(\d+)")[1])
        assert Proxy(port, program).get("/")[2] == BODY


def test_http_proxy_passes_answers_and_errors_on(backend: str) -> None:
    with Program(sys.executable, EXAMPLES / "http_proxy.py", "127.0.0.1:0") as program:
        port = int(program.expect(r"listening on \S+:(\d+)")[1])
        curl = (installed("curl"), "-sS", "--noproxy", "", "-x", f"http://127.0.0.1:{port}")
        fetched = subprocess.run(
            (*curl, f"http://{backend}/"), capture_output=True, timeout=PATIENCE, check=True
        )
        assert fetched.stdout == BODY
        assert run(*curl, f"http://{backend}/small") == "/small"
        status = ("-o", "/dev/null", "-w", "%{http_code}")
        assert run(*curl, *status, f"http://{backend}/empty-404") == "404"
        assert run(*curl, *status, f"http://127.0.0.1:{free_port()}/") == "502"
        program.stop()
        assert "Traceback" not in program.output


#: The example's handler, which tells what has been spliced.
OBSERVED_HTTP_PROXY = """
import http_proxy
import gsplice
from http.server import ThreadingHTTPServer
class Observed(http_proxy.Proxy):
    def do_GET(self):
        super().do_GET()
        print("spliced", gsplice.stats().spliced, flush=True)
server = ThreadingHTTPServer(("127.0.0.1", 0), Observed)
print("listening on", server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("path", ["/", "/until-close"])
def test_http_proxy_splices_a_body(backend: str, path: str) -> None:
    search = f"{EXAMPLES}:{ENVIRONMENT['PYTHONPATH']}"
    with Program(sys.executable, "-c", OBSERVED_HTTP_PROXY, PYTHONPATH=search) as program:
        port = int(program.expect(r"listening on (\d+)")[1])
        assert Proxy(port, program).get(f"http://{backend}{path}")[2] == BODY
        assert int(program.expect(r"spliced (\d+)")[1]) > LARGE_ENOUGH
        program.stop()
        assert "Traceback" not in program.output


@pytest.mark.parametrize("path", ["/", "/until-close"])
def test_download_splices_into_the_file(backend: str, tmp_path: Path, path: str) -> None:
    said = run(
        sys.executable, EXAMPLES / "download.py", f"http://{backend}{path}", tmp_path / "file"
    )
    assert (tmp_path / "file").read_bytes() == BODY
    assert said == "5,000,003 bytes, 100% of them spliced\n"
    shutil.rmtree(tmp_path)


def test_a_download_that_ends_too_early_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        program = Program(sys.executable, EXAMPLES / "download.py", url, tmp_path / "file")
        with program, listener.accept()[0] as sock:
            sock.recv(65536)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1005\r\n\r\nhello")
            sock.shutdown(socket.SHUT_WR)
            program.expect(f"^cannot download {url}: the connection ended 1,000 bytes too early$")


def test_a_download_that_fails_is_one_line_and_makes_no_file(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "download.py", url, tmp_path / "file"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    refused = "<urlopen error [Errno 111] Connection refused>"
    assert done.stderr == f"cannot download {url}: {refused}\n"
    assert not (tmp_path / "file").exists()
    shutil.rmtree(tmp_path)
