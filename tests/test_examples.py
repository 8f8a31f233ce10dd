"""Every example runs as a process of its own, with real peers: what it promises is what it does."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
import trustme
from programs import (
    ENVIRONMENT,
    PATIENCE,
    REPOSITORY,
    Program,
    installed,
    needs_ipv6,
    python,
    run,
    wait_until,
)

EXAMPLES = REPOSITORY / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))
PAYLOAD = random.Random(80).randbytes(5_000_003)  # many times what any socket buffers
LOCALHOST = "127.0.0.1"


@contextmanager
def example(
    name: str, *arguments: str, end: signal.Signals = signal.SIGTERM
) -> Iterator[tuple[Program, int]]:
    """The running example and its port; that it ends without a traceback is checked here."""
    with python(EXAMPLES / name, *arguments) as program:
        yield program, int(program.expect(r"listening on \S+:(\d+)")[1])
        program.stop(end)
        assert "Traceback" not in program.output


@contextmanager
def listening(host: str = LOCALHOST) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@contextmanager
def refusing() -> Iterator[socket.socket]:
    """A socket that holds its port and accepts nobody, until the test calls its listen()."""
    with socket.socket() as bound:
        bound.settimeout(PATIENCE)
        bound.bind((LOCALHOST, 0))
        yield bound


def port_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def connect(port: int) -> socket.socket:
    return socket.create_connection((LOCALHOST, port), PATIENCE)


def accept(listener: socket.socket) -> socket.socket:
    peer, _ = listener.accept()
    peer.settimeout(PATIENCE)
    return peer


def receive(sock: socket.socket, count: int | None = None) -> bytes:
    """Count bytes, or all of them up to the end of file."""
    data = bytearray()
    while count is None or len(data) < count:
        piece = sock.recv(65536 if count is None else count - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def send(sock: socket.socket, data: bytes, *, end: bool) -> None:
    sock.sendall(data)
    if end:
        sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_cut_off(sock: socket.socket) -> bool:
    """Waits for the end, polite or not, of a connection on which nothing may arrive any more."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Runs what a peer does while the test does something else."""
    with ThreadPoolExecutor() as pool:
        yield pool


def assert_holds_no_more_files_after(program: Program, visit, times: int = 5) -> None:
    visit()  # the first one also opens what the hub and the resolver keep
    before = program.open_files()
    for _ in range(times):
        visit()
    wait_until(lambda: program.open_files() <= before, f"{program.command} holds {before} files")


# What all of them have in common.

ARGUMENTS = {
    "download.py": ["no-port", "file"],
    "echo_server.py": ["no-port"],
    "gunicorn_forwarder.py": ["127.0.0.1:0", "no-port"],
    "http_proxy.py": ["no-port"],
    "port_forwarder.py": ["127.0.0.1:0", "no-port"],
    "sni_router.py": ["127.0.0.1:0", "name=no-port"],
    "socks5_proxy.py": ["no-port"],
    "wsgi_reverse_proxy.py": ["no-port", "127.0.0.1:80"],
}


