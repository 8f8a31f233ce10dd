"""The peers of a transfer: connected sockets, TLS on them, and bytes that cannot be confused.

Everything here is real: a test double appears only where a test injects a fault.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import io
import os
import random
import select
import ssl as standard_ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import gevent
import gevent.hub
import pytest
from gevent import socket, ssl

import gsplice
from gsplice import _hub

if TYPE_CHECKING:
    import trustme

KINDS = ("tcp", "tcp6", "unix")
MODES = ("auto", "splice", "copy")

#: Seconds that any one condition may take to come true, on a busy machine.
PATIENCE = 10.0
#: More than any socket of these tests, its peer and a pipe hold together.
MORE_THAN_BUFFERS = 12 * 1024 * 1024

Pair: TypeAlias = tuple[socket.socket, socket.socket]


class Line(NamedTuple):
    """What a transfer stands between: bytes go from *client* to *backend*."""

    client: socket.socket
    source: socket.socket
    sink: socket.socket
    backend: socket.socket


# What the fixtures of these names give to a test.
Pairs: TypeAlias = Callable[..., Pair]
MakeLine: TypeAlias = Callable[..., Line]
Spawn: TypeAlias = Callable[..., "gevent.Greenlet[..., Any]"]


def connected(kind: str = "tcp", buffers: int | None = None) -> Pair:
    """Return both ends of a new connection over loopback.

    :param buffers: bytes for the kernel to keep at each end, in each direction.
    """
    if kind == "unix":
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for sock in pair:
            set_buffers(sock, buffers)
        return pair
    host, family = ("::1", socket.AF_INET6) if kind == "tcp6" else ("127.0.0.1", socket.AF_INET)
    near = socket.socket(family)
    with listening(host, family) as listener:
        for sock in (near, listener):  # which gives its own to what it accepts
            set_buffers(sock, buffers)
        near.connect(listener.getsockname()[:2])
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def set_buffers(sock: socket.socket, size: int | None) -> None:
    """Have the kernel keep *size* bytes for *sock* in each direction, or as many as it likes."""
    if size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def listening(host: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
    """Return a socket that listens on a port of its own."""
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen()
    return listener


@functools.lru_cache(maxsize=32)
def pattern(length: int, key: int = 0) -> bytes:
    """Return *length* bytes that occur in the stream *key* and in no other."""
    return random.Random(key).randbytes(length)


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Let the hub run until *condition* is true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds:g} s it is still not so: {condition}")
        gevent.sleep(0.001)
    return result


def receive_until_reset(sock: Any) -> bytes:
    """Receive what comes before a reset, which must be what ends it."""
    data = bytearray()
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        return bytes(data)
    pytest.fail(f"an end of file after {len(data)} bytes, and no reset")


def receive(sock: Any, count: int | None = None) -> bytes:
    """Receive *count* bytes, or all that come before the end of file."""
    data = bytearray()
    while count is None or len(data) < count:
        piece = sock.recv(65536 if count is None else min(65536, count - len(data)))
        if not piece:
            break
        data += piece
    return bytes(data)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    """Send all of *data*, and the end of file behind it."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def send_script(sock: socket.socket, script: tuple[bytes, ...]) -> None:
    """Send the parts of *script* with an urgent byte between each two, and the end."""
    for number, part in enumerate(script):
        if number:
            sock.send(b"!", socket.MSG_OOB)
        if part:
            sock.sendall(part)
    sock.shutdown(socket.SHUT_WR)


def send_back(sock: socket.socket, _: Any) -> None:
    """Serve an echo, as a handler of a StreamServer."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def quietly(handle: Callable[..., None]) -> Callable[..., None]:
    """Serve a client that may go away at any moment."""

    def served(sock: socket.socket, address: object) -> None:
        try:
            handle(sock, address)
        except OSError as error:
            # The last one is what `shutdown` says after a reset; Python has no class for it.
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                raise

    return served


def echoed(sock: socket.socket, data: bytes) -> bytes:
    """Return what comes back, up to the end of file, after *data* and an end of file were sent."""
    sender = gevent.spawn(send_and_end, sock, data)
    received = receive(sock)
    sender.get()
    return received


def exchange(sock: socket.socket, message: bytes = b"hello") -> None:
    """Make sure that *sock* is served, and stays so."""
    sock.sendall(message)
    assert receive(sock, len(message)) == message


def reset(sock: socket.socket) -> None:
    """Close *sock* so that its peer gets a RST instead of an end of file."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def small_buffers(sock: socket.socket) -> None:
    """Have the kernel keep as little as it can for *sock*, in each direction."""
    set_buffers(sock, 4096)


def is_stream(transfer: Any) -> bool:
    """Return whether *transfer*, or one leg of a relay, takes its source for a stream now."""
    return ticks_of(transfer) is not None


def ticks_of(transfer: Any) -> Any:
    """Return what *transfer*, or one leg of a relay, is called by; None where it is no stream."""
    moderation = getattr(transfer._engine, "_moderation", None)  # only sockets are moderated
    return moderation and moderation._ticks


def fill(sock: socket.socket) -> int:
    """Send to *sock* until the kernel takes no more; return how much that was."""
    sent = 0
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        while True:
            sent += sock.send(b"\0" * 65536)
    except BlockingIOError:
        return sent
    finally:
        sock.settimeout(timeout)


def stall(ends: Line, spawn: Spawn) -> None:
    """Have the source send more than everything behind it can hold, to nobody who reads."""
    spawn(ends.client.sendall, bytes(MORE_THAN_BUFFERS))


