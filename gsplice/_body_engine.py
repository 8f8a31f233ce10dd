"""A message's body: its bytes from the socket under it, its end from the object itself.

Two engines do that, one after the other: a pump on the socket, and then a copy that asks the object
for more. The object has been told of every byte by then, and meets the end of its body as in any
loop: it gives its connection back to a pool, say, or raises because the body is too short.

Invariant: one of the two is at work at a time, and the object knows what the pump has taken before
the copy begins. To whoever owns the pair it is one engine: it ends once, `moved` is the sum of
both, and `undelivered` belongs to the one that was at work.
"""

from __future__ import annotations

from gsplice._body import BodySource
from gsplice._direction import Owner
from gsplice._endpoint import FileSink, SocketSink
from gsplice._gevent import GeventSocket
from gsplice._methods import MethodCopy
from gsplice._pump import Pump
from gsplice._watchdog import Watchdog


class BodyEngine:
    """Moves the bytes of a body that is seen through."""

    __slots__ = ("_limit", "_owner", "_pump", "_rest", "_sink", "_source", "_watchdog")

    def __init__(
        self,
        source: BodySource,
        sink: SocketSink | FileSink,
        count: int | None,
        mode: str,
        moderation: float,
        owner: Owner,
    ) -> None:
        self._source = source
        self._sink = sink
        self._limit = count
        self._owner: Owner | None = owner
        self._watchdog: Watchdog | None = None
        self._pump = Pump(source, sink, source.first_count(count), mode, moderation, self)
        self._rest: MethodCopy | None = None  # once the pump has ended

    @property
    def moved(self) -> int:
        """Bytes that the sink has accepted."""
        return self._pump.moved + (0 if self._rest is None else self._rest.moved)

    @property
    def spliced(self) -> int:
        """Those of them that went kernel to kernel."""
        return self._pump.spliced

    @property
    def undelivered(self) -> bytes:
        """The bytes taken from the body that the sink has not accepted."""
        return self._at_work().undelivered

    def _at_work(self) -> Pump | MethodCopy:
        return self._pump if self._rest is None else self._rest

    def sockets(self) -> list[GeventSocket]:
        """Return the sockets for which the pump waits; the object waits by itself."""
        return self._pump.sockets()

    def watch_over(self, watchdog: Watchdog) -> None:
        """Have *watchdog* told of each byte, and each wait; it stays its owner's to stop."""
        self._watchdog = watchdog
        self._pump.watch_over(watchdog)

    def prepare(self) -> None:
        """Do what comes before the first byte; it may wait."""
        self._pump.prepare()
        self._source.body.prepare()

    def sends_on(self) -> GeventSocket | None:
        """Return the socket in whose send queue bytes wait, if there is one."""
        return self._sink.sends_on()

    def start(self) -> None:
        """Begin to move bytes; the owner is told of the end, whatever it is."""
        self._pump.start()

    def fail(self, error: BaseException) -> None:
        """End at once with *error*; after the end it does nothing."""
        self._at_work().fail(error)

    def throw(self, error: BaseException) -> None:
        """End a wait with *error*."""
        self._at_work().throw(error)

    def join(self) -> None:
        """Wait until nothing of it waits for a socket any more, after the end."""
        self._at_work().join()

    def ended(self, error: BaseException | None) -> None:
        """One of the two has ended: tell the object, and go on with it or tell the owner."""
        if self._rest is None:
            error = self._tell(error)
            if error is None and self._asks_for_more():
                self._go_on()
                return
        self._watchdog = None
        owner, self._owner = self._owner, None
        assert owner is not None
        owner.ended(error)

    def _tell(self, error: BaseException | None) -> BaseException | None:
        """Have the object know what the pump has taken; return what has gone wrong, if anything."""
        try:
            self._source.body.took(self._pump.moved + len(self._pump.undelivered))
        except Exception as failure:  # a library's: raised into the hub, it would tell nobody
            return error or failure.with_traceback(None)
        return error

    def _asks_for_more(self) -> bool:
        """Whether the object has more to say: bytes, or what it does at the end of its body."""
        return self.moved != self._limit or self._source.is_over(self._limit)

    def _go_on(self) -> None:
        rest = None if self._limit is None else self._limit - self.moved
        rest = rest or None  # at its end it has nothing to give, and is to be asked
        self._rest = MethodCopy(self._source, self._sink, rest, self)
        if self._watchdog is not None:
            self._watchdog.begin_wait(None)  # the methods keep their sockets' own time-outs
            self._rest.watch_over(self._watchdog)
        self._rest.start()
