"""What another greenlet or a signal handler does lands between any two steps of a transfer.

Nothing here sleeps to hit the moment: a strike is made right before a method of the engine. Before
`on_readable` and `on_writable` it is between readiness and the system call; before the others it is
between a splice in and the splice out, with the pipe empty or full.

Whatever it is, each byte is accounted for: what has arrived, then what is `undelivered`, then what
is left in the source, are the bytes that were sent. And a connection that has got the number of a
closed socket meanwhile has neither lost a byte nor got one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import gevent
import pytest
from faults import forget_pipes, told
from fd_reuse import assert_untouched
from gevent import socket
from peers import (
    PATIENCE,
    Line,
    MakeLine,
    Pair,
    Pairs,
    Spawn,
    error_of,
    pattern,
    receive,
    send_and_end,
    waits_to_read,
    waits_to_write,
)
from races import Reused, before_method, closed_in_hub

import gsplice
from gsplice import _gevent
from gsplice._methods import MethodCopy
from gsplice._pump import Pump
from gsplice._sendfile import FileSender

DATA: Final = pattern(500_001, 21)
THEIRS: Final = pattern(16, 22)
#: So many bytes a second reader takes.
STOLEN: Final = 10


class Own:
    """An object that is read by its own method."""

    def __init__(self, sock: socket.socket) -> None:
        self.recv = sock.recv


class Race:
    """One transfer, alone or as a direction of a relay, and what becomes of its bytes."""

    def __init__(self, ends: Line, spawn: Spawn, mode: str, both_ways: bool) -> None:
        self.ends = ends
        self._spawn = spawn
        self.others: list[Reused] = []
        self.stolen = b""
        self.added = b""
        self.source_is_cut = False
        ends.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 24_000)
        self.task = self.make(mode, both_ways)
        self.transfer = self.task.up if both_ways else self.task
        self.error: BaseException | None = None
        self.caller = gevent.Greenlet(self._call)

    def make(self, mode: str, both_ways: bool) -> Any:
        """Return the transfer, or the relay of which it is a direction."""
        source, sink = self.ends.source, self.ends.sink
        if mode == "methods":
            return gsplice.Transfer(Own(source), sink)
        return (gsplice.Relay if both_ways else gsplice.Transfer)(source, sink, mode=mode)

    def feed(self) -> None:
        """Send all, once it is waited for."""
        while not (waits_to_read(self.ends.source) or self.is_over()):
            _gevent.let_loop_pass()
        self._spawn(error_of, send_and_end, self.ends.client, DATA)

    def keeps_the_rest(self) -> bool:
        """Whether what has not been taken from the source can still be."""
        return self.ends.source.fileno() >= 0 and not self.source_is_cut

    def rest(self) -> bytes:
        """Return what is left in the source."""
        return receive(self.ends.source) if self.ends.source.fileno() >= 0 else b""

    def _call(self) -> None:
        try:
            self.task.run()
        except BaseException as error:
            self.error = error.with_traceback(None)

    def _receive(self) -> bytes:
        received = receive(self.ends.backend)
        with contextlib.suppress(OSError):
            self.ends.backend.shutdown(socket.SHUT_WR)
        return received

    def run(self) -> None:
        """Have it happen, and check that every byte is accounted for."""
        forget_pipes()
        before = gsplice.stats()
        self.caller.start()
        self.feed()
        while not (waits_to_write(self.ends.sink) or self.is_over()):
            _gevent.let_loop_pass()
        received = self._spawn(self._receive)
        self.caller.join(timeout=PATIENCE)
        assert self.caller.dead, "it hangs"
        self.check_figures(before)
        self.check_bytes(received)

    def is_over(self) -> bool:
        """Whether nothing more will be moved, or nobody waits for it any more."""
        return self.transfer.ready() or bool(self.caller.dead)

    def check_figures(self, before: gsplice.Stats) -> None:
        """Check that `stats` has counted what was moved, and that nothing is left of it."""
        now = gsplice.stats()
        assert now.spliced - before.spliced == self.task.spliced
        assert now.copied - before.copied == self.task.moved - self.task.spliced
        assert now.active == before.active
        assert now.pipes == now.idle_pipes

    def check_bytes(self, received: gevent.Greenlet[..., bytes]) -> None:
        """Check that each byte has arrived, was handed back, or is still to be had."""
        is_whole, rest = self.keeps_the_rest(), self.rest()
        self.ends.sink.close()
        for other in self.others:
            assert_untouched(*other.adopted())
        arrived = received.get(timeout=PATIENCE).replace(self.added, b"", 1)
        assert len(arrived) == self.transfer.moved
        ours = DATA.replace(self.stolen, b"", 1)
        whole = arrived + self.transfer.undelivered + rest
        if is_whole:
            assert whole == ours
        else:
            assert whole == ours[: len(whole)]


class FileRace(Race):
    """One transfer from a regular file."""

    def __init__(self, file: BinaryIO, pair: Pair, spawn: Spawn, mode: str) -> None:
        self._file = file
        sink, backend = pair
        super().__init__(Line(sink, sink, sink, backend), spawn, mode, False)

    def make(self, mode: str, _: bool) -> gsplice.Transfer:
        """Return the transfer."""
        return gsplice.Transfer(self._file, self.ends.sink, mode=mode)

    def feed(self) -> None:
        """All is there."""

    def keeps_the_rest(self) -> bool:
        """A file keeps it, whatever becomes of the sink."""
        return True

    def rest(self) -> bytes:
        """Return what is left behind the file's position."""
        return self._file.read()


