"""Faults that were found and mended, each in the words of what went wrong."""

from __future__ import annotations

import gc
import http.client
import io
import os
import resource
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import gevent
import pytest
import urllib3
from faults import Fault, injected, preceded_by, raising_after
from gevent import socket
from gevent.pywsgi import WSGIServer
from peers import (
    MakeLine,
    Pairs,
    Spawn,
    connected,
    error_of,
    fill,
    pattern,
    receive,
    reset,
    run_alone,
    send_and_end,
    wait_until,
    waits_to_read,
)
from takeovers import before_and_after

import gsplice
from gsplice import _gevent, _shutdown
from gsplice._body import Body
from gsplice._chunked import ChunkedSink
from gsplice._pump import Pump


class Interrupted(Exception):
    """What a signal handler raises, between a system call and what is done with its result."""


def test_an_exception_right_after_the_splice_in_leaves_no_bytes_for_another_transfer(
    line: MakeLine,
) -> None:
    client, source, sink, _ = line()
    client.sendall(b"secret of one")
    with injected(Fault("splice", raising_after(Interrupted))):
        transfer = gsplice.Transfer(source, sink, mode="splice").start()
        with pytest.raises(Interrupted):
            transfer.get(timeout=5)
    assert (transfer.moved, transfer.undelivered) == (0, b"secret of one")
    other_client, other_source, other_sink, other_backend = line()
    send_and_end(other_client, b"of the other")
    assert gsplice.copy(other_source, other_sink, mode="splice") == 12
    assert receive(other_backend, 12) == b"of the other"


def test_an_exception_right_after_the_splice_out_counts_what_the_sink_has_got(
    line: MakeLine,
) -> None:
    client, source, sink, backend = line()
    client.sendall(b"delivered")
    with injected(Fault("splice", raising_after(Interrupted), 2)):
        transfer = gsplice.Transfer(source, sink, mode="splice").start()
        with pytest.raises(Interrupted):
            transfer.get(timeout=5)
    assert receive(backend, 9) == b"delivered"
    assert (transfer.moved, transfer.spliced, transfer.undelivered) == (9, 9, b"")


def test_an_exception_right_after_the_splice_into_a_file_leaves_the_position_behind_the_bytes(
    line: MakeLine, tmp_path: Path
) -> None:
    client, source, _, _ = line()
    client.sendall(b"written")
    with open(tmp_path / "file", "w+b") as file:
        with injected(Fault("splice", raising_after(Interrupted), 2)):
            transfer = gsplice.Transfer(source, file, mode="splice").start()
            with pytest.raises(Interrupted):
                transfer.get(timeout=5)
        assert (transfer.moved, file.tell()) == (7, 7)
        file.write(b" and more")
    assert (tmp_path / "file").read_bytes() == b"written and more"


def test_an_exception_right_after_the_splice_of_a_chunk_does_not_have_it_sent_twice(
    line: MakeLine,
) -> None:
    client, source, sink, backend = line()
    client.sendall(b"chunk")
    chunked = ChunkedSink(sink)
    with injected(Fault("splice", raising_after(Interrupted), 2)):
        transfer = gsplice.Transfer(source, chunked, mode="splice").start()
        with pytest.raises(Interrupted):
            transfer.get(timeout=5)
    chunked.end_chunk()
    sink.shutdown(socket.SHUT_WR)
    assert receive(backend) == b"5\r\nchunk\r\n"


def test_a_stop_by_a_signal_handler_right_before_the_write_hands_back_what_was_read(
    line: MakeLine,
) -> None:
    client, source, sink, _ = line("unix")
    fill(sink)
    client.sendall(b"hello")

    def handler(*_: Any) -> None:
        transfer.stop()

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        signalled = Fault("send", preceded_by(lambda: signal.raise_signal(signal.SIGUSR1)))
        with injected(signalled, sockets=[sink]):
            transfer = gsplice.Transfer(source, sink)
            transfer.start()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert signalled.reached
    assert transfer.ready()
    assert (transfer.moved, transfer.undelivered) == (0, b"hello")


@pytest.mark.parametrize("step", ["on_readable", "on_writable", "on_due"])
def test_an_engine_that_the_hub_calls_after_its_end_keeps_no_error_that_comes_then(
    line: MakeLine, step: str
) -> None:
    _, source, sink, _ = line()
    transfer = gsplice.Transfer(source, sink).start()
    transfer.stop()
    engine: Any = transfer._engine
    getattr(engine, step)()
    engine.fail(Interrupted())
    assert engine._end_is_due is None
    assert isinstance(transfer.exception, gsplice.TransferStopped)


