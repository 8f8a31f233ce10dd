"""`gsplice.server.ForwardServer`: where it forwards to, and what it does without a backend."""

from __future__ import annotations

import errno
import os
import socket as standard_socket
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer
from peers import (
    MODES,
    echoed,
    exchange,
    pattern,
    receive,
    reset,
    send_back,
    wait_until,
)
from races import before_method
from servers import LOOPBACK

from gsplice import _connecting, _gevent
from gsplice import server as server_module
from gsplice._connecting import Connecting
from gsplice.server import ForwardServer


def test_it_is_a_gevent_stream_server() -> None:
    assert issubclass(ForwardServer, StreamServer)


# Where to.


@pytest.mark.parametrize("mode", MODES)
def test_forwards_to_a_host_and_port(
    mode: str, forward: Any, echo: StreamServer, dial: Any
) -> None:
    client = dial(forward(("127.0.0.1", echo.server_port), mode=mode))
    data = pattern(3_000_000)
    assert echoed(client, data) == data


def test_a_numeric_target_is_not_looked_up(
    forward: Any, echo: StreamServer, keep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*arguments: Any) -> Any:
        raise AssertionError(f"looked up: {arguments}")

    monkeypatch.setattr(gevent.get_hub().resolver, "getaddrinfo", look_up)
    client = keep(socket.socket())
    client.settimeout(10)
    client.connect(forward(("127.0.0.1", echo.server_port)).address)
    assert echoed(client, b"numeric") == b"numeric"


def test_the_name_of_a_target_is_looked_up(forward: Any, echo: StreamServer, dial: Any) -> None:
    assert echoed(dial(forward(("localhost", echo.server_port))), b"a name") == b"a name"


@pytest.mark.parametrize("kind", [str, Path])
def test_forwards_to_the_path_of_a_unix_socket(
    kind: Any, forward: Any, serve: Any, dial: Any, listen: Any, tmp_path: Path
) -> None:
    path = tmp_path / "backend"
    serve(StreamServer(listen(str(path)), send_back))
    assert echoed(dial(forward(kind(path))), pattern(300_000)) == pattern(300_000)


