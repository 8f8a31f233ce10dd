"""Across a network: two hosts, a router with the relay on it, and what happens to cables.

The peers, and the relay's ends, are sockets of this process that were made on those hosts
(`network`), so that a test sees both what arrives and what the relay says of it.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from gevent import socket
from gevent.server import StreamServer
from network import HEADER, MTU, Host, Interface, Network, missing, network
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    Line,
    Spawn,
    echoed,
    error_of,
    exchange,
    is_stream,
    pattern,
    quietly,
    receive,
    send_and_end,
    send_back,
    wait_until,
    waits_to_write,
)
from programs import Program, python

import gsplice
from gsplice import _connecting, _gevent
from gsplice.server import ForwardServer

#: What the kernel says once it has given a vanished peer up (tcp(7), icmp(7)).
GIVEN_UP = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
SHORT = 0.3
KEEPALIVE = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
EACH_MODE = pytest.mark.parametrize("mode", MODES)

# struct tcp_info (linux/tcp.h): tcpi_retransmits, tcpi_probes and tcpi_backoff, each a byte.
IN_VAIN = struct.Struct("2xBBB")

Across: TypeAlias = Callable[[], Line]


def allowed() -> None:
    """Skip the test where there can be no network; but fail it where CI is true."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def net() -> Iterator[Network]:
    """Build the hosts and the cables."""
    allowed()
    with network() as built:
        for host in (built.client.host, built.router, built.server.host):
            bound_buffers(host)
        yield built


def bound_buffers(host: Host) -> None:
    """Have a connection keep a MiB at the most; `MORE_THAN_BUFFERS` is more than that, then."""
    for name in ("ipv4/tcp_rmem", "ipv4/tcp_wmem"):
        host.set(name, f"4096 131072 {1 << 20}")


def socket_on(host: Host) -> socket.socket:
    with host.entered():
        return socket.socket()


def listen_on(end: Interface) -> socket.socket:
    listener = socket_on(end.host)
    listener.bind((end.address, 0))
    listener.listen()
    return listener


def connected(near: Interface, far: Interface) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new connection between two hosts."""
    client = socket_on(near.host)
    with listen_on(far) as listener:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    for sock in (client, server):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def line_across(net: Network, keep: Callable[..., Any]) -> Line:
    """Return what a transfer on the router stands between."""
    client, source = map(keep, connected(net.client, net.router_to_client))
    sink, backend = map(keep, connected(net.router_to_server, net.server))
    return Line(client, source, sink, backend)


@pytest.fixture
def across(net: Network, keep: Any) -> Across:
    """Make a connection from the client to the router, and one from there to the server."""
    return lambda: line_across(net, keep)


def tries_in_vain(sock: socket.socket) -> int:
    """Return how often *sock* has sent what is due, or asked for room, and got no answer."""
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, IN_VAIN.size)
    return sum(IN_VAIN.unpack(information))


def keep_alive(sock: socket.socket) -> None:
    """Give a peer up that has not answered for two seconds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 1)


# Many small segments.


@EACH_MODE
def test_both_directions_across_a_router_in_segments_of_1500_bytes(
    net: Network, across: Across, spawn: Spawn, mode: str
) -> None:
    ends = across()
    up, down = pattern(5_000_001, 1), pattern(3_000_007, 2)
    spawn(send_and_end, ends.client, up)
    spawn(send_and_end, ends.backend, down)
    got_up, got_down = spawn(receive, ends.backend), spawn(receive, ends.client)
    relay = gsplice.Relay(ends.source, ends.sink, mode=mode)
    assert relay.run() == (len(up), len(down))
    assert got_up.get() == up
    assert got_down.get() == down
    assert bool(relay.spliced) == (mode != "copy")
    for end in (net.client, net.router_to_server, net.server):
        size, frames = end.sent()
        assert frames > 2000
        assert size / frames <= MTU + HEADER  # nobody has sent more than a frame at a time


def test_a_pipe_full_of_small_segments_is_emptied_in_order(across: Across, spawn: Spawn) -> None:
    ends = across()
    data = pattern(MORE_THAN_BUFFERS)
    spawn(send_and_end, ends.client, data)
    transfer = gsplice.Transfer(ends.source, ends.sink, mode="splice").start()
    wait_until(lambda: gsplice.stats().pipes > gsplice.stats().idle_pipes)  # it holds bytes
    assert receive(ends.backend, 1_000_000) == data[:1_000_000]
    rest = spawn(receive, ends.backend, len(data) - 1_000_000)
    assert transfer.get(timeout=20) == len(data)
    assert rest.get() == data[1_000_000:]
    assert transfer.spliced == transfer.moved


