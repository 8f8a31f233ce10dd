"""A state machine that does to transfers, in any order, whatever can be done to them.

Hypothesis chooses what is done, and makes the shortest story of it that goes wrong. What it chooses
never depends on how far the bytes have come: so the same choices are the same story again.
"""

from __future__ import annotations

import collections
import itertools
from typing import Any, ClassVar

import gevent
from choices import (
    BEGINNINGS,
    ENDINGS,
    KIND,
    KINDS,
    MODES,
    MOMENTS,
    NUMBERS,
    OPTIONS,
    PASSES,
    SIZES,
    STEADY,
)
from ends import End
from gevent import get_hub, socket
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)
from peers import errors_of_hub, leaked_fds, open_fds
from traffic import Connection
from ways import Options, Way

import gsplice
from gsplice import _gevent, _hub

#: Seconds for one story of `Transfers`; many times what the longest takes.
DEADLINE = 60.0


class Hang(BaseException):
    """A story has not come to its end."""


class Transfers(RuleBasedStateMachine):
    """Several connections at once, which share the hub and its pipes."""

    connections: Bundle[Connection] = Bundle("connections")
    #: What was done in all stories together.
    counts: ClassVar[collections.Counter[str]] = collections.Counter()
    _keys: ClassVar[Any] = itertools.count(1)

    @classmethod
    def operations(cls) -> int:
        """Return how many things were done in all stories: `counts` without what came of them."""
        return sum(
            number
            for what, number in cls.counts.items()
            if not what.startswith(("bytes", "ended by", "clean end"))
        )

    def __init__(self) -> None:
        super().__init__()
        get_hub()
        _hub.resources().pipes.close()
        self._fds = open_fds()
        self._stats = gsplice.stats()
        self._watchers = get_hub().loop.activecnt  # 0 on libuv, which does not count them
        self._all: list[Connection] = []
        self._hub_errors = errors_of_hub()
        self._errors = self._hub_errors.__enter__()
        self._deadline = gevent.Timeout(DEADLINE, Hang(f"it takes more than {DEADLINE:g} s"))
        self._deadline.start()

    # Connections.

    @initialize(
        target=connections,
        kinds=KINDS,
        is_tight=st.booleans(),
        is_read=st.booleans(),
        begins=BEGINNINGS,
        options=OPTIONS,
    )
    def open_first(self, **choices: Any) -> Connection:
        """Open the connection without which there is nothing to do."""
        return self._open(**choices)

    @rule(
        target=connections,
        kinds=KINDS,
        is_tight=st.booleans(),
        is_read=st.booleans(),
        begins=BEGINNINGS,
        options=OPTIONS,
    )
    def open(self, **choices: Any) -> Connection:
        """Open one more."""
        return self._open(**choices)

    def _open(
        self, kinds: tuple[str, ...], is_tight: bool, is_read: bool, begins: str, options: Options
    ) -> Connection:
        connection = self._connect(kinds, is_tight)
        if is_read:
            for way in connection.ways:
                way.reader.allow(float("inf"))
        if begins == "relay":
            connection.begin_relay(options)
        else:
            connection.begin(connection.ways[: int(begins)], options)
        return connection

    def _connect(self, kinds: tuple[str, ...], is_tight: bool) -> Connection:
        keys = (next(self._keys), next(self._keys))
        connection = Connection(kinds, keys, is_tight, self.counts)
        self._all.append(connection)
        self.counts["open"] += 1
        return connection

    @rule(
        target=connections,
        kinds=KINDS,
        mode=MODES,
        ending=ENDINGS,
    )
    def flood(self, kinds: tuple[str, ...], mode: str, ending: str) -> Connection:
        """Open one where a transfer holds bytes at once, in a pipe if it may; and end it so."""
        connection = self._connect(kinds, is_tight=True)
        idle_timeout = 0.01 if ending == "time out" else None
        connection.flood(
            connection.up, Options(mode, idle_timeout=idle_timeout, by_caller=ending == "kill")
        )
        self.counts["flood"] += 1
        if ending == "stop":
            connection.stop()
        elif ending == "kill":
            connection.kill_callers()
        elif ending == "time out":
            connection.wait_for_ends()
        return connection

    @rule(
        target=connections,
        kinds=KINDS,
        options=STEADY,
        times=st.sampled_from([100, 400]),
        size=st.integers(1, 3000),
    )
    def stream(self, kinds: tuple[str, ...], options: Options, times: int, size: int) -> Connection:
        """Open one with a stream of small writes, long enough to be moderated, and let it come."""
        connection = self._connect(kinds, is_tight=False)
        connection.stream(connection.up, options, times, size)
        self.counts["stream"] += 1
        return connection

    @rule(connection=consumes(connections), naturally=st.booleans())
    def settle(self, connection: Connection, naturally: bool) -> None:
        """See a connection through to its end, and account for it."""
        self._settle(connection, naturally)

    def _settle(self, connection: Connection, naturally: bool) -> None:
        if naturally:
            connection.finish()
        connection.settle()
        connection.close_all()
        self.counts["settle"] += 1

    # What peers do.

    @rule(
        connection=connections,
        is_up=st.booleans(),
        sizes=st.lists(SIZES, min_size=1),
        passes=PASSES,
    )
    def write(self, connection: Connection, is_up: bool, sizes: list[int], passes: int) -> None:
        """Have a peer send."""
        _way(connection, is_up).writer.write(sizes)
        self._pass(passes)

    @rule(
        connection=connections,
        is_up=st.booleans(),
        times=st.integers(1, 200),
        size=st.integers(1, 4096),
        passes=PASSES,
    )
    def drip(self, connection: Connection, is_up: bool, times: int, size: int, passes: int) -> None:
        """Have a peer send a stream of small pieces."""
        _way(connection, is_up).writer.drip(times, size)
        self._pass(passes)

    @rule(connection=connections, is_up=st.booleans(), seconds=MOMENTS)
    def pause(self, connection: Connection, is_up: bool, seconds: float) -> None:
        """Have a peer send nothing for a while, though there is more to come."""
        _way(connection, is_up).writer.pause(seconds)

    @rule(connection=connections, is_up=st.booleans())
    def send_urgent(self, connection: Connection, is_up: bool) -> None:
        """Have a peer send a byte of urgent data, where there is such a thing."""
        way = _way(connection, is_up)
        if way.near.kind.startswith("tcp"):
            way.writer.send_urgent()

    @rule(connection=connections, is_up=st.booleans())
    def half_close(self, connection: Connection, is_up: bool) -> None:
        """Have a peer send the end of file behind all that it was told to send."""
        _way(connection, is_up).writer.end()

    @rule(
        connection=connections,
        is_up=st.booleans(),
        count=st.one_of(SIZES, st.just(float("inf"))),
        piece=st.one_of(st.integers(50, 3000), st.just(131_042)),
        passes=PASSES,
    )
    def read(
        self, connection: Connection, is_up: bool, count: float, piece: int, passes: int
    ) -> None:
        """Have a peer read so much; behind that it is stalled."""
        _way(connection, is_up).reader.allow(count, piece)
        self._pass(passes)

    @rule(connection=connections, number=NUMBERS)
    def reset(self, connection: Connection, number: int) -> None:
        """Have a peer go with a RST."""
        self.counts["reset"] += 1
        connection.reset(_end(connection, number))

    # What the program does that has the transfers.

    @rule(connection=connections, options=OPTIONS, is_up=st.booleans(), passes=PASSES)
    def begin(self, connection: Connection, options: Options, is_up: bool, passes: int) -> None:
        """Begin a transfer in one direction."""
        connection.begin((_way(connection, is_up),), options)
        self._pass(passes)

    @rule(connection=connections, options=OPTIONS, passes=PASSES)
    def begin_relay(self, connection: Connection, options: Options, passes: int) -> None:
        """Begin a relay."""
        connection.begin_relay(options)
        self._pass(passes)

    @rule(
        connection=connections,
        is_up=st.booleans(),
        size=st.sampled_from([1, 100, 8192, 100_000]),
    )
    def read_ahead(self, connection: Connection, is_up: bool, size: int) -> None:
        """Read as a program does that has a ``makefile("rb")``, before it leaves the rest to us."""
        self.counts["read ahead"] += 1
        connection.read_ahead(_way(connection, is_up), size)

    @rule(connection=connections, is_up=st.booleans(), kind=KIND, is_read=st.booleans())
    def turn(self, connection: Connection, is_up: bool, kind: str, is_read: bool) -> None:
        """Stop, and have what is left of one direction go to another sink."""
        connection.turn(_way(connection, is_up), kind, is_read)

    @rule(
        connection=connections,
        is_up=st.booleans(),
        count=SIZES,
        more=SIZES,
        kind=KIND,
        first=OPTIONS,
        then=OPTIONS,
    )
    def divide(
        self,
        connection: Connection,
        is_up: bool,
        count: int,
        more: int,
        kind: str,
        first: Options,
        then: Options,
    ) -> None:
        """Have so many bytes go where they go now, and the rest to another sink."""
        connection.stop()
        if connection.is_troubled:
            return
        way = _way(connection, is_up)
        way.writer.write([count + more])
        way.reader.allow(float("inf"))
        connection.begin((way,), first._replace(count=count))
        connection.wait_for_ends()
        connection.turn(way, kind, is_read=True)
        connection.begin((way,), then)
        self.counts["divide"] += 1

    @rule(connection=connections)
    def stop(self, connection: Connection) -> None:
        """Stop what runs on a connection."""
        self.counts["stop"] += 1
        connection.stop()

    @rule(connection=connections)
    def kill(self, connection: Connection) -> None:
        """Kill those who wait for a transfer of a connection."""
        self.counts["kill"] += 1
        connection.kill_callers()

    @rule(connection=connections, number=NUMBERS)
    def close(self, connection: Connection, number: int) -> None:
        """Close a socket or file under the transfers."""
        self.counts["close"] += 1
        connection.close(_end(connection, number))

    @rule(
        connection=connections,
        number=NUMBERS,
        how=st.sampled_from([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]),
    )
    def shut_down(self, connection: Connection, number: int, how: int) -> None:
        """Shut a socket under the transfers down."""
        self.counts["shutdown"] += 1
        connection.shut_down(_end(connection, number), how)

    # What time does.

    @rule(times=st.integers(1, 50))
    def pass_of_the_loop(self, times: int) -> None:
        """Let the event loop run a few times."""
        self._pass(times)

    def _pass(self, times: int) -> None:
        self.counts["pass of the loop"] += times
        for _ in range(times):
            _gevent.let_loop_pass()

    @rule(seconds=MOMENTS)
    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.counts["sleep"] += 1
        gevent.sleep(seconds)

    # What has to hold.

    @invariant()
    def every_byte_is_the_right_one(self) -> None:
        """Nobody has received anything but what comes next in its stream; the figures add up."""
        for connection in self._all:
            if not connection.is_settled:
                connection.check()
        assert not self._errors, f"errors that nobody saw: {self._errors}"
        now, before = gsplice.stats(), self._stats
        moved = sum(way.moved for connection in self._all for way in connection.ways)
        assert now.spliced + now.copied - before.spliced - before.copied == moved

    def teardown(self) -> None:
        """Settle everything, and look for what is left."""
        try:
            for number, connection in enumerate(self._all):
                if not connection.is_settled:
                    self._settle(connection, naturally=number % 2 == 0)
            self._check_figures()
        finally:
            self._deadline.close()
            for connection in self._all:
                connection.close_all()
            self._hub_errors.__exit__(None, None, None)
        _gevent.let_loop_pass()  # greenlets that were killed have gone
        watchers = get_hub().loop.activecnt - self._watchers
        assert watchers <= 0, f"{watchers} watchers are left"
        leaked = leaked_fds(self._fds)
        assert not leaked, f"left open: {leaked}"
        assert not self._errors, f"errors that nobody saw: {self._errors}"

    def _check_figures(self) -> None:
        now = gsplice.stats()
        ways = [way for connection in self._all for way in connection.ways]
        spliced = sum(way.spliced for way in ways)
        moved = sum(way.delivered for way in ways)
        before = self._stats  # with what a story that failed may have left
        lent = now.pipes - now.idle_pipes
        assert now.active == before.active, "a transfer is over, and counts as active"
        assert lent == before.pipes - before.idle_pipes, "a pipe is lent to nobody"
        assert now.spliced - before.spliced == spliced
        assert now.copied - before.copied == moved - spliced
        self.counts["bytes"] += moved
        self.counts["bytes spliced"] += spliced


def _way(connection: Connection, is_up: bool) -> Way:
    return connection.up if is_up else connection.down


def _end(connection: Connection, number: int) -> End:
    return connection.ends[number % len(connection.ends)]
