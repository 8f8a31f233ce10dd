"""From a regular file to a socket, with sendfile(2).

It runs in callbacks on the hub whenever the socket has room. What the socket has room for now can
be sent before, without any of that: `send_at_once`.

Invariant: a byte has left the file when the socket has accepted it. Nothing is held, so nothing
can be stuck: where sendfile is refused, or not wanted, the bytes are read at the same offset and
the offset moves by what ``send`` has taken.
"""

from __future__ import annotations

import errno
from typing import Final

from gsplice import _account, _gevent, _kernel, _options
from gsplice._direction import Owner, WatchingDirection
from gsplice._endpoint import FileSource, SocketSink
from gsplice._gevent import GeventSocket

#: The most that one callback sends, so that other transfers and timers have their turn.
_ROUND: Final = 1024 * 1024
#: The most that is read at once where it is copied.
_BLOCK: Final = 64 * 1024


def send_at_once(source: FileSource, offset: int, sock: GeventSocket, count: int) -> int:
    """Send what *sock* has room for now of the *count* bytes at *offset*; return how much.

    That may be nothing. What is left is for a transfer, from the file's position, which has been
    moved on. Where nothing is left, a transfer would have cost more than the bytes.

    :raises OSError: what sending met, unless it has to wait, or the bytes have to be copied.
    """
    if not _kernel.HAVE_SENDFILE or _options.mode("auto") == "copy":
        return 0
    file = source.file
    try:
        sent = _kernel.sendfile(sock.fileno(), file.fileno(), offset, min(count, _ROUND))
    except OSError as error:
        if isinstance(error, BlockingIOError) or error.errno in _kernel.REFUSALS:
            return 0
        raise
    file.seek(offset + sent)
    _account.sent_at_once(sent)
    return sent


class FileSender(WatchingDirection):
    """Moves bytes from a regular file to a real stream socket."""

    __slots__ = ("_copies", "_file", "_offset", "_sink")

    _sink: SocketSink

    def __init__(
        self, source: FileSource, sink: SocketSink, count: int | None, mode: str, owner: Owner
    ) -> None:
        super().__init__(count, owner)
        self._file = source.file
        self._sink = sink
        self._offset = -1  # of the next byte, once it has begun
        self._copies = mode == "copy"

    def sockets(self) -> list[GeventSocket]:
        """Return the sink."""
        return [self._sink.socket]

    def on_writable(self, events: int = 1) -> None:
        """The sink has room, or an error."""
        self._in_step = True
        try:
            if self._owner is None:
                return
            self._send_round()
            if events < 0:
                self._poll_again()
            self._step_is_made()
        except BaseException as error:
            self._failed(error)

    def abandon(self) -> None:
        """Move nothing any more, and tell nobody (in a forked child)."""
        super().abandon()
        del self._sink  # as in `Pump.abandon`

    def _begin(self) -> None:
        self._offset = self._file.tell()
        self._send_round()

    def _send_round(self) -> None:
        round_ends = self.moved + _ROUND
        while self.moved < round_ends:
            length = round_ends - self.moved
            if self._remaining is not None:
                length = min(length, self._remaining)
            if self._copies:
                length = min(length, _BLOCK)
            try:
                count = self._send(length)
            except BlockingIOError:
                self._wait()
                return
            self._accepted(count)
            self._count_down(count)
            self._offset += count
            if not count or self._remaining == 0:
                self._finish()
                return
            if count < length:
                break
        # A socket that has taken the last byte may have no room for another, and there is none to
        # wait for: so the end is asked of the file.
        if self._is_at_end():
            self._finish()
        else:
            self._wait()

    def _is_at_end(self) -> bool:
        try:
            return not _kernel.pread(self._file.fileno(), 1, self._offset)
        except BlockingIOError:  # a file system in user space may say anything
            return False

    def _send(self, length: int) -> int:
        """Send at most *length* bytes; return how many, 0 at end of file."""
        file = self._file.fileno()
        if not self._copies:
            try:
                count = self._sink.send_file(file, self._offset, length)
                self.spliced += count
                return count
            except OSError as error:
                if error.errno not in _kernel.REFUSALS:
                    raise
                self._copies = True
                _account.fell_back(errno.errorcode[error.errno])
        data = _kernel.pread(file, min(length, _BLOCK), self._offset)
        return self._sink.send(data) if data else 0

    def _wait(self) -> None:
        sock = self._sink.socket
        self._wait_for(sock, _gevent.write_watcher(sock), self.on_writable)

    def _settle(self) -> None:
        if self._offset >= 0:
            self._file.seek(self._offset)

    def _take_back(self) -> bytes:
        return b""