class TimesOut:
    """An end whose methods have a `gevent.Timeout` of their own."""

    def recv(self, limit: int) -> bytes:
        raise gevent.Timeout

    def sendall(self, data: bytes) -> None:
        raise AssertionError("nothing is sent here")


def test_a_direction_that_ends_with_a_base_exception_ends_the_relay(pairs: Pairs) -> None:
    _, b = pairs()
    with pytest.raises(gevent.Timeout), gevent.Timeout(5, AssertionError("it hangs")):
        gsplice.relay(TimesOut(), b)


def test_a_sink_that_stops_its_own_transfer_is_given_nothing_more(pairs: Pairs) -> None:
    client, source = pairs()
    taken = []

    class Sink:
        def write(self, data: bytes) -> None:
            taken.append(bytes(data))
            transfer.stop()

    before = gsplice.stats().copied
    send_and_end(client, pattern(300_000))
    transfer = gsplice.Transfer(source, Sink()).start()
    with pytest.raises(gsplice.TransferStopped):
        transfer.get(timeout=5)
    gevent.idle()
    left = receive(source)
    assert b"".join(taken) + transfer.undelivered[transfer.moved :] + left == pattern(300_000)
    assert len(taken) == 1
    assert gsplice.stats().copied - before == transfer.moved == len(taken[0])


def read_often(line: MakeLine) -> None:
    client, source, sink, backend = line()
    transfer = gsplice.Transfer(source, sink).start()
    for number in range(100):
        client.sendall(message := pattern(100, number))
        assert receive(backend, 100) == message
    client.shutdown(socket.SHUT_WR)
    transfer.get(timeout=5)


def failed_relay(line: MakeLine) -> None:
    client, source, sink, _ = line()
    reset(client)
    with pytest.raises(ConnectionResetError):
        gsplice.relay(source, sink)


def failed_copy(line: MakeLine) -> None:
    client, source, sink, _ = line()
    reset(client)
    with pytest.raises(ConnectionResetError):
        gsplice.copy(source, sink)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"


def copied_body(line: MakeLine) -> None:
    client, source, sink, backend = line()
    client.sendall(HEAD + pattern(100_000))
    response = http.client.HTTPResponse(source)
    response.begin()
    transfer = gsplice.Transfer(response, sink).start()
    assert receive(backend, 100_000) == pattern(100_000)
    client.sendall(pattern(100_000))
    assert receive(backend, 100_000) == pattern(100_000)
    assert transfer.get(timeout=5) == 200_000


def failed_body(line: MakeLine) -> None:
    client, source, sink, _ = line()
    client.sendall(HEAD + pattern(100_000))
    response = http.client.HTTPResponse(source)
    response.begin()
    body = urllib3.HTTPResponse(response, preload_content=False, decode_content=False)
    reset(client)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        gsplice.copy(body, sink)


def transfers() -> int:
    kinds = (gsplice.Transfer, gsplice.Relay, Pump, Body, http.client.HTTPResponse)
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


@pytest.mark.parametrize("use", [read_often, failed_relay, failed_copy, copied_body, failed_body])
def test_a_transfer_that_is_over_goes_without_the_garbage_collector(
    line: MakeLine, use: Callable[[MakeLine], None]
) -> None:
    gc.collect()
    before = transfers()
    gc.disable()
    try:
        use(line)
        # In the next passes gevent is done with waking us, and lets go of what woke us.
        wait_until(lambda: transfers() <= before)
    finally:
        gc.enable()


def test_the_figures_can_be_asked_for_in_a_signal_handler(line: MakeLine) -> None:
    _, source, sink, _ = line()
    seen: list[gsplice.Stats] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: seen.append(gsplice.stats()))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(200):
            gsplice.Transfer(source, sink).start().stop()
        wait_until(lambda: seen)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_recv_into_that_has_nothing_yet_is_not_taken_for_zeros(pairs: Pairs) -> None:
    class NotYet:
        def recv_into(self, buffer: bytearray) -> None:
            return None

    _, sink = pairs()
    with pytest.raises(BlockingIOError, match="non-blocking"):
        gsplice.copy(NotYet(), sink)


def test_what_cannot_even_begin_has_ended_with_what_is_raised(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        transfer = gsplice.Transfer(io.BytesIO(b"nowhere"), file)
    with pytest.raises(ValueError, match="closed file") as raised:
        transfer.run()
    assert transfer.exception is raised.value


def test_get_nowait_says_whether_it_has_ended(line: MakeLine) -> None:
    client, source, sink, _ = line()
    transfer = gsplice.Transfer(source, sink).start()
    with pytest.raises(gevent.Timeout):
        transfer.get_nowait()
    send_and_end(client, b"all")
    wait_until(transfer.ready)
    assert transfer.get_nowait() == 3


def fails_without_fds() -> None:
    """End a transfer with an error while no fd is left (for the test below)."""
    client, source = connected()
    sink, backend = connected()
    transfer = gsplice.Transfer(source, sink).start()
    reset(client)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most))
    gevent.sleep(0.05)  # not wait_until, which says what is wrong with the help of files
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert isinstance(transfer.exception, ConnectionResetError)
    for sock in (source, sink, backend):
        sock.close()


