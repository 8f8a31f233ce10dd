"""A connection that is forwarded: an exchange of a few small messages, then a relay."""

from __future__ import annotations

import _socket
import errno
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from forks import in_child
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from peers import (
    Line,
    connected,
    errors_of_hub,
    exchange,
    fill,
    is_readable,
    leaked_fds,
    listening,
    open_fds,
    pattern,
    receive,
    reset,
    run_alone,
    small_buffers,
    wait_until,
)
from races import before_method

import gsplice
from gsplice import _forwarding, _gevent, _hub
from gsplice._direction import TransferStopped
from gsplice._forwarding import Forwarding
from gsplice._forwarding import _Way as Way
from gsplice._gevent import LeanSocket
from gsplice.server import ForwardServer

OPTIONS: dict[str, Any] = {"idle_timeout": None, "mode": "auto", "moderation": 0.001}


def lean(sock: socket.socket) -> LeanSocket:
    """Return the same connection as a socket such as a server's are."""
    raw = _socket.socket(fileno=sock.detach())
    raw.setblocking(False)
    return LeanSocket.over(raw)


class Forwarded:
    """A client, a forwarding, and a backend."""

    def __init__(self, kind: str = "tcp", exchange: bool = True, **options: Any) -> None:
        self.client, source = connected(kind)
        sink, self.backend = connected(kind)
        self.line = Line(self.client, lean(source), lean(sink), self.backend)
        #: What it said at its end: a relay, or None.
        self.told: list[Any] = []
        options = OPTIONS | options
        self.forwarding = Forwarding(self.line.source, self.line.sink, options, self.told.append)
        self.forwarding.start(exchange)

    @property
    def is_exchange(self) -> bool:
        return self.forwarding._relay is None

    def error(self) -> BaseException | None:
        """Wait for its end; return what has ended it."""
        wait_until(lambda: self.told)
        (relay,) = self.told
        return None if relay is None else relay.exception

    def close(self) -> None:
        for sock in self.line:
            sock.close()


@pytest.fixture
def forwarded() -> Iterator[Callable[..., Forwarded]]:
    """Begin to forward; all is over at the end."""
    made: list[Forwarded] = []

    def begin(*args: Any, **options: Any) -> Forwarded:
        made.append(Forwarded(*args, **options))
        return made[-1]

    yield begin
    for one in made:
        one.forwarding.stop()
        one.error()
        one.close()


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def any_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def there_and_back(one: Forwarded, message: bytes = b"hello") -> None:
    for near, far in ((one.client, one.backend), (one.backend, one.client)):
        near.sendall(message)
        assert receive(far, len(message)) == message


# Short ones.


def test_a_short_connection_is_an_exchange_to_its_end(any_kind: str, forwarded: Any) -> None:
    before = gsplice.stats()
    one = forwarded(any_kind)
    assert gsplice.stats().active == 2
    there_and_back(one)
    one.client.close()
    assert receive(one.backend) == b""
    assert (one.is_exchange, one.told) == (True, [])
    one.backend.close()
    assert one.error() is None
    assert one.is_exchange
    after = gsplice.stats()
    assert (after.copied - before.copied, after.spliced - before.spliced) == (10, 0)
    assert after.active == 0


def test_what_the_client_has_sent_already_goes_at_once(forwarded: Any) -> None:
    client, source = connected()
    sink, backend = connected()
    client.sendall(b"hello")
    wait_until(lambda: is_readable(source))
    ends, told = (lean(source), lean(sink)), []
    forwarding = Forwarding(*ends, OPTIONS, told.append)
    forwarding.start(True)
    wait_until(lambda: is_readable(backend))  # and the hub's loop has not run
    assert receive(backend, 5) == b"hello"
    forwarding.stop()
    wait_until(lambda: told)
    for sock in (client, backend, *ends):
        sock.close()


