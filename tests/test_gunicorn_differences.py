"""gunicorn's gevent workers, without the takeovers and with them: answers, keep-alive, the log."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from programs import ENVIRONMENT, PATIENCE, Gunicorn, free_port, wait_until
from test_web_examples import BODY, LARGE_ENOUGH, backend, exchange

__all__ = ["backend"]  # a fixture

APPLICATION = """
import gevent.monkey
gevent.monkey.patch_all()
import hashlib, http.client, os, shutil
import gsplice
if "TAKEN_OVER" in os.environ:
    gsplice.patch_all()

def application(environ, start_response):
    path, wrapper = environ["PATH_INFO"], environ["wsgi.file_wrapper"]
    if path == "/spliced":
        start_response("200 OK", [])
        return [str(gsplice.stats().spliced).encode()]
    if path == "/upload":
        with open("uploaded", "w+b") as file:
            shutil.copyfileobj(environ["wsgi.input"], file)
            file.seek(0)
            digest = hashlib.sha256(file.read()).hexdigest()
        start_response("200 OK", [("Content-Length", "64")])
        return [digest.encode()]
    length = [("Content-Length", str(os.path.getsize("body")))] if "with-length" in path else []
    start_response("200 OK", length)
    if path.startswith("/file"):
        return wrapper(open("body", "rb"))
    connection = http.client.HTTPConnection(os.environ["BACKEND"])
    connection.request("GET", "/", headers={"Connection": "close"})
    return wrapper(connection.getresponse())
"""
PATHS = ("/file/with-length", "/file/chunked", "/response/with-length", "/response/chunked")
LOG = "ACCESS %(r)s %(s)s %(b)s"


class Told(NamedTuple):
    """What can be compared of a run, and how many bytes were spliced in it."""

    answers: list[Any]
    log: list[str]
    spliced: int


def requests(client: http.client.HTTPConnection) -> list[Any]:
    """Make all requests on one connection; return the answers, and whether it was kept."""
    client.connect()
    address = client.sock.getsockname()
    answers = [exchange(client, "GET", path) for path in PATHS]
    answers.append(exchange(client, "PUT", "/upload", body=BODY))
    answers.append(exchange(client, "GET", PATHS[0]))
    kept = client.sock is not None and client.sock.getsockname() == address
    return [
        kept,
        *((status, _without_date(headers), body) for status, headers, body in answers),
    ]


def _without_date(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name != "Date"]


def _logged(output: str) -> list[str]:
    """Return the lines of the access log, but for how many bytes there were around chunks."""
    lines = re.findall(r"ACCESS (.* \S+)$", output, re.MULTILINE)
    return [re.sub(r"(chunked .*) \d+$", r"\1", line) for line in lines if "/spliced" not in line]


def run(kind: str, directory: Path, authority: trustme.CA | None, **environment: str) -> Told:
    """Run gunicorn, and be its client."""
    directory.mkdir()
    (directory / "application.py").write_text(APPLICATION)
    (directory / "body").write_bytes(BODY)
    port, options = free_port(), ["--access-logfile", "-", "--access-logformat", LOG]
    client = http.client.HTTPConnection("127.0.0.1", port)
    if authority is not None:
        pem = directory / "certificate.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
        options += ["--certfile", str(pem), "--keyfile", str(pem)]
        context = ssl.create_default_context()
        authority.configure_trust(context)
        client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE)
    environment["PYTHONPATH"] = ENVIRONMENT["PYTHONPATH"]
    with Gunicorn(
        kind, "application:application", port, *options, cwd=directory, **environment
    ) as program:
        program.expect("Booting worker")
        wait_until(lambda: _answers(client), "gunicorn answers")
        with contextlib.closing(client):
            answers = requests(client)
            spliced = int(exchange(client, "GET", "/spliced")[2])
        wait_until(lambda: len(_logged(program.output)) == len(PATHS) + 2, "all is logged")
    return Told(answers, _logged(program.output), spliced)


def _answers(client: http.client.HTTPConnection) -> bool:
    with contextlib.suppress(OSError), contextlib.closing(client):
        return bool(exchange(client, "GET", "/spliced"))
    return False


@pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi"])
@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_a_worker_answers_and_logs_as_before_and_splices_unless_over_tls(
    kind: str, over: str, backend: str, tmp_path: Path
) -> None:
    authority = trustme.CA() if over == "tls" else None
    with ThreadPoolExecutor() as side_by_side:
        as_before = side_by_side.submit(run, kind, tmp_path / "before", authority, BACKEND=backend)
        taken_over = side_by_side.submit(
            run, kind, tmp_path / "after", authority, BACKEND=backend, TAKEN_OVER="1"
        )
        before, after = as_before.result(), taken_over.result()
    assert after[:2] == before[:2]
    kept, *answers = after.answers
    assert kept
    digest = hashlib.sha256(BODY).hexdigest().encode()
    assert [body for *_, body in answers] == [*[BODY] * 4, digest, BODY]
    assert before.spliced == 0
    if over == "tcp":
        assert after.spliced > 6 * LARGE_ENOUGH
    else:  # one side of each transfer is the client's TLS socket
        assert after.spliced == 0