@EACH_MODE
def test_a_receive_window_that_shrinks_until_it_is_shut_and_opens_again(
    across: Across, spawn: Spawn, mode: str
) -> None:
    ends = across()
    data = pattern(MORE_THAN_BUFFERS)
    spawn(send_and_end, ends.client, data)
    transfer = gsplice.Transfer(ends.source, ends.sink, mode=mode).start()
    received = bytearray()
    for size in (1 << 18, 1 << 16, 1 << 13, 1024):
        ends.backend.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        wait_until(lambda: waits_to_write(ends.sink))  # all that is in front of it is full
        received += receive(ends.backend, 2 * size)
    wait_until(lambda: tries_in_vain(ends.sink))  # the window is shut
    ends.backend.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    rest = spawn(receive, ends.backend, len(data) - len(received))
    assert transfer.get(timeout=20) == len(data)
    assert received + rest.get() == data


# A cable that loses, doubles and reorders.


@pytest.fixture
def lossy(keep: Any) -> Iterator[Line]:
    """Make the connections while the client's cable is bad."""
    allowed()
    with network(cut=True) as net:
        assert net.cut is not None
        devices = [f"cut-{end.device}" for end in (net.client, net.router_to_client)]
        with net.cut.entered():
            wire = python(str(Path(__file__).with_name("lossy_wire.py")), "1", *devices)
        with wire:
            wire.expect("ready")
            yield line_across(net, keep)
            assert net.client.host.count("Tcp", "RetransSegs") > 0
            assert net.client.host.count("TcpExt", "TCPOFOQueue") > 0


@EACH_MODE
def test_what_is_lost_doubled_or_overtaken_on_the_way_arrives_once_and_in_order(
    lossy: Line, spawn: Spawn, mode: str
) -> None:
    up, down = pattern(1_000_001, 1), pattern(700_007, 2)
    spawn(send_and_end, lossy.client, up)
    spawn(send_and_end, lossy.backend, down)
    got_up, got_down = spawn(receive, lossy.backend), spawn(receive, lossy.client)
    assert gsplice.relay(lossy.source, lossy.sink, mode=mode) == (len(up), len(down))
    assert got_up.get() == up
    assert got_down.get() == down


# A cable that is pulled out, in the middle of a transfer.


class Flow:
    """More than everything on the way can hold, sent by the client; the backend reads a part."""

    def __init__(self, ends: Line, spawn: Spawn) -> None:
        self.ends = ends
        self.data = pattern(MORE_THAN_BUFFERS)
        self.received = b""
        self._spawn = spawn
        self._sender = spawn(ends.client.sendall, self.data)

    def begin(self, count: int = 500_000) -> None:
        self.received = receive(self.ends.backend, count)

    def check(self, transfer: gsplice.Transfer, *, all_of_it: bool) -> None:
        """Account for every byte: what arrived, what was held, and what is still at the source."""
        held = transfer.moved + len(transfer.undelivered)
        rest = self._spawn(receive, self.ends.source, len(self.data) - held)
        self._sender.get()
        assert self.data[transfer.moved :] == transfer.undelivered + rest.get()
        if all_of_it:
            self.received += receive(self.ends.backend, transfer.moved - len(self.received))
            assert len(self.received) == transfer.moved
        assert self.data.startswith(self.received)


@pytest.mark.parametrize("mode", ["splice", "copy"])
def test_the_idle_time_out_ends_a_transfer_whose_sink_has_lost_its_cable(
    net: Network, across: Across, spawn: Spawn, mode: str
) -> None:
    flow = Flow(across(), spawn)
    transfer = gsplice.Transfer(flow.ends.source, flow.ends.sink, idle_timeout=SHORT, mode=mode)
    transfer.start()
    flow.begin()
    net.server.down()
    with pytest.raises(socket.timeout, match="timed out"):
        transfer.get(timeout=15)
    assert transfer.undelivered
    net.server.up()
    flow.check(transfer, all_of_it=True)