def test_each_example_is_listed_here():
    assert sorted(ARGUMENTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_example_has_fewer_than_80_lines(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize("name", NAMES)
def test_example_help_shows_how_to_run_it(name):
    assert f"python examples/{name} " in run(sys.executable, EXAMPLES / name, "--help")


@pytest.mark.parametrize("name", NAMES)
def test_example_refuses_a_bad_address_in_one_line(name):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *ARGUMENTS[name]],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "no-port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# echo_server.py


def test_echo_server_answers_each_message_while_the_connection_stays_open():
    with example("echo_server.py", "127.0.0.1:0") as (_, port), connect(port) as client:
        for message in (b"a", b"bc" * 100, b"d" * 40_000):
            client.sendall(message)
            assert receive(client, len(message)) == message


def test_echo_server_sends_a_stream_back_exactly_and_then_the_end_of_file(beside):
    with example("echo_server.py", "127.0.0.1:0") as (program, port), connect(port) as client:
        sending = beside.submit(send, client, PAYLOAD, end=True)
        assert receive(client) == PAYLOAD
        sending.result()
        program.expect("5,000,003 bytes")


def test_echo_server_outlives_a_client_that_resets_and_keeps_no_file_open():
    with example("echo_server.py", "127.0.0.1:0") as (program, port):

        def visit_and_reset():
            client = connect(port)
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            reset(client)

        assert_holds_no_more_files_after(program, visit_and_reset)
        program.expect("reset by peer")


# gunicorn_forwarder.py


def test_gunicorn_forwarder_carries_both_directions_exactly_in_a_worker(beside):
    up, down = PAYLOAD, PAYLOAD[::-1]
    with listening() as listener:
        arguments = "127.0.0.1:0", f"127.0.0.1:{port_of(listener)}", "--workers", "1"
        with (
            example("gunicorn_forwarder.py", *arguments, end=signal.SIGQUIT) as (_, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            beside.submit(send, client, up, end=True)
            beside.submit(send, backend, down, end=True)
            arriving = beside.submit(receive, backend)
            assert receive(client) == down
            assert arriving.result() == up


# port_forwarder.py


def test_port_forwarder_carries_both_directions_at_once_exactly(beside):
    up, down = PAYLOAD, PAYLOAD[::-1]
    with listening() as listener:
        target = f"127.0.0.1:{port_of(listener)}"
        with (
            example("port_forwarder.py", "127.0.0.1:0", target) as (program, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            beside.submit(send, client, up, end=True)
            beside.submit(send, backend, down, end=True)
            arriving = beside.submit(receive, backend)
            assert receive(client) == down
            assert arriving.result() == up
            program.expect("5,000,003 bytes up, 5,000,003 down")


def test_port_forwarder_lets_the_answer_come_after_the_request_has_ended():
    with listening() as listener:
        target = f"127.0.0.1:{port_of(listener)}"
        with (
            example("port_forwarder.py", "127.0.0.1:0", target) as (_, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            send(client, b"question", end=True)
            assert receive(backend) == b"question"
            send(backend, b"answer", end=True)
            assert receive(client) == b"answer"


def test_port_forwarder_cuts_off_the_client_of_a_backend_that_refuses_and_serves_the_next():
    with refusing() as backend:
        target = f"127.0.0.1:{port_of(backend)}"
        with example("port_forwarder.py", "127.0.0.1:0", target) as (program, port):
            with connect(port) as client:
                assert is_cut_off(client)
            program.expect("refused")
            backend.listen()
            with connect(port) as client, accept(backend) as peer:
                client.sendall(b"now")
                assert receive(peer, 3) == b"now"


@pytest.mark.parametrize("who", ["client", "backend"])
def test_port_forwarder_cuts_off_the_other_side_of_a_reset_and_keeps_no_file_open(who):
    with listening() as listener:
        target = f"127.0.0.1:{port_of(listener)}"
        with example("port_forwarder.py", "127.0.0.1:0", target) as (program, port):

            def visit_and_reset():
                with connect(port) as client, accept(listener) as backend:
                    client.sendall(b"hello")
                    assert receive(backend, 5) == b"hello"
                    first, second = (client, backend) if who == "client" else (backend, client)
                    reset(first)
                    assert is_cut_off(second)

            assert_holds_no_more_files_after(program, visit_and_reset)


def test_port_forwarder_ends_an_idle_connection_on_both_sides():
    with listening() as listener:
        arguments = "127.0.0.1:0", f"127.0.0.1:{port_of(listener)}", "--idle-timeout", "0.1"
        with (
            example("port_forwarder.py", *arguments) as (program, port),
            connect(port) as client,
            accept(listener) as backend,
        ):
            assert is_cut_off(client)
            assert is_cut_off(backend)
            program.expect("timed out")


# sni_router.py


class TlsBackend:
    """A TLS server with a certificate for one name; it answers each client with that name."""

    def __init__(self, authority: trustme.CA, name: str) -> None:
        self.name = name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(self.context)
        self.listener = socket.create_server((LOCALHOST, 0))
        self.listener.settimeout(PATIENCE)
        self.route = f"{name}=127.0.0.1:{port_of(self.listener)}"

    def serve(self, count: int) -> str:
        """One client: takes count bytes, answers its own name and their checksum."""
        with accept(self.listener) as raw, self.context.wrap_socket(raw, server_side=True) as tls:
            tls.sendall(f"{self.name} {hashlib.sha256(receive(tls, count)).hexdigest()}".encode())
            tls.unwrap()
            return self.name


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def backends(authority: trustme.CA) -> Iterator[tuple[TlsBackend, TlsBackend]]:
    a, b = TlsBackend(authority, "a.example"), TlsBackend(authority, "b.example")
    with a.listener, b.listener:
        yield a, b


def converse(tls: ssl.SSLSocket, data: bytes) -> str:
    """The client's part: sends the data, returns the answer, and ends as politely as serve does."""
    tls.sendall(data)
    answer = receive(tls)
    tls.unwrap()
    return answer.decode()


def client_context(authority: trustme.CA, version: ssl.TLSVersion | None = None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if version:
        context.maximum_version = version
    return context


class Conversation:
    """A TLS client that puts its bytes on a plain socket in the pieces that a test chooses."""

    def __init__(self, context: ssl.SSLContext, name: str | None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.hello = self.outgoing.read()

    def go_on(self, sock: socket.socket, what: str, *arguments):
        """Calls a method of the TLS object, with all that it wants to send and to receive."""
        while True:
            with suppress(ssl.SSLWantReadError):
                result = getattr(self.tls, what)(*arguments)
                sock.sendall(self.outgoing.read())
                return result
            sock.sendall(self.outgoing.read())
            if piece := sock.recv(65536):
                self.incoming.write(piece)
            else:
                self.incoming.write_eof()


def in_records_of(size: int, hello: bytes) -> bytes:
    """The same handshake message in many small TLS records."""
    message = hello[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(hello[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sni_router_brings_each_client_to_the_certificate_it_asks_for(
    backends, authority, version, beside
):
    with example("sni_router.py", "127.0.0.1:0", *(b.route for b in backends)) as (_, port):
        for backend, name in zip(backends, ("a.example", "B.EXAMPLE"), strict=True):
            serving = beside.submit(backend.serve, len(PAYLOAD))
            context = client_context(authority, version)
            with connect(port) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
                checksum = hashlib.sha256(PAYLOAD).hexdigest()
                assert converse(tls, PAYLOAD) == f"{backend.name} {checksum}"
                assert serving.result() == backend.name


@pytest.mark.parametrize("record", [None, 1, 100])
@pytest.mark.parametrize("segment", [None, 1, 100])
def test_sni_router_understands_a_hello_in_pieces(backends, authority, beside, record, segment):
    """Pieces of so many bytes as TLS records, as TCP segments, or both; None is all in one."""
    a, b = backends
    client = Conversation(client_context(authority), "b.example")
    hello = in_records_of(record or len(client.hello), client.hello)
    segment = segment or len(hello)
    with example("sni_router.py", "127.0.0.1:0", a.route, b.route) as (_, port):
        serving = beside.submit(b.serve, 5)
        with connect(port) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            for at in range(0, len(hello), segment):
                sock.sendall(hello[at : at + segment])
            client.go_on(sock, "do_handshake")
            client.go_on(sock, "write", b"hello")
            answer = client.go_on(sock, "read", 65536)
            client.go_on(sock, "unwrap")
            assert answer.decode() == f"b.example {hashlib.sha256(b'hello').hexdigest()}"
            assert serving.result() == "b.example"


@pytest.mark.parametrize("name", [None, "unknown.example"])
def test_sni_router_takes_the_route_without_a_name_for_other_clients(
    backends, authority, beside, name
):
    a, b = backends
    context = client_context(authority)
    context.check_hostname = False
    default = b.route.removeprefix("b.example=")
    with example("sni_router.py", "127.0.0.1:0", a.route, default) as (_, port):
        serving = beside.submit(b.serve, 2)
        with connect(port) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
            assert converse(tls, b"hi").startswith("b.example ")
            assert serving.result() == "b.example"


@pytest.mark.parametrize("name", [None, "unknown.example"])
def test_sni_router_tells_a_client_without_a_route_why_it_is_refused(backends, authority, name):
    context = client_context(authority)
    context.check_hostname = False
    with example("sni_router.py", "127.0.0.1:0", backends[0].route) as (program, port):

        def visit():
            with connect(port) as raw, pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                context.wrap_socket(raw, server_hostname=name)

        assert_holds_no_more_files_after(program, visit)
        program.expect(f"no route for '{name or ''}'")


NOT_A_HELLO = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "zeros": bytes(1000),
    "empty records": b"\x16\x03\x01\x00\x00" * 100,
    "a record too long": b"\x16\x03\x01\xff\xff" + bytes(65535),
    "a hello too long": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + bytes(100_000),
    "no hello, but a finished": b"\x16\x03\x01\x00\x04\x14\x00\x00\x00",
    "a session id beyond the end": b"\x16\x03\x01\x00\x2b\x01\x00\x00\x27\x03\x03"
    + bytes(32)
    + b"\xff\x00\x00\x00\x00",
}


@pytest.mark.parametrize("what", NOT_A_HELLO)
def test_sni_router_cuts_off_what_is_no_hello_and_keeps_no_file_open(backends, what):
    with example("sni_router.py", "127.0.0.1:0", backends[0].route) as (program, port):

        def visit():
            with connect(port) as client:
                with suppress(ConnectionError):  # it does not wait for all of a long one
                    client.sendall(NOT_A_HELLO[what])
                assert is_cut_off(client)

        assert_holds_no_more_files_after(program, visit)


@pytest.mark.parametrize("length", [0, 1, 5, 100, -1])
def test_sni_router_cuts_off_a_client_that_ends_in_its_hello(backends, authority, length):
    hello = Conversation(client_context(authority), "a.example").hello
    with (
        example("sni_router.py", "127.0.0.1:0", backends[0].route) as (program, port),
        connect(port) as client,
    ):
        send(client, hello[:length], end=True)
        assert is_cut_off(client)
        program.expect("no whole ClientHello")


def test_sni_router_cuts_off_a_client_that_is_too_slow_with_its_hello(backends, authority):
    hello = Conversation(client_context(authority), "a.example").hello
    arguments = "127.0.0.1:0", backends[0].route, "--timeout", "0.1"
    with example("sni_router.py", *arguments) as (program, port), connect(port) as client:
        client.sendall(hello[:-1])
        assert is_cut_off(client)
        program.expect("no ClientHello in time")


def test_sni_router_cuts_off_the_client_of_a_backend_that_refuses_and_serves_the_next(
    backends, authority, beside
):
    context = client_context(authority)
    a = backends[0]
    with refusing() as gone:
        routes = a.route, f"gone.example=127.0.0.1:{port_of(gone)}"
        with example("sni_router.py", "127.0.0.1:0", *routes) as (program, port):
            with connect(port) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(raw, server_hostname="gone.example")
            program.expect("refused")
            serving = beside.submit(a.serve, 1)
            with connect(port) as raw, context.wrap_socket(raw, server_hostname=a.name) as tls:
                assert converse(tls, b"1").startswith("a.example ")
                assert serving.result() == a.name


# socks5_proxy.py

GREETING = b"\x05\x01\x00"
NAME, IPV4, IPV6 = 3, 1, 4


def request(kind: int, host: str, port: int, command: int = 1) -> bytes:
    address = bytes([len(host)]) + host.encode() if kind == NAME else ip_address(host).packed
    return bytes([5, command, 0, kind]) + address + port.to_bytes(2, "big")


def read_reply(client: socket.socket) -> tuple[int, tuple[str, int]]:
    """The code and the address of the proxy's own socket."""
    version, code, reserved, kind = receive(client, 4)
    assert (version, reserved) == (5, 0)
    host = str(ip_address(receive(client, {IPV4: 4, IPV6: 16}[kind])))
    return code, (host, int.from_bytes(receive(client, 2), "big"))


def ask(client: socket.socket, wanted: bytes) -> tuple[int, tuple[str, int]]:
    client.sendall(GREETING)
    assert receive(client, 2) == b"\x05\x00"
    client.sendall(wanted)
    return read_reply(client)


@pytest.mark.parametrize(
    ("kind", "host", "listens_on"),
    [
        (IPV4, "127.0.0.1", "127.0.0.1"),
        (NAME, "localhost", "127.0.0.1"),
        (NAME, "127.0.0.1", "127.0.0.1"),
        pytest.param(IPV6, "::1", "::1", marks=needs_ipv6),
        pytest.param(NAME, "::1", "::1", marks=needs_ipv6),
    ],
)
def test_socks5_proxy_relays_to_each_kind_of_address(kind, host, listens_on, beside):
    with (
        listening(listens_on) as listener,
        example("socks5_proxy.py", "0") as (_, port),
        connect(port) as client,
    ):
        code, bound = ask(client, request(kind, host, port_of(listener)))
        assert code == 0
        with accept(listener) as backend:
            assert bound == backend.getpeername()[:2]
            for source, sink in ((client, backend), (backend, client)):
                sending = beside.submit(send, source, PAYLOAD, end=True)
                assert receive(sink) == PAYLOAD
                sending.result()


@pytest.mark.parametrize("segment", [1, 1000])
def test_socks5_proxy_takes_its_request_in_pieces_or_with_the_first_bytes_behind_it(segment):
    with (
        listening() as listener,
        example("socks5_proxy.py", "0") as (_, port),
        connect(port) as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        everything = GREETING + request(NAME, LOCALHOST, port_of(listener)) + b"early"
        for at in range(0, len(everything), segment):
            client.sendall(everything[at : at + segment])
        assert receive(client, 2) == b"\x05\x00"
        assert read_reply(client)[0] == 0
        with accept(listener) as backend:
            assert receive(backend, 5) == b"early"


def test_socks5_proxy_replies_with_code_5_when_the_backend_refuses_and_serves_the_next():
    with refusing() as backend, example("socks5_proxy.py", "0") as (program, port):
        with connect(port) as client:
            assert ask(client, request(IPV4, LOCALHOST, port_of(backend)))[0] == 5
            assert is_cut_off(client)
        program.expect("refused")
        backend.listen()
        with connect(port) as client:
            assert ask(client, request(IPV4, LOCALHOST, port_of(backend)))[0] == 0
            accept(backend).close()


@pytest.mark.parametrize("name", ["", "two..dots", "x" * 255, "nul\0", "\xfcnicode"])
def test_socks5_proxy_replies_with_code_4_when_there_can_be_no_such_host(name):
    with example("socks5_proxy.py", "0") as (program, port):

        def visit():
            with connect(port) as client:
                assert ask(client, request(NAME, name, 80))[0] == 4
                assert is_cut_off(client)

        assert_holds_no_more_files_after(program, visit)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (request(IPV4, LOCALHOST, 80, command=2), 7),
        (request(IPV4, LOCALHOST, 80, command=3), 7),
        (b"\x05\x01\x00\x02\x00\x00", 8),
    ],
    ids=["bind", "udp associate", "address type 2"],
)
def test_socks5_proxy_replies_with_its_code_to_what_it_does_not_support(what, code):
    with example("socks5_proxy.py", "0") as (_, port), connect(port) as client:
        assert ask(client, what)[0] == code
        assert is_cut_off(client)


@pytest.mark.parametrize("greeting", [b"\x05\x00", b"\x05\x02\x01\x02", b"\x04\x01"])
def test_socks5_proxy_accepts_no_method_of_a_client_that_must_authenticate(greeting):
    with example("socks5_proxy.py", "0") as (_, port), connect(port) as client:
        client.sendall(greeting)
        assert receive(client, 2) == b"\x05\xff"
        assert is_cut_off(client)


def test_socks5_proxy_cuts_off_a_client_that_ends_anywhere_in_its_request():
    everything = GREETING + request(NAME, LOCALHOST, 80)
    with example("socks5_proxy.py", "0") as (program, port):
        lengths = iter([*range(len(everything)), 0])

        def visit():
            with connect(port) as client:
                send(client, everything[: next(lengths)], end=True)
                assert receive(client) in (b"", b"\x05\x00")

        assert_holds_no_more_files_after(program, visit, times=len(everything))


class Download(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        self.wfile.write(PAYLOAD)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("option", ["--socks5", "--socks5-hostname"])
def test_socks5_proxy_serves_curl(option, beside, tmp_path):
    curl = installed("curl")
    with (
        ThreadingHTTPServer((LOCALHOST, 0), Download) as server,
        example("socks5_proxy.py", "0") as (_, port),
    ):
        serving = beside.submit(server.serve_forever, 0.01)
        try:
            url = f"http://localhost:{server.server_port}/"
            proxy = f"127.0.0.1:{port}"
            run(curl, "-qfsS", "-4", option, proxy, "-o", tmp_path / "body", url, no_proxy="")
        finally:
            server.shutdown()
            serving.result()
        assert (tmp_path / "body").read_bytes() == PAYLOAD
