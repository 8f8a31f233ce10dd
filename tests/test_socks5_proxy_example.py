"""``examples/socks5_proxy.py``: to each kind of address, and the right code for what cannot be."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from example_programs import (
    LOCALHOST,
    PAYLOAD,
    accept,
    assert_holds_no_more_files_after,
    connect,
    example,
    is_cut_off,
    listening,
    port_of,
    receive,
    refusing,
    send,
)
from programs import installed, needs_ipv6, run

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
