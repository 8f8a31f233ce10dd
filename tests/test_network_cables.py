"""Across a network: a cable that is pulled out in mid-transfer, and put back or not."""

from __future__ import annotations

import errno

import pytest
from across import KEEPALIVE, Across, tries_in_vain
from gevent import socket
from network import Network
from peers import (
    MORE_THAN_BUFFERS,
    Line,
    Spawn,
    error_of,
    is_stream,
    pattern,
    receive,
    send_and_end,
    wait_until,
)

import gsplice
from gsplice import _gevent

#: What the kernel says once it has given a vanished peer up (tcp(7), icmp(7)).
GIVEN_UP = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
SHORT = 0.3


def keep_alive(sock: socket.socket) -> None:
    """Give a peer up that has not answered for two seconds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 1)


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
