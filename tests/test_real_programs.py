"""The main job on real input: real clients reach real servers by ``python -m gsplice forward``."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from programs import (
    PATIENCE,
    REPOSITORY,
    Program,
    free_port,
    installed,
    needs_ipv6,
    python,
    run,
)

LOCALHOST = "127.0.0.1"
MIB = 1 << 20


@contextmanager
def forwarder(listen: str, target: str, *options: str) -> Iterator[str]:
    """Where it listens. It must end with status 0 at SIGTERM, having reported no error at all."""
    with python("-m", "gsplice", "forward", listen, target, *options) as program:
        yield program.expect(r"listening on ([^\s,]+)")[1]
        status = program.stop()
        assert status == 0, program.output
        assert "Traceback" not in program.output


@contextmanager
def tcp_forwarder(target: str, *options: str) -> Iterator[int]:
    with forwarder("127.0.0.1:0", target, *options) as address:
        yield int(address.rpartition(":")[2])


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A directory for unix sockets, with a path short enough for them."""
    with tempfile.TemporaryDirectory(prefix="gs") as directory:
        yield Path(directory)


# iperf3


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_iperf3_measures_every_stream_through_the_forwarder(direction, streams):
    iperf3, port = installed("iperf3"), free_port()
    with Program(
        iperf3, "--server", "--one-off", "--forceflush", "--bind", LOCALHOST, "--port", str(port)
    ) as server:
        server.expect("Server listening")
        with tcp_forwarder(f"127.0.0.1:{port}") as front:
            options = ["--reverse"] if direction == "down" else []
            options += ["--parallel", str(streams), "--bytes", "400M"]
            report = json.loads(
                run(iperf3, "--client", LOCALHOST, "--port", str(front), "--json", *options)
            )
    assert "error" not in report
    assert len(report["end"]["streams"]) == streams
    for stream in report["end"]["streams"]:
        assert stream["receiver"]["bytes"] > MIB
    assert report["end"]["sum_received"]["bytes"] <= report["end"]["sum_sent"]["bytes"]


# curl and nginx

NGINX = """
daemon off;
master_process off;
pid {root}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{
        listen 127.0.0.1:{port};
        listen unix:{unix};
        root {root}/files;
    }}
}}
"""


class Nginx:
    def __init__(self, root: Path, unix: Path) -> None:
        self.files, self.port, self.unix = root / "files", free_port(), unix
        self.files.mkdir()
        self.config = root / "nginx.conf"
        self.config.write_text(NGINX.format(root=root, port=self.port, unix=unix))
        self.targets = {"tcp": f"127.0.0.1:{self.port}", "unix": f"unix:{unix}"}


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, sockets: Path) -> Iterator[Nginx]:
    root = tmp_path_factory.mktemp("nginx")
    server = Nginx(root, sockets / "nginx")
    with Program(installed("nginx"), "-p", root, "-c", server.config) as program:
        program.expect("event method")  # said when it listens
        yield server


def write_random_file(path: Path, size: int) -> str:
    """Writes a MiB of noise again and again, turned each time, so that no two parts are alike.

    Returns the checksum.
    """
    noise = random.Random(size).randbytes(MIB)
    checksum = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as hashing:
        for start in range(0, size, MIB):
            turn = start // MIB * 997 % MIB
            block = (noise[turn:] + noise[:turn])[: size - start]
            hashed = hashing.submit(checksum.update, block)
            file.write(block)
            hashed.result()
    return checksum.hexdigest()


def downloaded(*arguments: str | Path) -> tuple[int, str]:
    """How many bytes curl puts out, and their checksum."""
    count, checksum = 0, hashlib.sha256()
    command = installed("curl"), "-qfsS", "--noproxy", "*", "--max-time", "120", *arguments
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        while piece := curl.stdout.read(MIB):
            count += len(piece)
            checksum.update(piece)
    assert curl.returncode == 0
    return count, checksum.hexdigest()


