"""The two ends of a relay as asyncio's protocols.

Invariant: an end reads only while its peer is there and has room to write; it is closed when
either end is lost, or when both have sent their last byte.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class End(asyncio.Protocol):
    """What one end receives, the other one sends."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.peer: End | None = None
        self.has_ended = False
        self.early = b""  # uvloop reads once, though it was told not to when it began

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def join(self, peer: "End") -> None:
        self.peer, peer.peer = peer, self

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self.early += data
            self.transport.pause_reading()
        else:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.has_ended = True
        if self.peer is None:
            return True
        if self.peer.has_ended:
            self.peer.transport.close()
            return False
        self.peer.transport.write_eof()
        return True  # it may still be written to

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer is not None:
            self.peer.transport.close()


class Client(End):
    """The end that has been accepted: it is read from once the other one is connected."""

    def __init__(self, connect: Callable[[End], Awaitable[None]]) -> None:
        super().__init__()
        self._connect = connect

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        self._task = asyncio.get_running_loop().create_task(self._meet())

    async def _meet(self) -> None:
        backend = End()
        try:
            await self._connect(backend)
        except OSError:
            self.transport.close()
            return
        self.join(backend)
        if self.early:
            backend.transport.write(self.early)
        if self.has_ended:
            backend.transport.write_eof()
        if self.transport.is_closing():
            backend.transport.close()
        else:
            self.transport.resume_reading()
