"""Sources that are ready together are read in the order in which the kernel says so.

While a test writes, the hub does not run. So what it writes is ready all at once when it does, and
the kernel's report has the order of the writes.
"""

from __future__ import annotations

import errno
import itertools
import select
import time
import types
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from faults import Fault, failing, injected
from gevent import socket
from peers import (
    Line,
    MakeLine,
    Pairs,
    Spawn,
    error_of,
    fill,
    is_readable,
    peeked,
    receive,
    run_alone,
    wait_until,
    waits_to_read,
)
from races import before_method, behind_method, interrupt

import gsplice
from gsplice import _gevent, _hub, _turns
from gsplice._pump import Pump
from gsplice._turns import Turns

COUNT = 20
#: A large piece, for which a unix socket has room several times.
PIECE = bytes(20_000)


@pytest.fixture
def lines(line: MakeLine) -> list[Line]:
    """Some connections, of which the order is all that differs."""
    return [line("unix") for _ in range(COUNT)]


class Arrivals:
    """The order in which bytes come to the backends, as the kernel reports it."""

    def __init__(self, lines: list[Line]) -> None:
        self._epoll = select.epoll()
        for each in lines:
            self._epoll.register(each.backend, select.EPOLLIN | select.EPOLLET)
        self._numbers = {each.backend.fileno(): number for number, each in enumerate(lines)}

    def of(self, lines: list[Line]) -> list[int]:
        """Return the numbers of *lines* in the order in which bytes come, once all have some."""
        wait_until(lambda: all(is_readable(each.backend) for each in lines))
        return [self._numbers[fd] for fd, _ in self._epoll.poll(0, len(self._numbers))]

    def close(self) -> None:
        self._epoll.close()


@pytest.fixture
def arrivals(lines: list[Line]) -> Any:
    seen = Arrivals(lines)
    yield seen
    seen.close()


@pytest.fixture
def running(lines: list[Line]) -> Any:
    """A transfer on each of the lines, which waits for its first byte."""
    transfers = [gsplice.Transfer(each.source, each.sink).start() for each in lines]
    gevent.sleep(0.001)  # the loop asks for what is not there yet, and registers the sockets
    yield transfers
    for transfer in transfers:
        transfer.stop()


def write_to(lines: list[Line], order: list[int]) -> None:
    for number in order:
        lines[number].client.sendall(b"%d" % number)


@pytest.mark.parametrize(
    "order",
    [
        list(range(COUNT)),
        list(reversed(range(COUNT))),
        [*range(0, COUNT, 2), *range(1, COUNT, 2)],
        [7, 3],
        [5],
    ],
    ids=["as made", "reversed", "interleaved", "two", "one"],
)
def test_who_has_waited_longest_is_served_first(
    lines: list[Line], running: list[gsplice.Transfer], arrivals: Arrivals, order: list[int]
) -> None:
    for _ in range(3):
        write_to(lines, order)
        written_to = [lines[number] for number in order]
        assert arrivals.of(written_to) == order
        for number, each in zip(order, written_to, strict=True):
            assert receive(each.backend, len(str(number))) == b"%d" % number


def test_relays_are_served_in_the_order_of_the_writes_whichever_end_is_written_to(
    lines: list[Line],
) -> None:
    """Each answer is written before the next request, in one turn of the loop."""
    relays = [gsplice.Relay(each.source, each.sink).start() for each in lines]
    gevent.sleep(0.001)
    ends = [end for each in lines for end in (each.client, each.backend)]
    with select.epoll() as report:
        for end in ends:
            report.register(end, select.EPOLLIN | select.EPOLLET)
        for each in lines:
            each.backend.sendall(b"answer")
            each.client.sendall(b"request")
        for end in ends:
            wait_until(lambda end=end: select.select([end], [], [], 0)[0])
        came = [fd for fd, _ in report.poll(0, len(ends))]
    assert came == [end.fileno() for end in ends]
    for relay in relays:
        relay.stop()