Strike: TypeAlias = Callable[[Race], None]


def nothing(race: Race) -> None:
    """Do nothing."""


def stop(race: Race) -> None:
    """End the transfer."""
    race.task.stop()


def kill(race: Race) -> None:
    """Kill the caller, as `gevent.kill` does in the next callback."""
    race.caller.throw(gevent.GreenletExit)


def time_out(race: Race) -> None:
    """Have a time-out of the caller's end it, as the timer of a `gevent.Timeout` does."""
    race.caller.throw(gevent.Timeout())


def idle_time_out(race: Race) -> None:
    """Have its own time-out end it, as the watchdog's timer does."""
    race.task._timed_out()


def close_source(race: Race) -> None:
    """Close the source, and use its number again."""
    race.others.append(closed_in_hub(race.ends.source))


def close_sink(race: Race) -> None:
    """Close the sink, and use its number again."""
    race.others.append(closed_in_hub(race.ends.sink))


def close_source_later(race: Race) -> None:
    """Close the source as gevent does: it waits until nobody waits for it any more."""
    race.ends.source.close()


def close_sink_later(race: Race) -> None:
    """Close the sink as gevent does."""
    race.ends.sink.close()


def read_too(race: Race) -> None:
    """Read from the source, as a greenlet does that finds bytes there."""
    with contextlib.suppress(BlockingIOError):
        race.stolen = _gevent.raw_socket(race.ends.source).recv(STOLEN)


def write_too(race: Race) -> None:
    """Write to the sink, as a greenlet does that finds room there."""
    with contextlib.suppress(BlockingIOError):
        race.added = THEIRS[: _gevent.raw_socket(race.ends.sink).send(THEIRS)]


def shut(which: str, how: int) -> Strike:
    """Return what shuts down one end."""

    def strike(race: Race) -> None:
        race.source_is_cut = which == "source" and how != socket.SHUT_WR
        getattr(race.ends, which).shutdown(how)

    names = {socket.SHUT_RD: "reading", socket.SHUT_WR: "writing", socket.SHUT_RDWR: "both"}
    strike.__name__ = f"shut_{which}_for_{names[how]}"
    return strike


def is_closed(error: Any) -> bool:
    """Whether *error* is what a call on a closed socket raises, or the close itself."""
    return isinstance(error, OSError) and error.errno == errno.EBADF


def is_ended(error: Any) -> bool:
    """Whether *error* is that of a call that was cancelled by a shutdown, or an end met by it."""
    return error is None or type(error) is socket.cancel_wait_ex


