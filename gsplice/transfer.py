"""One direction: `copy`, and `Transfer`, the object behind it.

Here the ends are looked at and the engine that fits them is chosen. The bytes, and what went wrong
with them, are the engine's affair.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

from gevent.exceptions import InvalidThreadUseError

from gsplice import _account, _kernel, _options, _recognition
from gsplice._body import BodySource
from gsplice._body_engine import BodyEngine
from gsplice._direction import Owner
from gsplice._endpoint import FileSink, FileSource, Sink, SocketSink, SocketSource, Source
from gsplice._methods import MethodCopy
from gsplice._pump import Pump
from gsplice._sendfile import FileSender
from gsplice._task import Task
from gsplice._watchdog import WaitWatchdog

_Engine: TypeAlias = Pump | FileSender | BodyEngine | MethodCopy


class Transfer(Task):
    """One direction: bytes from *src* to *dst*, until end of file or *count* of them.

    The parameters are those of `copy`. Bad ones raise here, what goes wrong later is raised by
    `get`, and `get` returns the number of bytes. Neither end is shut down or closed.

    :param idle_timeout: seconds without a byte after which it fails with `socket.timeout`. A byte
        counts when it is moved, and again when it reaches the sink's peer. (Where some are still on
        their way there, the end may be late by a quarter of the time: that is how often one looks.)
    """

    __slots__ = ("_engine", "_idle_timeout")

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> int: ...  # type: ignore[override]

    def __init__(
        self,
        src: Any,
        dst: Any,
        count: int | None = None,
        *,
        idle_timeout: float | None = None,
        mode: str = "auto",
        moderation: float = _options.MODERATION,
    ) -> None:
        super().__init__()
        limit = _options.count(count)
        mode = _options.mode(mode)
        seconds = _options.seconds("idle_timeout", idle_timeout)
        bound = _options.moderation(moderation)
        source, sink = _recognition.source(src), _recognition.sink(dst)
        self._set_up(source, sink, limit, mode, bound, seconds)

    def _set_up(
        self,
        source: Source,
        sink: Sink,
        count: int | None,
        mode: str,
        moderation: float,
        idle_timeout: float | None = None,
    ) -> None:
        self._idle_timeout = idle_timeout
        self._engine = _engine(source, sink, count, mode, moderation, self)

    @property
    def moved(self) -> int:
        """Bytes that the sink has accepted."""
        return self._engine.moved

    @property
    def spliced(self) -> int:
        """Those of them that went kernel to kernel."""
        return self._engine.spliced

    @property
    def undelivered(self) -> bytes:
        """The bytes taken from the source that the sink has not accepted.

        ``b""`` but after a transfer that was stopped or failed. `moved` and the length of this
        are together exactly what has left the source.
        """
        return self._engine.undelivered

    def run(self) -> int:
        """Move everything while the calling greenlet waits; return how many bytes it was."""
        try:
            if isinstance(self._engine, MethodCopy) and self._is_for_the_caller():
                self._started = True  # its methods wait by themselves: no other greenlet is needed
                self._prepare()
                self._engine.run()
            return self.start().get()
        finally:
            self.stop()
            del self  # what is raised refers to this frame, and the transfer to what is raised

    def _is_for_the_caller(self) -> bool:
        return self._idle_timeout is None and not self._started and not self.ready()

    def _prepare(self) -> None:
        try:
            self._engine.prepare()
        except BaseException as error:
            self._fail(error)
            raise

    def _begin(self) -> None:
        with contextlib.suppress(Exception):  # it has failed with that; the rest is the caller's
            self._prepare()
        if not self.ready():  # else it failed, or was stopped meanwhile
            self._watch()
            self._engine.start()

    def _watch(self) -> None:
        """Have the time-outs kept: the sockets' own, and the idle one."""
        timeouts = [self._idle_timeout, *(sock.timeout for sock in self._engine.sockets())]
        if any(timeout is not None for timeout in timeouts):
            sink = self._engine.sends_on()
            sinks = () if sink is None else (sink,)
            self._watchdog = WaitWatchdog(self._idle_timeout, self._timed_out, sinks)
            self._watchdog.start()
            self._engine.watch_over(self._watchdog)

    def _timed_out(self) -> None:
        self._engine.throw(TimeoutError("timed out"))

    def _join(self) -> None:
        self._engine.join()

    def _fail(self, error: BaseException) -> None:
        self._engine.fail(error)

    def ended(self, error: BaseException | None) -> None:
        """Take note of the engine's end."""
        self._stop_watchdog()
        if error is None:
            self.set(self._engine.moved)
        else:
            self.set_exception(error)