def test_the_first_error_is_told_where_no_fd_is_left() -> None:
    run_alone(fails_without_fds)


def test_an_end_of_file_passed_on_over_tls_throws_away_nothing_that_was_read_ahead(
    line: MakeLine,
) -> None:
    client, a, b, backend = line("tcp", "tls")
    backend.sendall(b"head and body")
    assert b.recv(5) == b"head "  # the rest of the record is in the session by now
    client.shutdown(socket.SHUT_WR)
    relay = gsplice.Relay(a, b).start()
    assert receive(client, 8) == b"and body"
    backend.suppress_ragged_eofs = False  # an end without a close_notify is an error
    assert receive(backend) == b""
    backend.close()
    assert relay.get(timeout=5) == (0, 8)


def test_the_end_of_tls_is_told_once_the_rest_of_a_record_is_read_however_late_who_reads_begins(
    pairs: Pairs, spawn: Spawn
) -> None:
    near, far = pairs("tls")
    far.sendall(b"head and body")
    assert near.recv(5) == b"head "

    def read_the_rest() -> bytes:
        for _ in range(3):
            _gevent.let_loop_pass()
        return receive(near, 8)

    reading = spawn(read_the_rest)
    _shutdown.half_close(near)
    assert reading.get(timeout=5) == b"and body"
    far.suppress_ragged_eofs = False  # an end without a close_notify is an error
    assert receive(far) == b""


def test_where_nobody_reads_the_rest_of_a_record_the_end_of_tcp_is_told_and_nothing_thrown_away(
    pairs: Pairs,
) -> None:
    near, far = pairs("tls")
    far.sendall(b"head and body")
    assert near.recv(5) == b"head "
    _shutdown.half_close(near)
    far.suppress_ragged_eofs = False
    with pytest.raises(ssl.SSLEOFError):
        receive(far)
    assert receive(near, 8) == b"and body"


def test_a_transfer_stopped_before_its_caller_runs_it_is_over(line: MakeLine) -> None:
    _, source, _, _ = line()
    transfer = gsplice.Transfer(source, io.BytesIO())
    transfer.stop()
    with pytest.raises(gsplice.TransferStopped):
        transfer.run()
    assert gsplice.stats().active == 0


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_stop_by_another_greenlet_gets_a_caller_out_of_the_methods(
    line: MakeLine, spawn: Spawn, kind: str
) -> None:
    client, source, _, _ = line(kind)
    transfer = gsplice.Transfer(source, io.BytesIO())
    running = spawn(error_of, transfer.run)
    wait_until(lambda: waits_to_read(source))
    transfer.stop()
    assert not waits_to_read(source)
    assert isinstance(running.get(timeout=5), gsplice.TransferStopped)
    client.sendall(b"hello")
    assert receive(source, 5) == b"hello", "the source is free for others at once"


def test_a_transfer_that_runs_already_is_waited_for_and_not_run_twice(
    line: MakeLine, spawn: Spawn
) -> None:
    client, source, _, _ = line()
    sink = io.BytesIO()
    transfer = gsplice.Transfer(source, sink).start()
    wait_until(lambda: waits_to_read(source))
    running = spawn(transfer.run)
    gevent.sleep(0)
    send_and_end(client, b"hello")
    assert running.get(timeout=5) == 5
    assert sink.getvalue() == b"hello"


@pytest.mark.parametrize("length", ["10", None], ids=["with-length", "chunked"])
def test_a_wrapper_that_gives_text_has_the_head_sent_before_the_server_fails_at_it(
    length: str | None, hub_errors: list[Any]
) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        headers = [("Content-Length", length)] if length else []
        start_response("200 OK", [("Date", "today"), *headers])
        return FileWrapper(io.StringIO("x" * 10))

    def scenario() -> bytes:
        server = WSGIServer(("127.0.0.1", 0), application, log=None)
        server.start()
        with socket.create_connection(server.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = receive(client)
        server.stop()
        return answer

    assert before_and_after(scenario).startswith(b"HTTP/1.1 200 OK\r\n")
    assert {type(error) for _, error in hub_errors} == {TypeError}
    hub_errors.clear()