@pytest.mark.parametrize("first", ["client", "backend"])
def test_either_may_be_the_first_to_end(first: str, any_kind: str, forwarded: Any) -> None:
    one = forwarded(any_kind)
    near, far = (one.client, one.backend)[:: 1 if first == "client" else -1]
    near.sendall(b"the last of mine")
    near.shutdown(socket.SHUT_WR)
    assert receive(far) == b"the last of mine"
    far.sendall(b"and the last of mine")
    far.shutdown(socket.SHUT_WR)
    assert receive(near, 20) == b"and the last of mine"
    assert one.error() is None
    assert one.is_exchange


@pytest.mark.parametrize("idle_timeout", [None, 60])
def test_an_exchange_that_is_over_is_no_cycle(idle_timeout: float | None) -> None:
    one = Forwarded(idle_timeout=idle_timeout)
    there_and_back(one)
    one.client.close()
    one.backend.close()
    assert one.error() is None
    one.close()
    kept = weakref.ref(one.line.source)
    gc.disable()  # it would find a cycle
    try:
        del one
        assert kept() is None
    finally:
        gc.enable()


# Those that last.


def test_after_a_few_messages_it_is_a_relay(forwarded: Any) -> None:
    one = forwarded()
    for number in range(2 * _forwarding._MOST_MESSAGES):
        assert one.is_exchange == (number < _forwarding._MOST_MESSAGES)
        there_and_back(one, b"number %d" % number)
    assert gsplice.stats().active == 2


@pytest.mark.parametrize("size", [_hub.SMALL_READ - 1, _hub.SMALL_READ, 1_000_000])
def test_what_fills_the_buffer_comes_whole(size: int, any_kind: str, forwarded: Any) -> None:
    one = forwarded(any_kind)
    data = pattern(size)
    for near, far in ((one.client, one.backend), (one.backend, one.client)):
        sending = gevent.spawn(near.sendall, data)
        assert receive(far, size) == data
        sending.get()
    assert one.is_exchange == (size < _hub.SMALL_READ)


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_a_sink_does_not_take_is_the_first_that_the_relay_sends(
    way: str, forwarded: Any
) -> None:
    one = forwarded("unix")
    near, sink, far = (
        (one.client, one.line.sink, one.backend)
        if way == "up"
        else (one.backend, one.line.source, one.client)
    )
    small_buffers(sink)
    small_buffers(far)
    there = fill(sink)
    message = pattern(_hub.SMALL_READ - 1)
    near.sendall(message)
    wait_until(lambda: not one.is_exchange)
    near.shutdown(socket.SHUT_WR)
    received = receive(far)
    assert received[there:] == message


def test_an_end_that_was_passed_on_is_no_news_to_the_relay(any_kind: str, forwarded: Any) -> None:
    one = forwarded(any_kind)
    one.client.sendall(b"a question")
    one.client.shutdown(socket.SHUT_WR)
    assert receive(one.backend) == b"a question"
    answer = pattern(3_000_000)
    sending = gevent.spawn(one.backend.sendall, answer)
    assert receive(one.client, len(answer)) == answer
    sending.get()
    assert not one.is_exchange
    one.backend.close()
    assert one.error() is None


@pytest.mark.parametrize(
    ("wanted", "options"), [(True, {"mode": "splice"}), (False, {}), (True, {"mode": "copy"})]
)
def test_where_all_is_to_be_spliced_there_is_no_exchange(
    wanted: bool, options: Any, forwarded: Any
) -> None:
    with socket.socket() as listener:
        raw = listener._sock
        may = wanted and _forwarding.may_exchange(raw, OPTIONS | options)
    one = forwarded(exchange=may, **options)
    assert one.is_exchange == may == (options.get("mode") == "copy")
    before = gsplice.stats().spliced
    there_and_back(one)
    one.client.close()
    one.backend.close()
    assert one.error() is None
    assert gsplice.stats().spliced - before == (10 if options.get("mode") == "splice" else 0)