def test_who_is_stopped_before_its_turn_has_taken_nothing(
    lines: list[Line], running: list[gsplice.Transfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_method(monkeypatch, Pump, "on_readable", running[1].stop)  # by the first, as it is read
    write_to(lines, [0, 1, 2])
    assert receive(lines[2].backend, 1) == b"2"
    assert receive(lines[0].backend, 1) == b"0"
    assert [transfer.moved for transfer in running[:3]] == [1, 0, 1]
    assert receive(lines[1].source, 1) == b"1"


def test_who_holds_bytes_when_its_turn_comes_takes_no_more(
    lines: list[Line], running: list[gsplice.Transfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []

    def read_before_its_turn() -> None:
        filled.append(fill(lines[1].sink))
        running[1]._engine.on_readable()
        lines[1].client.sendall(b"one more")

    before_method(monkeypatch, Pump, "on_readable", read_before_its_turn)
    write_to(lines, [0, 1, 2])
    assert receive(lines[2].backend, 1) == b"2"
    assert peeked(lines[1].source) == b"one more"
    assert receive(lines[1].backend, filled[0] + 9)[filled[0] :] == b"1one more"


def test_nobody_waits_for_the_loop_to_wake_up_again_where_it_calls_somebody_else_last(
    lines: list[Line], running: list[gsplice.Transfer], spawn: Spawn
) -> None:
    """A plain reader that is reported before the transfers is called after them, by libev."""
    read: list[bytes] = []
    reader = spawn(lambda: read.append(lines[0].client.recv(10)))
    wait_until(lambda: waits_to_read(lines[0].client))
    gevent.sleep(0.001)
    lines[0].source.send(b"plain")
    write_to(lines, [1, 2])
    assert receive(lines[2].backend, 1) == b"2"
    assert receive(lines[1].backend, 1) == b"1"
    reader.join()
    assert read == [b"plain"]


@pytest.mark.parametrize("step", ["on_readable", "_copy"])
def test_what_a_signal_raises_in_ones_turn_stops_nobody_else(
    lines: list[Line],
    running: list[gsplice.Transfer],
    monkeypatch: pytest.MonkeyPatch,
    hub_errors: list[Any],
    step: str,
) -> None:
    struck = 7  # its turn is the eighth
    before_method(monkeypatch, Pump, step, interrupt, number=struck + 1)
    write_to(lines, list(range(COUNT)))
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(5)
    hub_errors.clear()
    for _ in range(2):
        for number, each in enumerate(lines):
            if number != struck:
                assert receive(each.backend, len(str(number))) == b"%d" % number
        write_to(lines, list(range(COUNT)))
    if step == "_copy":  # its step had begun
        assert isinstance(error_of(running[struck].get), gsplice.TransferStopped)


def test_turns_come_before_whatever_else_the_loop_has_to_call(
    lines: list[Line],
    running: list[gsplice.Transfer],
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it asks again before they are over, and all that is ready is reported once more."""

    def busy() -> None:
        for _ in range(5):
            end = time.monotonic() + 0.000_1
            while time.monotonic() < end:
                pass
            gevent.sleep(0)

    reads = before_method(monkeypatch, Pump, "on_readable", lambda: None)
    for _ in range(300):
        spawn(busy)
    gevent.sleep(0)
    write_to(lines, [0, 1, 2, 3])
    for number in range(4):
        assert receive(lines[number].backend, 1) == b"%d" % number
    assert len(reads) == 4


def turns() -> Turns | None:
    """Return the turns on the hub's loop; None where the loop keeps the order itself."""
    return _hub.resources().turns_on(gevent.get_hub().loop)


def places_taken() -> int:
    here = turns()
    return 0 if here is None else len(here._reported)


def is_called_behind_each_report() -> bool:
    here = turns()
    return here is not None and here._end_of_report.active


@pytest.fixture(params=["splice", "copy"])
def by_large_pieces(
    request: pytest.FixtureRequest, lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A transfer on each of the lines; behind a report no more than four of them are read."""
    monkeypatch.setattr(_turns, "_MOST_PIECES", 4)
    transfers = [
        gsplice.Transfer(each.source, each.sink, mode=request.param).start() for each in lines
    ]
    gevent.sleep(0.001)
    yield transfers
    for transfer in transfers:
        transfer.stop()


def write_large_pieces(lines: list[Line]) -> None:
    for each in lines:
        each.client.sendall(PIECE)


def test_after_so_many_large_pieces_the_loop_has_its_turn_and_who_is_left_comes_first(
    lines: list[Line], by_large_pieces: list[gsplice.Transfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the others can be read again at once, and the kernel names them before those."""
    engines = [transfer._engine for transfer in by_large_pieces]

    def write_more(engine: Pump) -> Pump:
        write_large_pieces([lines[engines.index(engine)]])
        return engine

    read = behind_method(monkeypatch, Pump, "on_readable", write_more)
    write_large_pieces(lines)
    passes, here = [0], turns()
    while len(read) < 3 * COUNT:
        _gevent.let_loop_pass()
        passes.append(len(read))
    assert read[: 3 * COUNT] == 3 * engines
    most = max(after - before for before, after in itertools.pairwise(passes))
    assert most == (COUNT if here is None else 4)


@pytest.mark.parametrize("by_whom", ["one that is read", "another greenlet"])
def test_who_is_left_and_ends_is_kept_by_nobody(
    lines: list[Line],
    by_large_pieces: list[gsplice.Transfer],
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
    by_whom: str,
) -> None:
    """Not even until the loop is woken up, which may be never."""
    here = turns()

    def stop(engine: Pump) -> None:
        is_fourth = engine is by_large_pieces[3]._engine
        if is_fourth and by_whom == "one that is read":
            stop_them()
        elif is_fourth:
            spawn(stop_them)

    def stop_them() -> None:
        for transfer in by_large_pieces[4:]:
            transfer.stop()

    read = behind_method(monkeypatch, Pump, "on_readable", stop)
    write_large_pieces(lines)
    wait_until(by_large_pieces[-1].ready)
    if here is None and by_whom == "another greenlet":
        assert len(read) == COUNT, "there is no limit"
    else:
        assert len(read) == 4
    assert here is None or not here._left


def test_the_loop_in_c_calls_no_python_for_a_source_and_is_asked_once(
    lines: list[Line], running: list[gsplice.Transfer]
) -> None:
    is_in_c = _gevent.is_in_c(gevent.get_hub().loop)
    callback = lines[0].source._read_event.callback
    assert isinstance(callback.__func__, types.BuiltinMethodType) is is_in_c
    for transfer in running:
        assert is_called_behind_each_report() is is_in_c
        transfer.stop()
    gevent.sleep(0.001)
    assert not is_called_behind_each_report()


def test_a_transfer_that_a_signal_handler_begins_as_the_turns_end_gets_its_own(
    line: MakeLine,
) -> None:
    last, next_one = line(), line()
    transfer = gsplice.Transfer(last.source, last.sink).start()
    begun: list[gsplice.Transfer] = []
    gevent.sleep(0.001)
    here, is_in_c = turns(), _gevent.is_in_c(gevent.get_hub().loop)
    if here is not None and is_in_c:
        here._end_of_report = Watcher(
            here._end_of_report,
            lambda: begun.append(gsplice.Transfer(next_one.source, next_one.sink).start()),
        )
    transfer.stop()
    gevent.sleep(0.001)
    if not is_in_c:  # where turns do not end
        begun.append(gsplice.Transfer(next_one.source, next_one.sink).start())
    next_one.client.sendall(b"hello")
    assert receive(next_one.backend, 5) == b"hello"
    begun[0].stop()


class Watcher:
    """A watcher before whose first stop something happens."""

    def __init__(self, watcher: Any, happens: Callable[[], None]) -> None:
        self._watcher = watcher
        self._happens: Callable[[], None] | None = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watcher, name)

    def stop(self) -> None:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        self._watcher.stop()


def test_who_is_stopped_before_its_turn_is_kept_by_nobody(
    line: MakeLine, pairs: Pairs, spawn: Spawn
) -> None:
    (near, far), ends = pairs(), line("unix")
    transfer = gsplice.Transfer(ends.source, ends.sink).start()
    waiting: list[int] = []

    def stop() -> None:
        assert far.recv(4) == b"stop"
        waiting.append(places_taken())
        transfer.stop()
        waiting.append(places_taken())

    stopping = spawn(stop)
    gevent.sleep(0.001)
    near.sendall(b"stop")  # reported first, so libev calls it last
    ends.client.sendall(b"hello")
    stopping.join()
    assert waiting == [0 if turns() is None else 1, 0]
    assert transfer.moved == 0


def test_an_error_on_top_of_ones_end_is_told_to_the_hub_and_nobody_else_has_to_care(
    lines: list[Line],
    running: list[gsplice.Transfer],
    monkeypatch: pytest.MonkeyPatch,
    hub_errors: list[Any],
) -> None:
    def fail_as_well(_: Pump) -> bytes:
        raise RuntimeError("on top")

    with monkeypatch.context() as patch:
        patch.setattr(Pump, "_take_back", fail_as_well)
        with injected(Fault("recv_into", failing(errno.ECONNRESET)), sockets=[lines[3].source]):
            running[3]._engine._raw_source = lines[3].source._sock
            write_to(lines, [2, 3, 4])
            assert isinstance(error_of(running[3].get, timeout=5), ConnectionResetError)
    assert [str(error) for _, error in hub_errors] == ["on top"]
    hub_errors.clear()
    assert receive(lines[2].backend, 1) == b"2"
    assert receive(lines[4].backend, 1) == b"4"


def copy_on_one_loop_after_another() -> None:
    for _ in range(2):
        pairs = [(socket.socketpair(), socket.socketpair()) for _ in range(2)]
        transfers = [gsplice.Transfer(source, sink).start() for (_, source), (sink, _) in pairs]
        gevent.sleep(0.001)
        for (client, _), _ in pairs:
            client.sendall(b"hello")
        for _, (_, backend) in pairs:
            assert receive(backend, 5) == b"hello"
        for transfer, made in zip(transfers, pairs, strict=True):
            transfer.stop()
            for sock in (*made[0], *made[1]):
                sock.close()
        gevent.get_hub().destroy(destroy_loop=True)


def test_on_the_loop_that_follows_one_that_was_destroyed_turns_are_taken_as_on_the_first() -> None:
    run_alone(copy_on_one_loop_after_another)