def waits_to_read(sock: socket.socket) -> bool:
    """Whether something waits for *sock* to be readable."""
    return bool(sock._read_event is not None and sock._read_event.active)


def waits_to_write(sock: socket.socket) -> bool:
    """Whether something waits for *sock* to be writable."""
    return bool(sock._write_event is not None and sock._write_event.active)


def wait_until_it_waits(ends: Line, has_stalled: bool) -> None:
    """Wait until a transfer waits for the source; for the sink, if it *has_stalled*."""
    if has_stalled:
        wait_until(lambda: waits_to_write(ends.sink))
    else:
        wait_until(lambda: waits_to_read(ends.source))


def poll(sock: socket.socket) -> int:
    """Return the events (``select.POLLIN`` and so on) that *sock* has now; it keeps them all."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    events = poller.poll(0)
    return events[0][1] if events else 0


def is_readable(sock: socket.socket) -> bool:
    """Whether *sock* has bytes, an end of file or an error to give, now."""
    return bool(poll(sock) & (select.POLLIN | select.POLLERR))


def peeked(sock: socket.socket) -> bytes:
    """Return what *sock* has received and nobody has read; it stays there."""
    return sock.recv(1 << 20, socket.MSG_PEEK) if is_readable(sock) else b""


def decoded(wire: bytes) -> bytes:
    """Return the body that *wire* is the chunked coding of; nothing may be left over."""
    body, rest = bytearray(), io.BytesIO(wire)
    while size := int(rest.readline(), 16):
        body += rest.read(size)
        assert rest.read(2) == b"\r\n"
    assert rest.read() == b"\r\n"
    return bytes(body)


def plain_loop(source: Any, sink: Any) -> int:
    """Do what gsplice stands in for; it says what the bytes and the errors have to be."""
    moved = 0
    while data := source.recv(65536):
        sink.sendall(data)
        moved += len(data)
    return moved


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception | None:
    """Return what *function* raises, None if nothing."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    return None


def assert_below(bound: float, measure: Callable[[], float], attempts: int = 5) -> None:
    """Check that what *measure* gives is less than *bound*, in one of some *attempts*.

    The machine's other work can make it more in an attempt, and does so in few. A fault makes it
    more in all of them.
    """
    measured: list[float] = []
    for _ in range(attempts):
        measured.append(measure())
        if measured[-1] < bound:
            return
    raise AssertionError(f"never less than {bound:g}, but {measured}")


def cpu_time_of_waiting(seconds: float) -> float:
    """Return the seconds of CPU time that this process takes while nothing is asked of it."""
    before = time.process_time()
    gevent.sleep(seconds)  # what it costs to wait is what is looked at
    return time.process_time() - before


def open_fds() -> dict[int, str]:
    """Return what each fd of this process stands for."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def leaked_fds(before: dict[int, str]) -> dict[int, str]:
    """Return the fds opened since *before*, once what is being closed has been closed."""
    deadline = time.monotonic() + 2.0
    while True:
        gevent.sleep(0)  # libuv closes an fd in the iteration after
        _hub.resources().pipes.close()
        leaked = dict(open_fds().items() - before.items())
        if not leaked or time.monotonic() > deadline:
            return leaked
        gc.collect()
        gevent.sleep(0.01)


@contextlib.contextmanager
def errors_of_hub() -> Iterator[list[Any]]:
    """Keep what goes to the hub because nobody else has seen it: (context, error)."""
    errors: list[Any] = []
    original = gevent.hub.Hub.handle_error

    def handle_error(self: Any, context: Any, kind: Any, value: Any, trace: Any) -> None:
        if not issubclass(kind, self.NOT_ERROR):
            errors.append((context, value))
        original(self, context, kind, value, trace)

    gevent.hub.Hub.handle_error = handle_error
    try:
        yield errors
    finally:
        gevent.hub.Hub.handle_error = original


def segments_received(sock: socket.socket) -> int:
    """Return in how many segments the bytes came that *sock* has received (tcpi_data_segs_in)."""
    count = struct.Struct("152xI")  # of struct tcp_info, linux/tcp.h
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, count.size)
    return int(count.unpack(information)[0])


def run_alone(function: Callable[[], None], path: Path | None = None, **environment: str) -> str:
    """Run *function* of a test module in an interpreter of its own; return what it printed.

    :param path: a directory to import from before all others.
    """
    roots = (path, Path(__file__).parent, Path(gsplice.__file__).parents[1])
    search = os.pathsep.join(str(root) for root in roots if root)
    module, name = function.__module__, function.__qualname__
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.{name}()"],
        env={**os.environ, "PYTHONPATH": search, "PYTHONWARNINGS": "error", **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@functools.lru_cache(maxsize=1)
def _authority() -> trustme.CA:
    import trustme  # late, as it takes long, and most of the processes that tests start do without

    return trustme.CA()


@functools.lru_cache(maxsize=1)
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts for a client and a server that trust each other."""
    client = ssl.SSLContext(standard_ssl.PROTOCOL_TLS_CLIENT)
    server = ssl.SSLContext(standard_ssl.PROTOCOL_TLS_SERVER)
    _authority().configure_trust(client)
    _authority().issue_cert("localhost").configure_cert(server)
    return client, server


def connected_tls(buffers: int | None = None) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return both ends of a new TLS session over TCP: the client's, and the server's."""
    near, far = connected("tcp", buffers)
    client, server = tls_contexts()
    accepting = gevent.spawn(server.wrap_socket, far, server_side=True)
    near = client.wrap_socket(near, server_hostname="localhost")
    return near, accepting.get(timeout=PATIENCE)
