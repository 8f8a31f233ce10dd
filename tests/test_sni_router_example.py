"""``examples/sni_router.py``: each TLS client comes to the backend it asks for, or is cut off."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trustme
from example_programs import (
    LOCALHOST,
    PAYLOAD,
    accept,
    assert_holds_no_more_files_after,
    connect,
    example,
    is_cut_off,
    port_of,
    receive,
    refusing,
    send,
)
from programs import PATIENCE


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
