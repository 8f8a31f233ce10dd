"""From a socket to a socket or a file: the engine of most transfers.

It runs in callbacks on the hub, through the sockets' own watchers; no greenlet is switched to for
a message.

Invariant: while bytes are held (`_pending`, or in `_pipe`) it waits for the sink, otherwise for
what is next to read (`_reading`). So nothing is taken from the source before the sink has accepted
what was taken before, and end of file is met with nothing held.

Small reads are copied through the hub's scratch buffer: for them two system calls that copy cost
less than two that splice. A read that fills the buffer is the sign of a stream: then a pipe is
lent for each round and given back at its end, until rounds bring little again. If they do, it may
have been a large message among small ones. From then on there is more room in the buffer for the
next one, and reads that do not fill it are the sign of a stream when two in a row are large.

What splice(2) says of an empty socket is not believed: at an urgent mark it answers EAGAIN for
ever, and 0 once the peer has sent FIN (tcp(7)). Both mean that it is recv(2)'s turn, which passes
the mark as it would in a loop of recv and sendall.
"""

from __future__ import annotations

import errno
from typing import Final, NoReturn

from gevent.socket import AF_UNIX

from gsplice import _account, _gevent, _hub, _kernel
from gsplice._direction import Owner
from gsplice._endpoint import FileSink, SocketSink, SocketSource
from gsplice._gevent import GeventSocket
from gsplice._pipe import PIPE_CAPACITY, Pipe
from gsplice._reading import ReadingDirection

#: A round that splices less than this would have been cheaper to copy.
_SHORT: Final = 8 * 1024
#: Bytes: the most that a round splices into a unix socket: about what its send queue takes, unless
#: somebody has set it. What waited in the pipe meanwhile would have left the caches.
_UNIX_ROUND: Final = 256 * 1024
#: Where so much is wanted, a stream is expected, and not waited for.
_MUCH: Final = 64 * 1024
#: So many short rounds in a row, and reads are copied again.
_SHORT_ROUNDS: Final = 2
#: So many large reads in a row, and rounds are spliced, where one alone was a mistake.
_LARGE_READS: Final = 2
#: So many rounds at the end of a relay, at the most, so that a source that goes on is not followed.
_LAST_ROUNDS: Final = 64


