"""`gsplice.server.ForwardServer`, in the process of the test."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from peers import (
    MODES,
    echoed,
    error_of,
    exchange,
    fill,
    is_readable,
    pattern,
    receive,
    reset,
    send_back,
    wait_until,
)

import gsplice
from gsplice.server import ForwardServer

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def keep() -> Iterator[Callable[[socket.socket], socket.socket]]:
    """Keep sockets until all servers have been stopped, then close them."""
    kept: list[socket.socket] = []

    def keep_one(sock: socket.socket) -> socket.socket:
        kept.append(sock)
        return sock

    yield keep_one
    for sock in kept:
        sock.close()


@pytest.fixture
def listen(keep: Any) -> Callable[..., socket.socket]:
    """Listen at an address, or the path of a unix socket."""

    def bind(address: Any = LOOPBACK, backlog: int = 8) -> socket.socket:
        listener = keep(socket.socket(family_of(address)))
        listener.bind(address)
        listener.listen(backlog)
        return listener

    return bind


def family_of(address: Any) -> socket.AddressFamily:
    return socket.AF_UNIX if isinstance(address, str) else socket.AF_INET


@pytest.fixture
def serve(keep: Any) -> Iterator[Callable[..., Any]]:
    """Start servers; at the end all are stopped, with what they serve."""
    started: list[StreamServer] = []

    def start(server: StreamServer) -> StreamServer:
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop(0)


@pytest.fixture
def forward(serve: Callable[..., Any]) -> Callable[..., ForwardServer]:
    """Start a forwarder to a target."""

    def start(target: Any, **options: Any) -> ForwardServer:
        return serve(ForwardServer(LOOPBACK, target, **options))

    return start


@pytest.fixture
def echo(serve: Callable[..., Any]) -> StreamServer:
    """Run a backend that sends back what it gets, until the end of file."""
    return serve(StreamServer(LOOPBACK, send_back))


@pytest.fixture
def dial() -> Iterator[Callable[[StreamServer], socket.socket]]:
    """Connect to servers; all connections are closed at the end."""
    made: list[socket.socket] = []

    def connect(server: StreamServer) -> socket.socket:
        made.append(socket.create_connection(server.address[:2], timeout=10))
        return made[-1]

    yield connect
    for sock in made:
        sock.close()


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


def test_an_idle_connection_is_ended_after_the_time_out(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, idle_timeout=0.1)
    client = dial(server)
    exchange(client)
    assert receive(client) == b""
    assert server.connections == 0


def test_one_more_than_max_connections_waits_until_another_leaves(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=2)
    first, second, third = dial(server), dial(server), dial(server)
    exchange(first)
    exchange(second)
    third.sendall(b"let me in")
    exchange(first, b"still here")
    assert server.full()
    assert (server.accepted, server.connections) == (2, 2)
    assert not is_readable(third)
    first.close()
    assert receive(third, 9) == b"let me in"
    exchange(second)


def test_with_max_connections_all_of_a_crowd_are_served_in_turn(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=3)
    clients = [dial(server) for _ in range(30)]
    most = 0

    def served(client: socket.socket) -> bytes:
        nonlocal most
        exchange(client)
        most = max(most, server.connections)
        return echoed(client, b"bye")

    greenlets = [gevent.spawn(served, client) for client in clients]
    assert [greenlet.get() for greenlet in greenlets] == [b"bye"] * 30
    assert most == 3


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


@pytest.fixture
def never_accepts(keep: Any, listen: Any, tmp_path: Path) -> Callable[[str], socket.socket]:
    """Return a listener whose backlog is full."""

    def fill_backlog(kind: str) -> socket.socket:
        listener = listen(str(tmp_path / "full") if kind == "unix" else LOOPBACK, 0)
        for _ in range(4):
            client = keep(socket.socket(listener.family))
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        return listener

    return fill_backlog


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_backend_that_never_accepts_is_given_up_after_the_time_out(
    kind: str,
    never_accepts: Any,
    forward: Any,
    dial: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = forward(never_accepts(kind).getsockname(), connect_timeout=0.2)
    before = time.process_time()
    assert receive(dial(server)) == b""
    assert "cannot connect to the target: timed out" in caplog.text
    assert time.process_time() - before < 0.1  # it has waited, not tried all the time


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


@pytest.mark.parametrize("result", [ValueError("a bug"), "no socket", None])
def test_a_callable_with_a_bug_is_reported_and_costs_only_that_connection(
    result: Any, forward: Any, dial: Any, hub_errors: list[Any]
) -> None:
    def target(_: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    server = forward(target, max_connections=1)
    assert receive(dial(server)) == b""
    assert receive(dial(server)) == b""
    assert server.connections == 0
    assert len(hub_errors) == 2
    hub_errors.clear()


# Clients and backends that are hostile, or broken. `test_exposed` has what a crowd of them costs.


def test_a_client_that_sends_a_byte_now_and_then_is_not_idle_and_a_silent_one_is(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, idle_timeout=0.5)
    slow, silent = dial(server), dial(server)
    exchange(slow)
    exchange(silent)
    while not is_readable(silent):
        exchange(slow, b"x")
        gevent.sleep(0.05)  # now and then is what is tested
    assert receive(silent) == b""
    exchange(slow)
    assert server.connections == 1


def test_slow_clients_in_every_place_leave_room_when_they_leave(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=3)
    slow = [dial(server) for _ in range(3)]
    waiting = [dial(server) for _ in range(3)]
    for _ in range(20):
        for client in slow:
            exchange(client, b"x")
    assert (server.connections, server.accepted) == (3, 3)
    assert not any(is_readable(client) for client in waiting)
    for leave in (socket.socket.close, reset, socket.socket.close):
        leave(slow.pop())
    for client in waiting:
        exchange(client)
    assert (server.connections, server.accepted) == (3, 6)


def test_clients_that_left_while_they_waited_for_a_place_keep_it_from_nobody(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address, max_connections=1)
    first = dial(server)
    exchange(first)
    for leave in (socket.socket.close, reset, socket.socket.close):
        leave(dial(server))
    last = dial(server)
    first.close()
    exchange(last)
    wait_until(lambda: server.connections == 1)


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_a_backend_that_never_answers_is_ended_by_the_idle_time_out(
    half_closed: bool, forward: Any, serve: Any, dial: Any
) -> None:
    asked, over = [], Event()

    def listen_only(sock: socket.socket, _: Any) -> None:
        asked.append(receive(sock))
        over.wait()

    server = forward(
        serve(StreamServer(LOOPBACK, listen_only)).address, max_connections=1, idle_timeout=0.3
    )
    clients = [dial(server) for _ in range(2)]
    for client in clients:
        client.sendall(b"is anybody there?")
        if half_closed:
            client.shutdown(socket.SHUT_WR)
    assert [receive(client) for client in clients] == [b"", b""]
    wait_until(lambda: server.connections == 0)
    over.set()
    wait_until(lambda: asked == [b"is anybody there?"] * 2)


def test_a_client_that_never_reads_is_ended_by_the_idle_time_out(
    forward: Any, serve: Any, dial: Any
) -> None:
    def pour(sock: socket.socket, _: Any) -> None:
        poured.append(error_of(sock.sendall, bytes(64 * 1024 * 1024)))

    poured: list[Any] = []
    backend = serve(StreamServer(LOOPBACK, pour))
    server = forward(backend.address, idle_timeout=0.3)
    dial(server)
    wait_until(lambda: poured)
    assert isinstance(poured[0], ConnectionError)
    wait_until(lambda: server.connections == 0)
    assert gsplice.stats().pipes == gsplice.stats().idle_pipes


@pytest.mark.parametrize("answer", [b"", pattern(100_000)], ids=["at once", "after an answer"])
def test_a_backend_that_resets_costs_that_client_its_connection_and_not_the_answer(
    answer: bytes, forward: Any, serve: Any, echo: StreamServer, dial: Any
) -> None:
    def answer_and_reset(sock: socket.socket, _: Any) -> None:
        sock.recv(1)
        sock.sendall(answer)
        reset(sock)

    server = forward(serve(StreamServer(LOOPBACK, answer_and_reset)).address)
    client = dial(server)
    client.sendall(pattern(10_000))
    assert receive(client, len(answer)) == answer
    assert isinstance(error_of(receive, client), (ConnectionResetError, type(None)))
    server.target = echo.address
    exchange(dial(server))


def test_a_client_that_leaves_while_its_backend_cannot_be_reached_makes_room_in_time(
    never_accepts: Any, forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(never_accepts("tcp").getsockname(), max_connections=2, connect_timeout=0.5)
    lost = [dial(server) for _ in range(2)]
    wait_until(lambda: server.full())
    for client in lost:
        reset(client)
    server.target = echo.address
    exchange(dial(server))
    assert server.accepted == 3


# No fds.


@pytest.fixture
def no_fds() -> Iterator[Callable[[], None]]:
    """Allow the process no further fd, until it is called again or the test is over."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def toggle() -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE) != limits:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        else:
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))

    yield toggle
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_an_fd_a_client_waits_in_the_backlog(
    forward: Any, echo: StreamServer, keep: Any, no_fds: Any, hub_errors: list[Any]
) -> None:
    server = forward(echo.address)
    client = keep(socket.socket())
    client.settimeout(10)
    no_fds()
    client.connect(server.address)
    wait_until(lambda: server.delay > server.min_delay)
    assert (server.accepted, server.connections) == (0, 0)
    no_fds()
    exchange(client)
    assert [error.errno for _, error in hub_errors] == [errno.EMFILE] * len(hub_errors)
    hub_errors.clear()