def is_broken(error: Any) -> bool:
    """Whether *error* is that of writing to what was shut down, or of the shutdown itself."""
    return isinstance(error, BrokenPipeError) or type(error) is socket.cancel_wait_ex


def is_none(error: Any) -> bool:
    """Whether there is no error."""
    return error is None


def is_a(kind: type[BaseException]) -> Callable[[Any], bool]:
    """Return whether an error is of that *kind*."""
    return lambda error: type(error) is kind


#: Strike → whether an error is what has to come of it.
STRIKES: Final[dict[Strike, Callable[[Any], bool]]] = {
    nothing: is_none,
    stop: is_a(gsplice.TransferStopped),
    kill: is_a(gevent.GreenletExit),
    time_out: is_a(gevent.Timeout),
    idle_time_out: is_a(TimeoutError),
    close_source: is_closed,
    close_sink: is_closed,
    close_source_later: is_closed,
    close_sink_later: is_closed,
    read_too: is_none,
    write_too: is_none,
    shut("source", socket.SHUT_RD): is_ended,
    shut("source", socket.SHUT_WR): is_none,
    shut("source", socket.SHUT_RDWR): is_ended,
    shut("sink", socket.SHUT_RD): is_ended,
    shut("sink", socket.SHUT_WR): is_broken,
    shut("sink", socket.SHUT_RDWR): is_broken,
}

STRIKES_ON_A_SINK: Final = {
    strike: is_right
    for strike, is_right in STRIKES.items()
    if "source" not in strike.__name__ and strike is not read_too
}

WAKE_UPS: Final = ("on_readable", "on_writable")
STEPS: Final = {
    "auto": (*WAKE_UPS, "_copy", "_fill", "_empty", "_wait"),
    "splice": (*WAKE_UPS, "_copy", "_fill", "_empty", "_wait"),
    "copy": (*WAKE_UPS, "_copy", "_deliver", "_wait"),
    "methods": ("_deliver",),
}
#: What comes at the end of the stream alone, or not at all: there is nothing left to be struck.
UNUSUAL: Final = {
    ("splice", "on_readable", 2),
    ("splice", "_copy", 2),
    ("copy", "on_readable", 2),
}
MOMENTS: Final = [
    (mode, step, number, both_ways)
    for mode, steps in STEPS.items()
    for step in steps
    for number in (1, 2)
    for both_ways in (False, True)
    if (mode, step, number) not in UNUSUAL
    if not (mode == "methods" and both_ways)  # a relay has two sockets
]


@pytest.mark.parametrize(("mode", "step", "number", "both_ways"), MOMENTS)
def test_each_strike_lands_right_before_a_step(
    line: MakeLine, spawn: Spawn, mode: str, step: str, number: int, both_ways: bool
) -> None:
    engine = MethodCopy if mode == "methods" else Pump
    for strike, is_right in STRIKES.items():
        race = Race(line("unix"), spawn, mode, both_ways)
        with told(strike.__name__), pytest.MonkeyPatch.context() as patch:
            struck = before_method(patch, engine, step, functools.partial(strike, race), number)
            race.run()
            assert number in struck, "that step is never made"
            assert is_right(race.error), repr(race.error)


@pytest.mark.parametrize("mode", ["auto", "copy"])
@pytest.mark.parametrize("step", ["on_writable", "_send", "_wait"])
@pytest.mark.parametrize("number", [1, 2])
def test_each_strike_lands_right_before_a_step_of_sending_a_file(
    pairs: Pairs, spawn: Spawn, tmp_path: Path, number: int, step: str, mode: str
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    for strike, is_right in STRIKES_ON_A_SINK.items():
        with open(tmp_path / "file", "rb") as file, pytest.MonkeyPatch.context() as patch:
            race = FileRace(file, pairs("unix"), spawn, mode)
            strike_now = functools.partial(strike, race)
            with told(strike.__name__):
                struck = before_method(patch, FileSender, step, strike_now, number)
                race.run()
                assert number in struck, "that step is never made"
                assert is_right(race.error), repr(race.error)