@pytest.mark.timeout(240)  # a gigabyte is written, read and hashed: slow machines take their time
def test_curl_downloads_a_gigabyte_from_nginx_with_its_checksum_right(nginx):
    installed("curl")
    size, file = 1_000_000_007, nginx.files / "large"
    arguments = "-m", "gsplice", "forward", "127.0.0.1:0", nginx.targets["tcp"], "--stats"
    try:
        checksum = write_random_file(file, size)
        with python(*arguments) as program:
            front = program.expect(r"listening on ([^\s,]+)")[1]
            assert downloaded(f"http://{front}/large") == (size, checksum)
            assert program.stop() == 0
            spliced = int(program.expect(r"1,000\.\d MB.* (\d+) % spliced")[1])
    finally:
        file.unlink()  # pytest keeps the tmp_path of a few runs
    assert spliced == 0 if os.environ.get("GSPLICE_MODE") == "copy" else spliced > 90


@pytest.mark.parametrize("target", ["tcp", "unix"])
@pytest.mark.parametrize(
    "listen", ["tcp", "unix", pytest.param("tcp6", marks=needs_ipv6), "localhost"]
)
def test_curl_downloads_from_nginx_between_every_two_kinds_of_socket(
    nginx, sockets, listen, target
):
    installed("curl")
    expected = 20 * MIB + 1, write_random_file(nginx.files / "file", 20 * MIB + 1)
    addresses = {
        "tcp": "127.0.0.1:0",
        "tcp6": "[::1]:0",
        "unix": f"unix:{sockets / 'front'}",
        "localhost": "localhost:0",
    }
    with forwarder(addresses[listen], nginx.targets[target]) as front:
        if listen == "unix":
            assert front == addresses["unix"]
            where = ["--unix-socket", sockets / "front", "http://localhost/file"]
        else:
            where = [f"http://{front}/file"]
        assert downloaded(*where) == expected


def test_curl_downloads_ten_files_from_nginx_at_once_over_connections_of_its_own(nginx):
    installed("curl")
    sums = {f"file{n}": write_random_file(nginx.files / f"file{n}", MIB + n) for n in range(10)}
    got = nginx.files.parent / "got"
    with tcp_forwarder(nginx.targets["tcp"]) as front:
        run(
            installed("curl"),
            *("-qfsS", "--noproxy", "*", "--parallel", "--parallel-immediate", "--create-dirs"),
            *("--output", got / "file#1", f"http://127.0.0.1:{front}/file[0-9]"),
        )
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in got.iterdir()} == sums


# redis-benchmark and redis-server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory, sockets: Path) -> Iterator[dict[str, str]]:
    """The server's two addresses."""
    port, unix, root = free_port(), sockets / "redis", tmp_path_factory.mktemp("redis")
    with Program(
        installed("redis-server"),
        *("--bind", LOCALHOST, "--port", str(port), "--unixsocket", unix, "--dir", root),
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        LC_ALL="C",
    ) as server:
        server.expect("(?i)ready to accept connections")
        yield {"tcp": f"127.0.0.1:{port}", "unix": f"unix:{unix}"}


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(["-n", "3000", "-t", "ping,set,get,lpush,lrange_100"], id="small replies"),
        pytest.param(["-n", "100000", "-t", "set,get", "-P", "32"], id="pipelined"),
        pytest.param(["-n", "2000", "-t", "set,get", "-d", "100000"], id="large values"),
    ],
)
# From unix to tcp is what the answers go from tcp to unix.
@pytest.mark.parametrize(("listen", "target"), [("tcp", "tcp"), ("tcp", "unix"), ("unix", "unix")])
def test_redis_benchmark_completes_every_request_through_the_forwarder(
    redis, sockets, listen, target, load
):
    benchmark, front = installed("redis-benchmark"), sockets / "front"
    address = f"unix:{front}" if listen == "unix" else "127.0.0.1:0"
    with forwarder(address, redis[target]) as listens:
        host, _, port = listens.rpartition(":")
        where = ["-s", front] if listen == "unix" else ["-h", host, "-p", port]
        report = run(benchmark, *where, "-c", "20", "--csv", *load)
    names = load[load.index("-t") + 1].split(",")
    rows = [line.split(",")[0].strip('"').upper() for line in report.splitlines()]
    for name in names:
        assert any(row.startswith(name.upper()) for row in rows), report


def test_a_large_value_set_in_redis_through_the_forwarder_reads_back_the_same(redis):
    value = random.Random(64).randbytes(64 * MIB + 1)
    command = b"*3\r\n$3\r\nSET\r\n$5\r\nvalue\r\n$%d\r\n%b\r\n" % (len(value), value)
    with (
        tcp_forwarder(redis["unix"]) as front,
        socket.create_connection((LOCALHOST, front), PATIENCE) as client,
        client.makefile("rb") as replies,
    ):
        client.sendall(command)
        assert replies.readline() == b"+OK\r\n"
        client.sendall(b"*2\r\n$3\r\nGET\r\n$5\r\nvalue\r\n")
        assert replies.readline() == b"$%d\r\n" % len(value)
        assert replies.read(len(value) + 2) == value + b"\r\n"