def test_the_idle_time_out_ends_a_relay_whose_source_has_lost_its_cable(
    net: Network, across: Across, spawn: Spawn
) -> None:
    ends = across()
    data = pattern(MORE_THAN_BUFFERS)
    sender = spawn(ends.client.sendall, data)
    received = spawn(receive, ends.backend)
    relay = gsplice.Relay(ends.source, ends.sink, idle_timeout=SHORT).start()
    wait_until(lambda: relay.up.moved > 200_000)
    net.client.down()
    with pytest.raises(socket.timeout, match="timed out"):
        relay.get(timeout=15)
    assert not sender.ready()
    assert relay.undelivered == b""
    ends.sink.shutdown(socket.SHUT_WR)
    assert received.get() == data[: relay.up.moved]


def test_keepalive_ends_a_relay_whose_source_has_vanished_as_it_ends_recv(
    net: Network, across: Across, spawn: Spawn
) -> None:
    ends, plain = across(), across()
    for sock in (ends.source, plain.source):
        keep_alive(sock)
    relay = gsplice.Relay(ends.source, ends.sink).start()
    receiving = spawn(error_of, plain.source.recv, 1)
    ends.client.sendall(b"the last words")
    assert receive(ends.backend, 14) == b"the last words"
    net.client.down()
    with pytest.raises(OSError, match=r"timed out|unreachable") as ended:
        relay.get(timeout=15)
    assert ended.value.errno in GIVEN_UP
    assert receiving.get().errno in GIVEN_UP
    assert (relay.up.moved, relay.undelivered) == (14, b"")


@pytest.mark.parametrize("mode", ["splice", "copy"])
def test_the_user_time_out_of_tcp_ends_a_relay_whose_sink_has_vanished(
    net: Network, across: Across, spawn: Spawn, mode: str
) -> None:
    flow = Flow(across(), spawn)
    sink = flow.ends.sink
    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)  # milliseconds
    relay = gsplice.Relay(flow.ends.source, sink, mode=mode).start()
    flow.begin()
    net.server.down()
    spawn(receive, flow.ends.backend)  # so that the window is not what it waits for
    with pytest.raises(OSError, match=r"timed out|unreachable") as ended:
        relay.get(timeout=15)
    assert ended.value.errno in GIVEN_UP
    flow.check(relay.up, all_of_it=False)


@pytest.mark.parametrize(
    ("whose", "mode"), [("client", "auto"), ("server", "splice"), ("router", "copy")]
)
def test_a_cable_that_is_pulled_and_put_back_costs_no_byte(
    net: Network, across: Across, spawn: Spawn, whose: str, mode: str
) -> None:
    ends = across()
    ends_of_cable = {
        "client": (net.client, ends.client),
        "server": (net.server, ends.backend),
        "router": (net.router_to_server, ends.sink),
    }
    end, sock = ends_of_cable[whose]
    up, down = pattern(MORE_THAN_BUFFERS, 1), pattern(MORE_THAN_BUFFERS, 2)
    spawn(send_and_end, ends.client, up)
    spawn(send_and_end, ends.backend, down)
    relay = gsplice.Relay(ends.source, ends.sink, mode=mode).start()
    beginning = receive(ends.backend, 500_000), receive(ends.client, 500_000)
    end.down()
    rest = spawn(receive, ends.backend), spawn(receive, ends.client)
    wait_until(lambda: tries_in_vain(sock))
    end.up()
    assert relay.get(timeout=20) == (len(up), len(down))
    assert [one + more.get() for one, more in zip(beginning, rest, strict=True)] == [up, down]


# Moderation.


class Writes:
    """Small writes without a pause, until `stop`: each a segment."""

    def __init__(self, sock: socket.socket) -> None:
        self.sent = bytearray()
        self._socket = sock
        self._going_on = True

    def run(self) -> None:
        while self._going_on:
            piece = pattern(512, len(self.sent) % 97)
            self._socket.sendall(piece)
            self.sent += piece
            _gevent.let_loop_pass()
        self._socket.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        self._going_on = False