def test_a_client_for_whose_other_end_there_is_no_fd_waits_and_nobody_else_is_accepted(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    tries: list[Any] = []
    enough = False

    def target(address: Any) -> socket.socket:
        tries.append(address)
        if not enough:
            raise OSError(errno.EMFILE, "Too many open files")
        return socket.create_connection(echo.address)

    server = forward(target)
    first = dial(server)
    wait_until(lambda: len(tries) > 2)
    second = dial(server)
    second.sendall(b"me too")
    wait_until(lambda: len(tries) > 4)
    assert server.full()
    assert (server.accepted, is_readable(first)) == (1, False)
    enough = True
    exchange(first)
    assert receive(second, 6) == b"me too"
    assert not server.full()


def test_a_client_that_has_waited_for_an_fd_may_find_no_backend_all_the_same(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [OSError(errno.EMFILE, "Too many open files"), ConnectionError("none is healthy")]

    def target(_: Any) -> socket.socket:
        raise errors.pop(0)

    assert receive(dial(forward(target))) == b""
    assert "cannot connect to the target: none is healthy" in caplog.text


def test_a_name_that_could_not_be_looked_up_for_want_of_an_fd_is_looked_up_again(
    forward: Any, echo: StreamServer, dial: Any, no_fds: Any
) -> None:
    tries: list[Any] = []

    def target(address: Any) -> socket.socket:
        tries.append(address)
        no_fds()
        if len(tries) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return socket.create_connection(echo.address)

    exchange(dial(forward(target)))
    assert len(tries) == 2


def test_a_name_that_does_not_exist_is_a_backend_that_is_not_there(
    forward: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def target(_: Any) -> socket.socket:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert receive(dial(forward(target))) == b""
    assert "Name or service not known" in caplog.text


# The end.


def test_stop_lets_what_is_being_served_finish(forward: Any, echo: StreamServer, dial: Any) -> None:
    server = forward(echo.address)
    client = dial(server)
    exchange(client)
    address = server.address
    stopping = gevent.spawn(server.stop, 10)
    wait_until(lambda: server.closed)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert echoed(client, b"the rest") == b"the rest"
    stopping.get()
    assert server.connections == 0


def test_stop_ends_what_has_not_finished_in_time(
    forward: Any, echo: StreamServer, dial: Any
) -> None:
    server = forward(echo.address)
    client = dial(server)
    exchange(client)
    server.stop(0.05)
    assert server.connections == 0
    assert receive(client) == b""


def test_stop_ends_a_relay_whose_sink_has_stalled(forward: Any, listen: Any, dial: Any) -> None:
    server = forward(listen().getsockname())  # in whose backlog connections stay
    client = dial(server)
    wait_until(lambda: gsplice.stats().active == 2)
    wait_until(lambda: fill(client) == 0)
    server.stop(0)
    assert server.connections == 0


def test_stop_ends_a_connection_that_is_still_connecting(
    never_accepts: Any, forward: Any, dial: Any
) -> None:
    server = forward(never_accepts("tcp").getsockname())
    client = dial(server)
    wait_until(lambda: server.connections == 1)
    server.stop(0)
    assert server.connections == 0
    assert receive(client) == b""


def test_a_connection_that_is_still_connecting_keeps_no_port_open_after_the_end(
    never_accepts: Any, forward: Any, dial: Any
) -> None:
    server = forward(never_accepts("tcp").getsockname())
    dial(server)
    wait_until(lambda: server.connections == 1)
    address = server.address
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    server.stop(0)


def test_stop_without_connections_returns_at_once_and_may_be_repeated(
    forward: Any, echo: StreamServer
) -> None:
    server = forward(echo.address)
    for _ in range(2):
        with gevent.Timeout(1):
            server.stop(30)


def test_serve_forever_returns_once_it_is_closed(echo: StreamServer) -> None:
    server = ForwardServer(LOOPBACK, echo.address)
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    server.close()
    serving.get(timeout=5)


# Bad arguments.


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        (80, {}, TypeError, r"target must be \(host, port\), the path .* or a callable, not 80"),
        (("host", 80, 1), {}, TypeError, "target must be"),
        (None, {}, TypeError, "target must be"),
        (("host", "80"), {}, TypeError, "target must be"),
        ("x", {"idle_timeout": 0}, ValueError, "idle_timeout must be more than 0 seconds"),
        ("x", {"idle_timeout": "5"}, TypeError, "idle_timeout must be a number of seconds"),
        ("x", {"connect_timeout": -1}, ValueError, "connect_timeout must be more than 0 seconds"),
        ("x", {"max_connections": 0}, ValueError, "max_connections must be at least 1"),
        ("x", {"max_connections": 1.5}, TypeError, "max_connections must be an int"),
        ("x", {"mode": "fast"}, ValueError, "mode must be 'auto', 'splice' or 'copy', not 'fast'"),
        ("x", {"moderation": -1}, ValueError, "moderation must not be negative"),
        ("x", {"moderation": "1"}, TypeError, "moderation must be a number of seconds"),
    ],
)
def test_bad_arguments_are_refused_when_it_is_made(
    target: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ForwardServer(LOOPBACK, target, **options)


def test_reuse_port_is_refused_with_a_socket_that_has_its_port(listen: Any) -> None:
    with pytest.raises(TypeError, match="reuse_port is for an address to listen at"):
        ForwardServer(listen(), "x", reuse_port=True)


def test_a_listener_that_would_block_the_hub_is_refused() -> None:
    with socket.create_server(LOOPBACK) as listener:
        with pytest.raises(TypeError, match=r"would block the hub: listen with a gevent\.socket"):
            ForwardServer(listener, "x")
        listener.setblocking(False)
        ForwardServer(listener, "x").close()