class Pump(ReadingDirection):
    """Moves bytes from a real stream socket."""

    __slots__ = (
        "_always_splice",
        "_buffer",
        "_large_reads",
        "_large_reads_to_go",
        "_may_splice",
        "_pending",
        "_pipe",
        "_pipes",
        "_raw_source",
        "_round",
        "_short_rounds",
        "_sink",
        "_streaming",
    )

    _sink: SocketSink | FileSink

    def __init__(
        self,
        source: SocketSource,
        sink: SocketSink | FileSink,
        count: int | None,
        mode: str,
        moderation: float,
        owner: Owner,
    ) -> None:
        super().__init__(source, count, moderation, owner)
        self._raw_source = _gevent.raw_socket(source.socket)
        self._sink = sink
        shared = _hub.resources()
        self._pipes = shared.pipes
        is_unix = isinstance(sink, SocketSink) and _gevent.socket_family(sink.socket) == AF_UNIX
        self._round = _UNIX_ROUND if is_unix else PIPE_CAPACITY
        self._pending = b""
        self._pipe: Pipe | None = None
        self._may_splice = mode != "copy"
        self._buffer = shared.small_scratch if self._may_splice else shared.scratch
        self._always_splice = mode == "splice"
        expected = self._may_splice and count is not None and count >= _MUCH
        self._streaming = self._always_splice or expected
        self._short_rounds = 0
        self._large_reads = self._large_reads_to_go = 1  # until it is a stream

    def sockets(self) -> list[GeventSocket]:
        """Return the source, and the sink if it is one."""
        ends = [self._source, self._sink]
        return [end.socket for end in ends if not isinstance(end, FileSink)]

    # What the hub calls.

    def on_readable(self) -> bool:
        """The source has bytes, its end, or an error; see `ReadingDirection`."""
        try:
            self._in_step = True
            if self._owner is None:
                return False
            # `_holds_bytes` and `_step_is_made` stand here inline: it is the path of every small
            # message.
            if self._pipe is None and not self._pending:
                if not (self._splice() if self._streaming else self._copy()):
                    self._wait()
                self._until_look -= 1
                if not self._until_look:
                    self._look()
            self._in_step = False
            if self._end_is_due is not None:
                self.fail(self._end_is_due)
        except BaseException as error:
            self._failed(error)
        return self._streaming or self._large_reads_to_go < self._large_reads

    def on_writable(self, events: int = 1) -> None:
        """The sink has room, or an error."""
        try:
            self._in_step = True
            if self._owner is None:
                return
            # The source of a stream mostly has more: asking it costs less than two watchers.
            self._go_on(drained=not (self._deliver() and self._take()))
            if events < 0:
                self._poll_again()
            self._step_is_made()
        except BaseException as error:
            self._failed(error)

    def take_what_has_come(self) -> None:
        """Move what the source has received already, as far as the sink takes it now."""
        try:
            rounds = _LAST_ROUNDS if not self._holds_bytes() or self._deliver() else 0
            while rounds and self._owner is not None and self._take():
                rounds -= 1
        except BaseException as error:
            self._failed(error)

    # The steps. Each returns whether to go on just as before: everything that was taken has been
    # accepted, and more may come. Where it returns False, `_wait` finds out what is next.

    def _begin(self) -> None:
        self._pending = self._source.take_buffered(self._remaining)  # first to say it is in use
        self._count_down(len(self._pending))
        _gevent.check_unused(_gevent.read_watcher(self._source.socket))
        if not self._pending or self._deliver():
            self._take()
        self._wait()

    def _take(self) -> bool:
        if self._remaining == 0:
            return False
        return self._splice() if self._streaming else self._copy()

    def _copy(self) -> bool:
        """Receive into the scratch buffer, and send what came.

        `_count_down` and `_accepted` stand here inline: it is the path of every small message.
        """
        buffer = self._buffer
        if self._remaining is not None:
            buffer = buffer[: self._remaining]
        try:
            count = self._raw_source.recv_into(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            self._cannot_take(error)
        if not count:
            self._finish()
            return False
        if self._remaining is not None:
            self._remaining -= count
        try:
            sent = self._sink.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except BaseException:
            self._pending = bytes(buffer[:count])
            raise
        self.moved += sent
        if self._watchdog is not None:
            self._watchdog.touch()
        if sent < count:
            self._pending = bytes(buffer[sent:count])
            return False
        if count < _hub.LARGE_READ:
            self._large_reads_to_go = self._large_reads
        else:
            self._large_reads_to_go -= 1
            if self._may_splice and (self._large_reads_to_go <= 0 or count == len(self._buffer)):
                self._streaming = True
                self._short_rounds = 0
        return self._remaining != 0

    def _splice(self) -> bool:
        """Fill a pipe from the source, and empty it into the sink."""
        pipe = self._pipes.lend()
        if pipe is None:
            # It is a stream all the same; the next large read, or the next at all, asks again.
            self._streaming = self._always_splice
            self._buffer = _hub.resources().scratch
            return self._copy()
        self._pipe = pipe  # so that `_take_back` finds what an exception leaves in it
        pipe.held = self._fill(pipe)
        if not pipe.held:
            self._pipe = None
            self._pipes.give_back(pipe)
            return self._copy()
        self._count_down(pipe.held)
        if pipe.held >= _SHORT:
            self._short_rounds = 0
        elif not self._always_splice:
            self._short_rounds += 1
            if self._short_rounds == _SHORT_ROUNDS:
                self._streaming = False
                self._buffer = _hub.resources().message_scratch
                self._large_reads = self._large_reads_to_go = _LARGE_READS
        return self._empty() and self._remaining != 0

    def _fill(self, pipe: Pipe) -> int:
        """Splice from the source; return how much, 0 where it is for recv to say what is there."""
        limit = min(pipe.capacity, self._round)
        if self._remaining is not None:
            limit = min(limit, self._remaining)
        try:
            return _kernel.splice(self._raw_source.fileno(), pipe.write_fd, limit)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _kernel.REFUSALS:
                self._cannot_take(error)
            self._give_up_splicing(error)
            return 0

    def _deliver(self) -> bool:
        """Give the sink what is held; return whether it has accepted all of it."""
        if self._pipe is not None:
            return self._empty()
        try:
            sent = self._sink.send(self._pending)
        except BlockingIOError:
            return False
        self._pending = self._pending[sent:]
        self._accepted(sent)
        return not self._pending

    def _empty(self) -> bool:
        """Splice into the sink; return whether it has accepted all that the pipe held."""
        pipe = self._pipe
        assert pipe is not None
        try:
            sent = self._sink.splice_from(pipe)
        except BlockingIOError:
            return False
        except OSError as error:
            self._give_up_splicing(error)
            self._pending = self._take_back()
            return self._deliver()
        pipe.held -= sent
        self.spliced += sent
        self._accepted(sent)
        if pipe.held:
            return False
        self._pipe = None
        self._pipes.give_back(pipe)
        return True

    def _wait(self) -> None:
        """Wait for what has to come next, or end where nothing has to."""
        if self._owner is None:
            return
        if self._holds_bytes():
            self._wait_for_sink()
        elif self._remaining == 0:
            self._finish()
        else:
            self._wait_for_more()

    def _wait_for_sink(self) -> None:
        if isinstance(self._sink, SocketSink):
            sock = self._sink.socket
            self._wait_for(sock, _gevent.write_watcher(sock), self.on_writable)
        else:
            # A file is always ready, and says with an error what made a write short.
            while not self._deliver():
                pass
            self._wait()

    def _holds_bytes(self) -> bool:
        return self._pipe is not None or bool(self._pending)

    def _give_up_splicing(self, error: OSError) -> None:
        """Copy from now on, where the kernel refuses this pair; no byte is lost by a refusal."""
        if error.errno not in _kernel.REFUSALS:
            raise error
        self._may_splice = self._always_splice = self._streaming = False
        self._buffer = _hub.resources().scratch
        _account.fell_back(errno.errorcode[error.errno])

    def _cannot_take(self, error: OSError) -> NoReturn:
        """Raise what reading from the source would have raised where it met *error*."""
        raise self._source.failed(error)

    def throw(self, error: BaseException | type[BaseException]) -> None:
        """End the wait that is under way, for the source or the sink, with *error*."""
        waits_for_source = self._owner is not None and not self._holds_bytes()
        if waits_for_source and isinstance(error, OSError):
            error = self._source.failed(error)
        super().throw(error)

    def _settle(self) -> None:
        self._sink.settle()

    def _take_back(self) -> bytes:
        pending, self._pending = self._pending, b""
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return pending
        try:
            held, left = pipe.held, pipe.take_back()
        finally:
            self._pipes.discard(pipe)
        if (gone := held - len(left)) > 0:  # an exception came between the call and the count
            self.moved += gone
            self.spliced += gone
            self._sink.catch_up(gone)
        return pending + left

    def abandon(self) -> None:
        """Move nothing any more, and tell nobody (in a forked child)."""
        super().abandon()
        if self._pipe is not None:
            self._pipes.discard(self._pipe)
            self._pipe = None
        # A signal handler may have forked, between two calls of a round that goes on in here.
        del self._raw_source, self._sink

    def _release(self) -> None:
        super()._release()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._pipes.discard(pipe)