def copy(
    src: Any,
    dst: Any,
    count: int | None = None,
    *,
    mode: str = "auto",
    moderation: float = _options.MODERATION,
) -> int:
    """Move bytes from *src* to *dst* until end of file, or *count* of them; return how many.

    Neither end is shut down or closed. Fewer than *count* come back only at end of file. *src*
    may be *dst* (an echo). Each wait for a socket is bounded by its own ``settimeout``.

    :param src: a stream socket, a ``makefile("rb")`` reader on one, a regular file opened in
        binary mode, or any object with ``recv_into``, ``recv`` or ``read``.
    :param dst: a stream socket, a writer on one, a regular file opened in binary mode for
        writing, or any object with ``sendall`` or ``write``.
    :param count: the most to move, in bytes; None for all. 0 makes no system call.
    :param mode: ``"auto"`` chooses by what flows, ``"splice"`` splices whenever the pair can,
        ``"copy"`` never does. The environment variable ``GSPLICE_MODE`` says what auto means.
    :param moderation: seconds that a byte of a stream of small writes may wait for company, of
        which no more than a millisecond is made use of; 0 turns it off, and so does what is less
        than a millisecond, as gevent's event loops count in those.
    :raises OSError: what ``recv`` and ``sendall`` would have raised on the same sockets;
        `socket.timeout` where a wait took longer than the socket's own time-out.
    :raises TypeError: where an argument is no source, no sink or no number.
    :raises ValueError: for a bad mode, a negative number, or a socket in non-blocking mode.
    """
    return Transfer(src, dst, count, mode=mode, moderation=moderation).run()


def can_splice(src: Any, dst: Any) -> bool:
    """Return whether bytes from *src* to *dst* would be spliced in mode "auto"; neither is touched.

    It is False, not an error, for what is no source or no sink.
    """
    try:
        source, sink, mode = _recognition.source(src), _recognition.sink(dst), _options.mode("auto")
    except (TypeError, ValueError, OSError, InvalidThreadUseError):
        return False
    return _splices(source, sink, None, mode)


def _splices(source: Source, sink: Sink, count: int | None, mode: str) -> bool:
    """Return whether this pair is spliced, as far as one can tell without trying."""
    if mode == "copy" or (isinstance(sink, FileSink) and sink.appends()):
        return False
    if isinstance(source, FileSource):
        return isinstance(sink, SocketSink) and _kernel.HAVE_SENDFILE
    if isinstance(source, BodySource) and mode == "auto" and source.is_small(count):
        return False
    spliceable = isinstance(source, SocketSource) and isinstance(sink, SocketSink | FileSink)
    return spliceable and _kernel.HAVE_SPLICE


def _spliced_mode(mode: str, have_call: bool, name: str) -> str:
    """Return *mode*, or "copy" where this platform has not got the call it needs."""
    if mode == "copy" or have_call:
        return mode
    _account.fell_back(f"no os.{name}")
    return "copy"


def _engine(
    source: Source, sink: Sink, count: int | None, mode: str, moderation: float, owner: Owner
) -> _Engine:
    if isinstance(source, SocketSource) and isinstance(sink, SocketSink | FileSink):
        if isinstance(source, BodySource):
            if count == 0 or not _splices(source, sink, count, mode):
                return MethodCopy(source, sink, count, owner)
            return BodyEngine(source, sink, count, mode, moderation, owner)
        mode = _spliced_mode(mode, _kernel.HAVE_SPLICE, "splice")
        return Pump(source, sink, count, mode, moderation, owner)
    if isinstance(source, FileSource) and isinstance(sink, SocketSink):
        mode = _spliced_mode(mode, _kernel.HAVE_SENDFILE, "sendfile")
        return FileSender(source, sink, count, mode, owner)
    return MethodCopy(source, sink, count, owner)