def test_sockets_that_somebody_else_made_are_relayed(forwarded: Any) -> None:
    (client, source), (sink, backend) = connected(), connected()
    told: list[Any] = []
    Forwarding(source, lean_sink := lean(sink), OPTIONS, told.append).start(True)
    client.sendall(b"hello")
    assert receive(backend, 5) == b"hello"
    assert gsplice.stats().active == 2
    client.close()
    backend.close()
    wait_until(lambda: told)
    assert told[0].get() == (5, 0)
    source.close()
    lean_sink.close()


@pytest.mark.parametrize("kind", ["SOCK_SEQPACKET", "SOCK_DGRAM"])
def test_only_streams_are_exchanged(kind: str) -> None:
    with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as listener:
        assert not _forwarding.may_exchange(listener._sock, OPTIONS)


# What ends it before its time.


def test_a_stopped_exchange_is_a_stopped_relay(forwarded: Any) -> None:
    one = forwarded()
    there_and_back(one)
    assert one.is_exchange
    for _ in range(2):
        one.forwarding.stop()
    assert gsplice.stats().active == 0
    assert isinstance(one.error(), TransferStopped)
    one.forwarding.stop()


def test_an_idle_exchange_is_timed_out_and_one_with_messages_is_not(forwarded: Any) -> None:
    idle, busy = forwarded(idle_timeout=0.3), forwarded(idle_timeout=0.3)
    messages = 0
    while not idle.told:
        if messages < _forwarding._MOST_MESSAGES - 1:
            there_and_back(busy, b"x")
            messages += 1
        gevent.sleep(0.06)  # now and then is what is tested
    assert isinstance(idle.error(), TimeoutError)
    assert busy.is_exchange
    assert busy.told == []


@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_is_the_error_of_both_ways(who: str, forwarded: Any) -> None:
    one = forwarded()
    there_and_back(one)
    reset(getattr(one, who))
    assert isinstance(one.error(), ConnectionResetError)
    assert gsplice.stats().active == 0


def test_an_answer_that_came_before_the_backend_was_gone_is_delivered(forwarded: Any) -> None:
    one = forwarded("unix")
    one.backend.sendall(b"no, thank you")
    one.backend.close()
    one.client.sendall(b"would you like")
    assert receive(one.client, 13) == b"no, thank you"
    assert isinstance(one.error(), (BrokenPipeError, type(None)))


def test_a_sink_that_cannot_be_told_of_the_end_is_an_error(
    forwarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sock: Any) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(_forwarding._shutdown, "half_close", fail)
    one = forwarded()
    one.client.shutdown(socket.SHUT_WR)
    assert str(one.error()) == "no such thing"


@pytest.mark.parametrize("end", ["source", "sink"])
def test_an_end_that_is_shut_down_by_another_greenlet_is_an_error(end: str, forwarded: Any) -> None:
    one = forwarded()
    getattr(one.line, end).shutdown(socket.SHUT_RDWR)
    assert type(one.error()) is socket.cancel_wait_ex


@pytest.mark.parametrize("end", ["source", "sink"])
def test_an_end_that_is_closed_by_another_greenlet_is_an_error(end: str, forwarded: Any) -> None:
    one = forwarded()
    there_and_back(one)
    getattr(one.line, end).close()
    assert type(one.error()) is socket.cancel_wait_ex
    assert gsplice.stats().active == 0


def test_an_end_that_is_closed_once_nobody_waits_for_it_is_an_error(forwarded: Any) -> None:
    one = forwarded()
    one.client.shutdown(socket.SHUT_WR)
    assert receive(one.backend) == b""
    one.line.source.close()
    one.backend.sendall(b"for nobody")
    error = one.error()
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF


def test_a_socket_in_non_blocking_mode_is_forwarded_to_its_end(forwarded: Any) -> None:
    one = forwarded()
    one.line.sink.settimeout(0)
    for number in range(2 * _forwarding._MOST_MESSAGES):
        there_and_back(one, b"number %d" % number)
    one.client.close()
    one.backend.close()
    assert one.error() is None