@pytest.mark.parametrize("buffer", [None, 8192], ids=["any window", "a small window"])
def test_a_moderated_stream_goes_on_after_its_cable_was_out(
    net: Network, across: Across, spawn: Spawn, buffer: int | None
) -> None:
    ends = across()
    if buffer is not None:
        ends.source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    received = spawn(receive, ends.backend)
    relay = gsplice.Relay(ends.source, ends.sink).start()
    writes = Writes(ends.client)
    writing = spawn(writes.run)
    wait_until(lambda: is_stream(relay.up))
    net.client.down()
    wait_until(lambda: not is_stream(relay.up))  # a pause
    net.client.up()
    moved = relay.up.moved
    wait_until(lambda: relay.up.moved > moved + 200_000)
    writes.stop()
    writing.get()
    ends.backend.shutdown(socket.SHUT_WR)
    assert relay.get(timeout=20) == (len(writes.sent), 0)
    assert received.get() == writes.sent


# A server on the router.


@pytest.fixture
def echo(net: Network) -> Iterator[StreamServer]:
    """Send back what comes, on the server's host."""
    server = StreamServer(listen_on(net.server), quietly(send_back))
    server.start()
    yield server
    server.stop(0)


@pytest.fixture
def serve(net: Network, echo: StreamServer) -> Iterator[Callable[..., ForwardServer]]:
    """Start forwarders on the router."""
    started: list[ForwardServer] = []

    def start(target: Any = None, **options: Any) -> ForwardServer:
        def connect(_: Any) -> socket.socket:
            sock = socket_on(net.router)
            try:
                sock.connect(target or echo.address)
            except BaseException:
                sock.close()
                raise
            return sock

        started.append(ForwardServer(listen_on(net.router_to_client), connect, **options))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.stop(0)


@pytest.fixture
def dial(net: Network, keep: Any) -> Callable[[Any], socket.socket]:
    """Connect to an address from the client's host."""

    def connect(address: Any) -> socket.socket:
        sock = keep(socket_on(net.client.host))
        sock.settimeout(15)
        sock.connect(address)
        return sock

    return connect


@pytest.mark.parametrize("means", ["idle_timeout", "keepalive"])
def test_a_client_that_has_vanished_is_given_up_and_makes_room_for_another(
    net: Network, serve: Any, dial: Any, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if means == "keepalive":  # the server turns it on, and says when it counts
        options = [(getattr(socket, name), 1) for name in KEEPALIVE]
        monkeypatch.setattr(_connecting, "_KEEPALIVE", options)
    server = serve(max_connections=1, idle_timeout=1 if means == "idle_timeout" else None)
    exchange(dial(server.address))
    net.client.down()
    wait_until(lambda: server.connections == 0)
    net.client.up()
    exchange(dial(server.address))


def test_a_backend_in_a_black_hole_costs_its_client_the_connect_time_out_and_no_other(
    net: Network, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = "198.51.100.99"
    net.router_to_server.black_hole(nowhere)
    lost, found = serve((nowhere, 80), connect_timeout=0.5), serve()
    client, other = dial(lost.address), dial(found.address)
    wait_until(lambda: lost.connections == 1)
    exchange(other)
    assert receive(client) == b""
    assert "cannot connect to the target: timed out" in caplog.text
    assert lost.connections == 0
    exchange(other)


def test_the_command_on_the_router_finishes_what_it_carries(
    net: Network, echo: StreamServer, dial: Any
) -> None:
    listen, target = f"{net.router_to_client.address}:0", ":".join(map(str, echo.address))
    with net.router.entered():
        program = python("-m", "gsplice", "forward", listen, target, "--grace", "20")
    with program:
        host, port = program.expect(r"listening on (\S+):(\d+),").groups()
        client = dial((host, int(port)))
        exchange(client)
        program.process.terminate()
        assert echoed(client, pattern(3_000_000)) == pattern(3_000_000)
        wait_until(lambda: program.process.poll() is not None)
        assert program.stop() == 0


# The hosts themselves.


def test_of_a_process_that_is_killed_no_host_and_no_cable_is_left(net: Network) -> None:
    host = net.client.host
    source = f"""if True:
        import os, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from network import Host
        Host("other").run("ip", "link", "add", "far", "type", "veth",
            "peer", "name", "near", "netns", {host.path!r})
        print("ready", flush=True)
        time.sleep(60)
    """
    with Program(sys.executable, "-c", source) as program:
        program.expect("ready")
        assert "near" in host.run("ip", "-brief", "link")
        program.stop(signal.SIGKILL)
    wait_until(lambda: "near" not in host.run("ip", "-brief", "link"))
