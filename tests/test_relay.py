"""`relay`: both directions, and how each end of file gets through."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

import gevent
import pytest
from gevent import socket, ssl
from gevent.event import Event
from peers import (
    MODES,
    MORE_THAN_BUFFERS,
    MakeLine,
    Spawn,
    is_readable,
    pattern,
    peeked,
    poll,
    receive,
    reset,
    send_and_end,
    wait_until,
    waits_to_write,
)

import gsplice

KINDS = [
    ("tcp", "tcp"),
    ("tcp6", "unix"),
    ("unix", "tcp"),
    ("tls", "tcp"),
    ("tcp", "tls"),
    ("tls", "tls"),
]
each_kind = pytest.mark.parametrize("kinds", KINDS, ids="-".join)
each_mode = pytest.mark.parametrize("mode", MODES)


@each_kind
@each_mode
def test_both_directions_at_once(
    line: MakeLine, spawn: Spawn, mode: str, kinds: tuple[str, str]
) -> None:
    client, a, b, backend = line(*kinds)
    relaying = spawn(gsplice.relay, a, b, mode=mode)
    up, down = pattern(1_500_001, 1), pattern(900_007, 2)
    spawn(client.sendall, up)
    spawn(backend.sendall, down)
    got_up, got_down = spawn(receive, backend, len(up)), spawn(receive, client, len(down))
    assert got_up.get() == up
    assert got_down.get() == down
    client.close()
    backend.close()
    result = relaying.get()
    assert result == gsplice.RelayResult(sent=len(up), received=len(down))


@each_kind
@each_mode
@pytest.mark.parametrize("first", ["client", "backend"])
def test_half_close_passes_on_one_end_while_the_other_goes_on(
    line: MakeLine, spawn: Spawn, first: str, mode: str, kinds: tuple[str, str]
) -> None:
    client, a, b, backend = line(*kinds)
    relaying = spawn(gsplice.relay, a, b, mode=mode)
    here, there = (client, backend) if first == "client" else (backend, client)
    question, answer = pattern(400_000, 3), pattern(800_000, 4)

    spawn(half_close, here, question)
    assert receive(there) == question, "all of it, and then the end"
    assert not relaying.ready()
    spawn(half_close, there, answer)
    assert receive(here) == answer

    sent, received = relaying.get()
    expected = (len(question), len(answer)) if first == "client" else (len(answer), len(question))
    assert (sent, received) == expected
    assert a.fileno() >= 0
    assert b.fileno() >= 0


def half_close(sock: socket.socket, data: bytes) -> None:
    """Send all of *data* and the end of file; *sock* can still be read from."""
    sock.sendall(data)
    if isinstance(sock, ssl.SSLSocket):
        with contextlib.suppress(ssl.SSLWantReadError):  # for the peer's own end
            sock._sslobj.shutdown()  # SSLSocket.shutdown() would drop the session
    else:
        sock.shutdown(socket.SHUT_WR)


@each_mode
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_end_of_file_comes_behind_every_byte_though_the_sink_stalled(
    line: MakeLine, spawn: Spawn, kind: str, mode: str
) -> None:
    client, a, b, backend = line(kind)
    relay = gsplice.Relay(a, b, mode=mode).start()
    data = pattern(MORE_THAN_BUFFERS)
    sending = spawn(send_and_end, client, data)
    wait_until(lambda: waits_to_write(b))
    assert receive(backend) == data
    sending.get()
    assert not relay.ready()
    backend.shutdown(socket.SHUT_WR)
    assert relay.get() == (len(data), 0)


@each_mode
def test_nothing_at_all(line: MakeLine, mode: str) -> None:
    client, a, b, backend = line()
    for sock in (client, backend):
        sock.shutdown(socket.SHUT_WR)
    assert gsplice.relay(a, b, mode=mode) == (0, 0)
    assert receive(client) == b""
    assert receive(backend) == b""


@each_mode
def test_ends_one_after_the_other_before_it_begins(line: MakeLine, mode: str) -> None:
    client, a, b, backend = line()
    send_and_end(client, b"up")
    send_and_end(backend, b"down")
    assert gsplice.relay(a, b, mode=mode) == (2, 4)
    assert receive(client) == b"down"
    assert receive(backend) == b"up"


@each_mode
@pytest.mark.parametrize("who", ["client", "backend"])
def test_reset_of_one_side_ends_both_directions(
    line: MakeLine, spawn: Spawn, who: str, mode: str
) -> None:
    client, a, b, backend = line()
    relay = gsplice.Relay(a, b, mode=mode).start()
    client.sendall(b"hello")
    assert receive(backend, 5) == b"hello"
    reset(client if who == "client" else backend)
    with pytest.raises(ConnectionResetError):
        relay.get(timeout=5)
    assert relay.up.ready()
    assert relay.down.ready()
    other = backend if who == "client" else client
    assert peeked(other) == b"", "an error is not passed on as an end of file"
    assert not poll(other) & 0x2000
    assert a.fileno() >= 0
    assert b.fileno() >= 0


@each_mode
def test_write_error_in_one_direction_keeps_the_bytes_of_the_other(
    line: MakeLine, spawn: Spawn, mode: str
) -> None:
    client, a, b, backend = line("unix")
    relay = gsplice.Relay(a, b, mode=mode).start()
    data = pattern(MORE_THAN_BUFFERS)
    sending = spawn(backend.sendall, data)
    wait_until(lambda: waits_to_write(a))
    b.shutdown(socket.SHUT_WR)
    client.sendall(b"hello")
    with pytest.raises(BrokenPipeError):
        relay.get(timeout=5)
    assert relay.up.undelivered == b"hello"
    leg = relay.down
    rest = receive(b, len(data) - leg.moved - len(leg.undelivered))
    sending.get()
    assert receive(client, leg.moved) + leg.undelivered + rest == data


def test_result_is_named() -> None:
    result = gsplice.RelayResult(1, 2)
    assert (result.sent, result.received) == (1, 2)
    assert result == (1, 2)
    assert gsplice.RelayResult._fields == ("sent", "received")


def test_up_is_from_a_to_b_and_down_is_back(line: MakeLine) -> None:
    client, a, b, backend = line()
    relay = gsplice.Relay(a, b).start()
    client.sendall(b"up")
    assert receive(backend, 2) == b"up"
    backend.sendall(b"down!")
    assert receive(client, 5) == b"down!"
    assert (relay.up.moved, relay.down.moved, relay.moved) == (2, 5, 7)
    client.shutdown(socket.SHUT_WR)
    assert relay.up.get(timeout=5) == 2
    assert not relay.ready()
    backend.shutdown(socket.SHUT_WR)
    assert relay.get(timeout=5) == (2, 5)
    assert relay.down.get() == 5


@each_mode
def test_a_reader_as_an_end_gives_what_it_has_buffered_first(
    line: MakeLine, spawn: Spawn, mode: str
) -> None:
    client, a, b, backend = line()
    with a.makefile("rb") as reader_of_a, b.makefile("rb") as reader_of_b:
        client.sendall(b"head\nearly")
        backend.sendall(b"answer\nearlier")
        assert (reader_of_a.readline(), reader_of_b.readline()) == (b"head\n", b"answer\n")
        relaying = spawn(gsplice.relay, reader_of_a, reader_of_b, mode=mode)
        assert (receive(backend, 5), receive(client, 7)) == (b"early", b"earlier")
        spawn(send_and_end, client, b"more")
        spawn(send_and_end, backend, b"and more")
        assert (receive(backend), receive(client)) == (b"more", b"and more")
        assert relaying.get() == (9, 15)


@each_mode
def test_copy_of_a_socket_to_itself_is_an_echo(line: MakeLine, spawn: Spawn, mode: str) -> None:
    client, source, _, _ = line()
    data = pattern(700_000)
    spawn(send_and_end, client, data)
    received = spawn(receive, client, len(data))
    assert gsplice.copy(source, source, mode=mode) == len(data)
    assert received.get() == data


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_relay_leaves_no_greenlet_or_watcher_behind(line: MakeLine, kind: str) -> None:
    def greenlets() -> int:
        gc.collect()
        return sum(isinstance(thing, gevent.Greenlet) for thing in gc.get_objects())

    client, a, b, backend = line(kind)
    before = greenlets()
    relay = gsplice.Relay(a, b, idle_timeout=60).start()
    client.sendall(b"hello")
    assert receive(backend, 5) == b"hello"
    if kind == "tcp":
        assert greenlets() == before, "in callbacks on the hub, in no greenlet"
    relay.stop()
    wait_until(lambda: greenlets() == before)
    assert not any(sock._read_event.active or sock._write_event.active for sock in (a, b))


@each_mode
def test_spliced_share(line: MakeLine, spawn: Spawn, mode: str) -> None:
    client, a, b, backend = line()
    relay = gsplice.Relay(a, b, mode=mode).start()
    spawn(client.sendall, pattern(2_000_000))
    receive(backend, 2_000_000)
    backend.sendall(b"a short answer")
    assert receive(client, 14) == b"a short answer"
    assert (relay.up.spliced > 1_000_000) is (mode != "copy")
    assert (relay.down.spliced > 0) is (mode == "splice")
    assert relay.spliced == relay.up.spliced + relay.down.spliced
    relay.stop()


class Ear:
    """An end that is no socket: it hears everything, and says nothing until it has."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._all_heard = Event()
        self.heard = b""

    def sendall(self, data: bytes | memoryview) -> None:
        self.heard += data
        if len(self.heard) == self._expected:
            self._all_heard.set()

    def recv(self, limit: int) -> bytes:
        self._all_heard.wait()
        return b""