def test_forwards_to_what_a_callable_returns_for_the_clients_address(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    asked = []

    def target(address: Any) -> socket.socket:
        asked.append(address)
        return socket.create_connection(echo.address)

    client = dial(forward(target))
    assert echoed(client, b"question") == b"question"
    assert asked == [client.getsockname()]


def test_accepts_on_a_socket_that_listens_already(
    serve: Any, echo: StreamServer, dial: Any, listen: Any
) -> None:
    server = serve(ForwardServer(listen(), echo.address))
    assert echoed(dial(server), b"hello") == b"hello"
    assert server.accepted == 1


def test_forwards_from_ipv6(serve: Any, echo: StreamServer, dial: Any) -> None:
    client = dial(serve(ForwardServer(("::1", 0), echo.address)))
    assert client.family == socket.AF_INET6
    assert echoed(client, b"hello") == b"hello"


def test_with_reuse_port_two_servers_share_a_port(
    serve: Any, echo: StreamServer, dial: Any
) -> None:
    first = serve(ForwardServer(LOOPBACK, echo.address, reuse_port=True))
    second = serve(ForwardServer(first.address, echo.address, reuse_port=True))
    assert second.address == first.address
    while not (first.accepted and second.accepted):  # the kernel decides, by the client's port
        exchange(dial(first))


def test_without_reuse_port_a_port_is_the_servers_alone(serve: Any, echo: StreamServer) -> None:
    first = serve(ForwardServer(LOOPBACK, echo.address))
    with pytest.raises(OSError, match="in use"):
        ForwardServer(first.address, echo.address, reuse_port=True).start()


# Connections come and go.


def test_hundreds_of_connections_at_once_get_each_its_own_bytes(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, backlog=256)
    clients = [dial(server) for _ in range(200)]
    for client in clients:
        exchange(client)
    assert server.connections == 200
    payloads = [pattern(50_000, key) for key in range(len(clients))]
    greenlets = [gevent.spawn(echoed, *each) for each in zip(clients, payloads, strict=True)]
    assert [greenlet.get() for greenlet in greenlets] == payloads
    wait_until(lambda: server.connections == 0)
    assert server.accepted == 200


def test_the_end_of_file_goes_through_while_the_answer_is_still_to_come(
    forward: Any, serve: Any, dial: Any
) -> None:
    def answer_at_the_end(sock: socket.socket, _: Any) -> None:
        sock.sendall(b"got %d" % len(receive(sock)))

    backend = serve(StreamServer(LOOPBACK, answer_at_the_end))
    assert echoed(dial(forward(backend.address)), bytes(100_000)) == b"got 100000"


def test_a_connection_that_is_reset_ends_both_ends_and_nothing_else(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address)
    first, second = dial(server), dial(server)
    exchange(first)
    exchange(second)
    reset(first)
    wait_until(lambda: server.connections == 1)
    exchange(second)


# The backend that is not there.


def test_a_backend_that_refuses_costs_the_client_its_connection_and_a_log_line(
    forward: Any, echo: StreamServer, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(LOOPBACK)
        nowhere = closed.getsockname()
    server = forward(nowhere)
    client = dial(server)
    assert receive(client) == b""
    (line,) = caplog.messages
    host, port = client.getsockname()
    assert line.startswith(f"client {host}:{port}: cannot connect to the target: ")
    assert "refused" in line
    server.target = echo.address
    exchange(dial(server))


def test_a_unix_backend_that_is_not_there_is_logged(
    forward: Any, dial: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert receive(dial(forward(tmp_path / "nothing"))) == b""
    assert "No such file or directory" in caplog.text


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_backend_that_never_accepts_is_given_up_after_the_time_out(
    kind: str,
    never_accepts: Any,
    forward: Any,
    dial: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = forward(never_accepts(kind).getsockname(), connect_timeout=0.2)
    tries = before_method(monkeypatch, Connecting, "_step", lambda: None)
    assert receive(dial(server)) == b""
    assert "cannot connect to the target: timed out" in caplog.text
    assert len(tries) <= (1 + 0.2 / _connecting._RETRY if kind == "unix" else 0)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_backend_with_a_full_backlog_is_reached_once_it_accepts(
    kind: str, never_accepts: Any, forward: Any, serve: Any, dial: Any
) -> None:
    listener = never_accepts(kind)
    server = forward(listener.getsockname())
    client = dial(server)
    client.sendall(b"hello")
    wait_until(lambda: server.connections == 1)
    gevent.sleep(0)  # one pass of the hub: it has tried
    serve(StreamServer(listener, send_back))
    assert receive(client, 5) == b"hello"


def test_a_callable_that_raises_os_error_is_a_backend_that_is_not_there(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def target(_: Any) -> socket.socket:
        raise ConnectionError("none is healthy")

    assert receive(dial(forward(target))) == b""
    assert "cannot connect to the target: none is healthy" in caplog.text


@pytest.mark.parametrize("given", [None, ("127.0.0.1", 80), "socket"])
def test_a_callable_target_that_returns_no_socket_costs_that_client_its_connection(
    forward: Any, dial: Any, hub_errors: list[Any], given: Any
) -> None:
    server = forward(lambda _: given)
    assert receive(dial(server)) == b""
    (_, error), *_ = hub_errors
    assert isinstance(error, TypeError)
    assert str(error).startswith("a target has to return a connected gevent socket, not ")
    wait_until(lambda: not server.connections)
    hub_errors.clear()


def test_a_socket_of_others_that_a_target_returns_is_closed(
    forward: Any, echo: StreamServer, dial: Any, hub_errors: list[Any]
) -> None:
    backend = standard_socket.create_connection(echo.address)
    assert receive(dial(forward(lambda _: backend))) == b""
    assert backend.fileno() == -1
    assert [type(error) for _, error in hub_errors] == [TypeError]
    hub_errors.clear()


@pytest.mark.parametrize("result", [ValueError("a bug"), gevent.Timeout(), "no socket", None])
def test_a_callable_with_a_bug_is_reported_and_costs_only_that_connection(
    result: Any, forward: Any, dial: Any, hub_errors: list[Any]
) -> None:
    def target(_: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    server = forward(target, max_connections=1)
    assert receive(dial(server)) == b""
    assert receive(dial(server)) == b""
    assert server.connections == 0
    assert len(hub_errors) == 2
    hub_errors.clear()


# Bad arguments.


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        (80, {}, TypeError, r"target must be \(host, port\), the path .* or a callable, not 80"),
        (("host", 80, 1), {}, TypeError, "target must be"),
        (None, {}, TypeError, "target must be"),
        (("host", "80"), {}, TypeError, "target must be"),
        (("host", 0), {}, ValueError, "the port must be from 1 to 65535"),
        (("127.0.0.1", 70000), {}, ValueError, "the port must be from 1 to 65535"),
        (("", 80), {}, ValueError, "the host is missing"),
        (("\udcff", 80), {}, ValueError, "no host has such a name"),
        (("a\0b", 80), {}, ValueError, "the host has a NUL in it"),
        ("", {}, ValueError, "the path is missing"),
        (Path("/" + 107 * "x"), {}, ValueError, "the path has more than 107 bytes"),
        ("x", {"idle_timeout": 0}, ValueError, "idle_timeout must be more than 0 seconds"),
        ("x", {"idle_timeout": "5"}, TypeError, "idle_timeout must be a number of seconds"),
        ("x", {"connect_timeout": -1}, ValueError, "connect_timeout must be more than 0 seconds"),
        ("x", {"max_connections": 0}, ValueError, "max_connections must be at least 1"),
        ("x", {"max_connections": 1.5}, TypeError, "max_connections must be an int"),
        ("x", {"mode": "fast"}, ValueError, "mode must be 'auto', 'splice' or 'copy', not 'fast'"),
        ("x", {"moderation": -1}, ValueError, "moderation must not be negative"),
        ("x", {"moderation": float("inf")}, ValueError, "moderation must not be longer than a"),
        ("x", {"moderation": "1"}, TypeError, "moderation must be a number of seconds"),
    ],
)
def test_bad_arguments_are_refused_when_it_is_made(
    target: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ForwardServer(LOOPBACK, target, **options)


def test_a_target_may_be_changed_and_a_bad_one_leaves_it_as_it_was(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(lambda address: None)
    server.target = echo.address
    exchange(dial(server))
    for bad in (5, ("127.0.0.1", 70000)):
        with pytest.raises((TypeError, ValueError)):
            server.target = bad
    assert server.target == echo.address
    exchange(dial(server))


def test_a_subclass_that_handles_clients_is_told_that_nobody_would_call_it() -> None:
    class Filter(ForwardServer):
        def handle(self, client: socket.socket, address: Any) -> None:
            client.close()

    with pytest.raises(TypeError, match=r"Filter\.handle would not be called.* override connect"):
        Filter(LOOPBACK, "x")


def test_a_connect_that_cannot_even_begin_costs_its_client_the_connection_and_nothing_else(
    forward: Any, echo: StreamServer, dial: Any, monkeypatch: Any, hub_errors: list[Any]
) -> None:
    def bug(*_: Any) -> None:
        raise OverflowError("a bug")

    server = forward(echo.address)
    with monkeypatch.context() as patch:
        patch.setattr(server_module, "begin", bug)
        assert receive(dial(server)) == b""
    assert [type(error) for _, error in hub_errors] == [OverflowError]
    hub_errors.clear()
    assert server.connections == 0
    exchange(dial(server))


def test_a_family_that_the_host_has_not_got_is_a_backend_that_cannot_be_reached(
    forward: Any, dial: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    new_raw_socket = _gevent.new_raw_socket

    def without_ipv6(family: int) -> Any:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return new_raw_socket(family)

    monkeypatch.setattr(_gevent, "new_raw_socket", without_ipv6)
    server = forward(("::1", 80))
    assert receive(dial(server)) == b""
    assert "cannot connect to the target: [Errno 97]" in caplog.text
    assert server.connections == 0


def test_reuse_port_is_refused_with_a_socket_that_has_its_port(listen: Any) -> None:
    with pytest.raises(TypeError, match="reuse_port is for an address to listen at"):
        ForwardServer(listen(), "x", reuse_port=True)


def test_a_listener_that_would_block_the_hub_is_refused() -> None:
    with socket.create_server(LOOPBACK) as listener:
        with pytest.raises(TypeError, match=r"would block the hub: listen with a gevent\.socket"):
            ForwardServer(listener, "x")
        listener.setblocking(False)
        ForwardServer(listener, "x").close()
