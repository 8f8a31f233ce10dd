"""Across a network: two hosts, a router with the relay on it, and a cable that is bad.

The peers, and the relay's ends, are sockets of this process that were made on those hosts
(`network`, `across`), so that a test sees both what arrives and what the relay says of it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network as network_module
import pytest
from across import EACH_MODE, Across, allowed, line_across, tries_in_vain
from gevent import socket
from network import HEADER, MTU, Network, network
from peers import (
    MORE_THAN_BUFFERS,
    Line,
    Spawn,
    pattern,
    receive,
    send_and_end,
    wait_until,
    waits_to_write,
)
from programs import Program, python

import gsplice

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


# The hosts themselves.


@pytest.mark.parametrize("ci", ["true", None], ids=["in CI", "elsewhere"])
def test_where_there_can_be_no_network_tests_are_skipped_and_in_ci_they_fail(
    monkeypatch: pytest.MonkeyPatch, ci: str | None
) -> None:
    monkeypatch.setattr(network_module, "PROGRAMS", ("no-such-program",))
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    outcome = pytest.skip.Exception if ci is None else pytest.fail.Exception
    with pytest.raises(outcome, match="no-such-program is not installed"):
        allowed()


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