def test_an_end_that_is_no_socket_needs_no_word_of_the_end_of_file(
    line: MakeLine, spawn: Spawn
) -> None:
    client, a, _, _ = line()
    data = pattern(300_000)
    spawn(send_and_end, client, data)
    ear = Ear(len(data))
    assert gsplice.relay(a, ear) == (len(data), 0)
    assert ear.heard == data
    assert receive(client) == b"", "the end that it has met goes the other way"


def test_a_tls_socket_whose_session_has_ended_is_ended_as_a_plain_one(
    line: MakeLine, spawn: Spawn
) -> None:
    client, a, b, backend = line("tcp", "tls")
    unwrapping = spawn(backend.unwrap)
    b.unwrap()
    plain = unwrapping.get()
    spawn(send_and_end, client, b"no secret")
    relaying = spawn(gsplice.relay, a, b)
    assert receive(plain) == b"no secret"
    plain.close()
    assert relaying.get() == (9, 0)


def test_at_the_fd_limit_the_end_of_tls_is_told_by_the_end_of_the_stream_alone(
    line: MakeLine, spawn: Spawn, no_fd_left: Callable[[], None]
) -> None:
    client, a, b, backend = line("tcp", "tls")
    relay = gsplice.Relay(a, b).start()
    client.sendall(b"hello")
    assert receive(backend, 5) == b"hello"
    no_fd_left()
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: is_readable(backend))
    backend.sendall(b"still here")
    assert receive(client, 10) == b"still here"
    backend.suppress_ragged_eofs = False
    with pytest.raises(ssl.SSLEOFError):
        backend.recv(1)
    relay.stop()


@each_mode
def test_when_both_sides_have_gone_each_direction_keeps_what_it_had_taken(
    line: MakeLine, mode: str
) -> None:
    client, a, b, backend = line()
    relay = gsplice.Relay(a, b, mode=mode).start()
    client.sendall(b"request")
    backend.sendall(b"answer")
    reset(client)
    reset(backend)
    with pytest.raises(ConnectionResetError):
        relay.get(timeout=5)
    assert (relay.up.undelivered, relay.down.undelivered) == (b"request", b"answer")
    assert relay.moved == 0