# git clone and git daemon

GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(*arguments: str | Path) -> str:
    return run(installed("git"), *arguments, **GIT).strip()


def git_daemon() -> str:
    return installed(os.path.join(git("--exec-path"), "git-daemon"))


def commit(repository: Path, name: str, content: bytes) -> str:
    (repository / name).write_bytes(content)
    git("-C", repository, "add", name)
    git("-C", repository, "commit", "--quiet", "--message", name)
    return git("-C", repository, "rev-parse", "HEAD")


def test_git_clones_from_git_daemon_and_pushes_back_through_the_forwarder(tmp_path):
    daemon, noise = git_daemon(), random.Random(20)
    served, clone, port = tmp_path / "served", tmp_path / "clone", free_port()
    work = served / "work"
    git("init", "--quiet", "--initial-branch", "main", work)
    for number in range(3):
        head = commit(work, f"file{number}", noise.randbytes(3 * MIB))
    git("clone", "--quiet", "--bare", work, served / "bare.git")
    with Program(
        daemon,
        *("--verbose", "--export-all", "--enable=receive-pack", "--reuseaddr"),
        *(f"--listen={LOCALHOST}", f"--port={port}", f"--base-path={served}", served),
        **GIT,
    ) as server:
        server.expect("Ready to rumble")
        with tcp_forwarder(f"127.0.0.1:{port}") as front:
            git("clone", "--quiet", f"git://127.0.0.1:{front}/bare.git", clone)
            assert git("-C", clone, "rev-parse", "HEAD") == head
            git("-C", clone, "fsck", "--full", "--strict")
            for number in range(3):
                name = f"file{number}"
                assert (clone / name).read_bytes() == (work / name).read_bytes()
            head = commit(clone, "pushed", noise.randbytes(3 * MIB))
            git("-C", clone, "push", "--quiet", "origin", "main")
    assert git("-C", served / "bare.git", "rev-parse", "main") == head
    git("-C", served / "bare.git", "fsck", "--full", "--strict")


# openssl s_client, the router of TLS connections, openssl s_server


@contextmanager
def tls_server(openssl: str, root: Path, authority: trustme.CA, name: str) -> Iterator[str]:
    """``openssl s_server`` as a web server, with a certificate and files for that name only."""
    directory = root / name
    directory.mkdir()
    certificate = directory / "certificate.pem"
    authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(certificate)
    (directory / "file").write_bytes(random.Random(name).randbytes(4 * MIB))
    with Program(
        openssl,
        *("s_server", "-accept", "127.0.0.1:0", "-cert", certificate, "-key", certificate),
        *("-WWW", "-http_server_binmode"),
        cwd=directory,
    ) as server:
        port = server.expect(r"ACCEPT 127\.0\.0\.1:(\d+)")[1]
        yield f"{name}=127.0.0.1:{port}"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client_reaches_the_s_server_of_its_name_through_the_router(tmp_path, version):
    openssl, authority = installed("openssl"), trustme.CA()
    trusted = tmp_path / "trusted.pem"
    authority.cert_pem.write_to_path(trusted)
    names = "a.example", "b.example"
    with (
        tls_server(openssl, tmp_path, authority, names[0]) as a,
        tls_server(openssl, tmp_path, authority, names[1]) as b,
        python(REPOSITORY / "examples" / "sni_router.py", "127.0.0.1:0", a, b) as router,
    ):
        front = router.expect(r"listening on (\S+)")[1]
        for name in (*names, *names):
            done = subprocess.run(
                [
                    *(openssl, "s_client", "-connect", front, version, "-quiet", "-ign_eof"),
                    *("-servername", name, "-CAfile", trusted),
                    *("-verify_hostname", name, "-verify_return_error"),
                ],
                input=b"GET /file HTTP/1.0\r\n\r\n",
                capture_output=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stderr
            _, _, body = done.stdout.partition(b"\r\n\r\n")
            assert body == (tmp_path / name / "file").read_bytes()
        router.stop()
        assert "Traceback" not in router.output
