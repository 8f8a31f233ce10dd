"""Promise 9: what `patch_all` replaces, how it comes back, and what goes on as before."""

from __future__ import annotations

import http.client
import inspect
import os
import shutil
import socket as standard_socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import monkey, pywsgi, socket, ssl
from peers import (
    MakeLine,
    Pairs,
    Spawn,
    error_of,
    poll,
    receive,
    run_alone,
    send_and_end,
    wait_until,
)
from untouched import DATA, Outcome, before_and_after, outcome, patched

import gsplice

# What is replaced, and how it comes back.

OWNERS: tuple[Any, ...] = (
    socket.socket,
    ssl.SSLSocket,
    shutil,
    http.client.HTTPConnection,
    http.client.HTTPResponse,
    pywsgi.WSGIHandler,
    pywsgi.WSGIServer,
)


def attributes() -> list[dict[str, Any]]:
    return [dict(vars(owner)) for owner in OWNERS]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    return all(
        one.keys() == other.keys() and all(one[name] is other[name] for name in one)
        for one, other in zip(before, after, strict=True)
    )


def test_importing_gsplice_replaces_nothing() -> None:
    run_alone(import_and_look)


def import_and_look() -> None:
    """See that an import alone changes nothing (for the test above)."""
    # The module has imported gsplice already; gevent's own are what their code says they are.
    for name in ("sendall", "sendfile"):
        assert getattr(socket.socket, name).__module__.startswith("gevent.")
    assert not gsplice.is_patched("socket")


def test_unpatch_brings_back_every_original_by_identity() -> None:
    before = attributes()
    gsplice.patch_all()
    assert not same(before, attributes())
    gsplice.unpatch_all()
    assert same(before, attributes())
    gsplice.unpatch_all()
    assert same(before, attributes()), "a second one does nothing"


def test_patching_twice_is_as_patching_once() -> None:
    before = attributes()
    gsplice.patch_all()
    once = attributes()
    gsplice.patch_all()
    gsplice.patch_socket()
    assert same(once, attributes())
    gsplice.unpatch_all()
    assert same(before, attributes())


def test_patches_add_up() -> None:
    before = attributes()
    gsplice.patch_all(socket=False)
    assert not gsplice.is_patched("socket")
    gsplice.patch_socket()
    assert gsplice.is_patched("socket")
    gsplice.patch_all(socket=False)
    assert gsplice.is_patched("socket"), "false means: leave it as it is"
    gsplice.unpatch_all()
    assert not gsplice.is_patched("socket")
    assert same(before, attributes())


def test_is_patched_knows_its_words() -> None:
    assert gsplice.is_patched("socket") is False
    for bad in ("sockets", "", None, ["http"]):
        with pytest.raises(ValueError, match="socket"):
            gsplice.is_patched(bad)  # type: ignore[arg-type]


def test_what_is_replaced_looks_like_what_it_replaces() -> None:
    originals = {name: getattr(socket.socket, name) for name in ("sendall", "sendfile")}
    with patched():
        for name, original in originals.items():
            new = getattr(socket.socket, name)
            assert new is not original
            assert new.__name__ == original.__name__
            assert new.__doc__ == original.__doc__
            assert inspect.signature(new) == inspect.signature(original)


def test_sockets_made_before_are_taken_over_too(line: MakeLine) -> None:
    client, source, sink, backend = line()
    send_and_end(client, b"hello")
    with patched():
        sink.sendall(source)
    assert receive(backend, 5) == b"hello"


def check_patched_program() -> None:
    """Send a source with ``socket.socket.sendall`` in a monkey-patched program."""
    assert standard_socket.socket is socket.socket
    client, source = standard_socket.socketpair()
    sink, backend = standard_socket.socketpair()
    with client, source, sink, backend:
        send_and_end(client, b"hello")
        sink.sendall(source)
        assert receive(backend, 5) == b"hello"
    gsplice.unpatch_all()
    assert not gsplice.is_patched("socket")
    assert standard_socket.socket is socket.socket


def patch_before_monkey() -> None:
    """Be turned on first (for the test below)."""
    gsplice.patch_all()
    monkey.patch_all()
    check_patched_program()


def patch_after_monkey() -> None:
    """Be turned on last (for the test below)."""
    monkey.patch_all()
    gsplice.patch_all()
    check_patched_program()


@pytest.mark.parametrize("program", [patch_before_monkey, patch_after_monkey])
def test_order_of_monkey_patching_does_not_matter(program: Callable[[], None]) -> None:
    run_alone(program)


def patch_and_list_modules() -> None:
    """Say what `patch_all` imports (for the test below)."""
    before = set(sys.modules)
    gsplice.patch_all()
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not loaded & {"gunicorn", "urllib3", "requests"}, loaded


def test_patching_imports_no_package_that_is_not_loaded() -> None:
    run_alone(patch_and_list_modules)


# The rest of gevent goes on as before.


def test_servers_of_gevent_go_on(tmp_path: Path) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello, ", environ["wsgi.input"].read()]

    with patched():
        server = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None)
        server.start()
        try:
            with socket.create_connection(server.address) as client:
                client.sendall(b"POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 5\r\n\r\nworld")
                assert receive(client).endswith(b"\r\n\r\nhello, world")
        finally:
            server.stop()


def test_close_and_kill_in_the_middle_of_a_patched_sendall(pairs: Pairs, spawn: Spawn) -> None:
    def scenario() -> Outcome:
        results = []
        for strike in ("close", "kill", "shutdown"):
            sink, backend = pairs()
            sending = spawn(outcome, lambda sink=sink: sink.sendall(bytes(8_000_000)))
            wait_until(lambda sink=sink: sink._write_event.active)
            if strike == "close":
                sink.close()
            elif strike == "shutdown":
                sink.shutdown(socket.SHUT_RDWR)
            else:
                sending.kill(block=False)
            value = sending.get()
            results.append(type(value) if strike == "kill" else value[:3])
            backend.close()
        return tuple(results)

    before, after = before_and_after(scenario)
    assert after == before


def test_unread_source_of_a_broken_sink_raises_as_sendall_does(line: MakeLine) -> None:
    client, source, sink, backend = line("unix")
    send_and_end(client, b"hello")
    backend.close()
    assert poll(sink)
    with patched():
        assert isinstance(error_of(sink.sendall, source), BrokenPipeError)


def test_forwarder_of_one_line(line: MakeLine, spawn: Spawn) -> None:
    client, a, b, backend = line()
    with patched():
        forwarding = [spawn(b.sendall, a), spawn(a.sendall, b)]
        send_and_end(client, DATA)
        assert receive(backend, len(DATA)) == DATA
        send_and_end(backend, b"answer")
        assert receive(client, 6) == b"answer"
        gevent.joinall(forwarding, raise_error=True)


def test_fd_of_a_source_stays_open(line: MakeLine) -> None:
    client, source, sink, _ = line()
    send_and_end(client, b"hello")
    with patched():
        sink.sendall(source)
    os.fstat(source.fileno())
    os.fstat(sink.fileno())