def test_a_bug_in_a_step_ends_it_and_is_reported(
    forwarded: Any, monkeypatch: pytest.MonkeyPatch, hub_errors: list[Any]
) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Forwarding, "moved", bug)
    one = forwarded()
    one.client.sendall(b"hello")
    assert isinstance(one.error(), TransferStopped)
    assert [type(error) for _, error in hub_errors] == [ZeroDivisionError]
    hub_errors.clear()


@pytest.mark.parametrize("step", ["recv_into", "send"])
def test_the_handler_of_a_signal_may_stop_it_within_a_step(
    step: str, forwarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = forwarded()
    way = one.forwarding._up
    name = "_receive" if step == "recv_into" else "_send"
    call = getattr(way, name)

    def stop_then_call(data: Any) -> int:
        one.forwarding.stop()
        return 0 if step == "recv_into" else call(data) - 1

    setattr(way, name, stop_then_call)
    one.client.sendall(b"hello")
    assert isinstance(one.error(), TransferStopped)
    assert gsplice.stats().active == 0


@pytest.mark.parametrize(
    ("of", "name", "number"),
    [(Way, "on_readable", 2), (Way, "stop", 1), (Forwarding, "_end_exchange", 1)],
)
def test_the_handler_of_a_signal_may_stop_it_right_before_a_step(
    of: Any, name: str, number: int, forwarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_method(monkeypatch, of, name, lambda: one.forwarding.stop(), number)
    one = forwarded()  # which has called on_readable once
    one.client.shutdown(socket.SHUT_WR)
    one.backend.shutdown(socket.SHUT_WR)
    error = one.error()
    assert isinstance(error, TransferStopped) == (of is Way)  # else it has come to its end already
    wait_until(lambda: gsplice.stats().active == 0)
    _gevent.let_loop_pass()
    assert len(one.told) == 1


def test_an_error_that_the_loop_reports_for_nothing_is_not_the_end(forwarded: Any) -> None:
    one = forwarded()
    one.forwarding._up.on_readable(-1)  # what libuv says when it stops to poll
    there_and_back(one)


# In a server.


def test_a_short_connection_needs_no_greenlet(
    serve: Any, echo: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(ForwardServer(("127.0.0.1", 0), echo.address))
    monkeypatch.delattr("gevent.spawn")
    with socket.create_connection(server.address) as client:
        exchange(client)


class AsksItself(ForwardServer):
    """A server that finds its target by a method of its own."""

    def connect(self, address: Any) -> socket.socket:
        self.asked = address
        return super().connect(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_connect_of_a_subclass_is_asked(host: str, serve: Any, echo: StreamServer) -> None:
    server = serve(AsksItself(("127.0.0.1", 0), (host, echo.server_port)))
    with socket.create_connection(server.address) as client:
        exchange(client)
        assert server.asked == client.getsockname()


def test_a_client_that_is_handed_over_is_served_as_well(serve: Any, echo: StreamServer) -> None:
    server = serve(ForwardServer(("127.0.0.1", 0), echo.address))
    client, accepted = connected()
    server.do_handle(accepted, client.getsockname())
    exchange(client)
    client.close()
    wait_until(lambda: not server.connections)


def test_a_client_that_is_handed_over_goes_to_the_target_of_now(
    serve: Any, echo: StreamServer
) -> None:
    with listening() as before:
        server = serve(ForwardServer(("127.0.0.1", 0), before.getsockname()))
        with socket.create_connection(server.address), before.accept()[0]:
            server.target = echo.address
            client, accepted = connected()
            server.do_handle(accepted, client.getsockname())
            exchange(client)
            client.close()
    wait_until(lambda: not server.connections)


def options_of(connection: Any) -> list[tuple[int, int]]:
    """Return what is set on the two sockets of a connection of a server's."""
    return [
        (
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        )
        for sock in (connection._client, connection._backend)
    ]


def test_all_sockets_are_prompt_those_that_came_before_the_server_as_well(
    serve: Any, echo: StreamServer
) -> None:
    listener = listening()
    address = listener.getsockname()
    with socket.create_connection(address) as early:
        server = serve(ForwardServer(listener, echo.address))
        exchange(early)
        with socket.create_connection(address) as late:
            exchange(late)
            assert server.clients_are_prompt
            handed_over, accepted = connected()
            with handed_over:
                server.do_handle(accepted, handed_over.getsockname())
                exchange(handed_over)
                assert [options_of(one) for one in server._connections] == [[(1, 1)] * 2] * 3


def test_a_server_without_clients_holds_one_socket_in_reserve(
    serve: Any, echo: StreamServer
) -> None:
    server = serve(ForwardServer(("127.0.0.1", 0), echo.address))
    before = open_fds()
    for _ in range(3):
        with socket.create_connection(server.address) as client:
            exchange(client)
        wait_until(lambda: len(open_fds().items() - before.items()) == 1)
    server.stop(0)
    assert not leaked_fds(before)


# A forked child.


def reinit_in_child() -> None:
    """Have the child's event loop be its own; libev sees to that by itself."""
    if type(gevent.get_hub().loop).__module__.startswith("gevent.libuv"):
        gevent.reinit()  # without it parent and child poll the same fds, says libuv


def forked_beside_an_exchange() -> None:
    """Fork beside an exchange (for the test below)."""
    one = Forwarded(idle_timeout=60)
    there_and_back(one)

    def work() -> None:
        reinit_in_child()
        assert gsplice.stats().active == 0
        way = one.forwarding._up
        assert way is None
        one.client.sendall(b"for the parent")
        gevent.sleep(0.05)  # would be enough to take it
        assert one.told == []
        with errors_of_hub() as errors:
            one.forwarding.stop()
            one.line.source.close()
            one.line.sink.close()
            gevent.sleep(0)  # gevent tells who waits for them
        assert errors == []
        os.write(to_parent, b".")

    from_child, to_parent = os.pipe()
    wait = in_child(work, os.fork)
    assert os.read(from_child, 1) == b"."  # the hub stands still: the parent takes nothing itself
    os.close(from_child)
    os.close(to_parent)
    assert receive(one.backend, 14) == b"for the parent"
    wait()
    there_and_back(one)
    one.client.close()
    one.backend.close()
    assert one.error() is None
    one.close()


def test_a_forked_child_leaves_an_exchange_to_its_parent() -> None:
    run_alone(forked_beside_an_exchange)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["_receive", "_send"])
@pytest.mark.parametrize("what", ["a message", "maybe a stream", "what the sink does not take"])
def test_stop_by_a_signal_handler_within_a_step_loses_nothing(
    moment: str, call: str, what: str, forwarded: Any
) -> None:
    one = forwarded()
    way = one.forwarding._up
    message = pattern(_hub.SMALL_READ if what == "maybe a stream" else 5)
    is_full = what == "what the sink does not take"
    if is_full:
        fill(one.line.sink)
    system_call = getattr(way, call)

    def interrupted(buffer: Any) -> Any:
        if moment == "before":
            one.forwarding.stop()
        try:
            return system_call(buffer)
        finally:
            one.forwarding.stop()

    setattr(way, call, interrupted)
    one.client.sendall(message)
    assert isinstance(one.error(), TransferStopped)
    (relay,) = one.told
    if is_full:
        assert (way.moved + relay.moved, relay.undelivered) == (0, message)
    else:
        assert (way.moved + relay.moved, relay.undelivered) == (len(message), b"")
        assert receive(one.backend, len(message)) == message


def forked_within_a_step(fork_number: int) -> None:
    """Fork in the middle of a step, as the handler of a signal may (for the tests below).

    :param fork_number: 1 for the step of the first message, 2 for that of the end of file.
    """
    one = Forwarded()
    way = one.forwarding._up
    receive_into, children = way._receive, []

    def receive_and_fork(buffer: Any) -> int:
        count = receive_into(buffer)
        children.append(os.fork() if len(children) + 1 == fork_number else -1)
        return count

    way._receive = receive_and_fork
    one.client.sendall(b"once")
    way.on_readable()
    if fork_number == 2:
        one.client.shutdown(socket.SHUT_WR)
        way.on_readable()
    if children[-1] == 0:
        os._exit(0 if one.told == [] and one.forwarding._relay is None else 1)
    assert os.waitpid(children[-1], 0)[1] == 0
    assert receive(one.backend, 4) == b"once"
    if fork_number == 1:
        there_and_back(one)
    one.client.close()
    assert receive(one.backend) == b""
    one.backend.close()
    assert one.error() is None
    one.close()


def forked_within_the_step_of_a_message() -> None:
    forked_within_a_step(1)


def forked_within_the_step_of_an_end() -> None:
    forked_within_a_step(2)


@pytest.mark.parametrize(
    "fork", [forked_within_the_step_of_a_message, forked_within_the_step_of_an_end]
)
def test_a_fork_by_a_signal_handler_within_a_step_sends_nothing_twice(
    fork: Callable[[], None],
) -> None:
    run_alone(fork)


def served_by_the_parent(
    server: ForwardServer, meet: Callable[[], socket.socket], go_on: Any
) -> None:
    """Check that a client whose connection is being made is the parent's, whoever makes it first.

    :param meet: returns the backend of the connection.
    :param go_on: called in the child and then in the parent, so that the connection can be made.
    """
    server.start()
    from_child, to_parent = os.pipe()
    with socket.create_connection(server.address) as client:
        client.sendall(b"for the parent")
        wait_until(lambda: server.connections)
        gevent.sleep(0.03)  # so that it is under way

        def work() -> None:
            reinit_in_child()
            server.close()
            go_on()
            wait_until(lambda: not server.connections)
            assert gsplice.stats().active == 0
            os.write(to_parent, b".")

        wait = in_child(work, os.fork)
        assert os.read(from_child, 1) == b"."  # the hub stands still: the child is the first
        go_on()
        with meet() as backend:
            assert receive(backend, 14) == b"for the parent"
            backend.sendall(b"from the backend")
            assert receive(client, 16) == b"from the backend"
            wait()
    os.close(from_child)
    os.close(to_parent)
    wait_until(lambda: not server.connections)
    server.stop()


def forked_while_connecting() -> None:
    """Fork while a unix socket's backlog is full (for the test below)."""
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0gsplice-{os.getpid()}")
        listener.listen(0)
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        in_parent = os.getpid()

        def make_room() -> None:
            if os.getpid() != in_parent:
                listener.accept()[0].close()

        path = os.fsdecode(listener.getsockname())
        server = ForwardServer(("127.0.0.1", 0), path)
        served_by_the_parent(server, lambda: listener.accept()[0], make_room)
    for sock in waiting:
        sock.close()


def forked_while_asking() -> None:
    """Fork while a callable looks for the target (for the test below)."""
    found = Event()
    backends: list[socket.socket] = []

    def look(_: Any) -> socket.socket:
        found.wait()
        sink, backend = connected()
        backends.append(backend)
        return sink

    server = ForwardServer(("127.0.0.1", 0), look)
    served_by_the_parent(server, lambda: wait_until(lambda: backends)[0], found.set)


@pytest.mark.parametrize("fork", [forked_while_connecting, forked_while_asking])
def test_a_forked_child_leaves_a_client_that_is_being_connected_to_its_parent(
    fork: Callable[[], None],
) -> None:
    run_alone(fork)
