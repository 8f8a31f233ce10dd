"""Subclasses that do something to the bytes: their methods are called, their fd is not touched."""

from __future__ import annotations

from typing import Any

from gevent import socket


class CountingReceiver(socket.socket):
    """Counts in recv."""

    counted = 0

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        self.counted += len(data)
        return data


class CountingReceiverInto(socket.socket):
    """Counts in recv_into."""

    counted = 0

    def recv_into(self, *args: Any) -> int:
        count: int = super().recv_into(*args)
        self.counted += count
        return count


class CountingSender(socket.socket):
    """Counts in send, which sendall calls; takes no more than 1000 bytes at once."""

    counted = 0

    def send(self, data: Any, *args: Any, **kwargs: Any) -> int:
        sent: int = super().send(memoryview(data)[:1000], *args, **kwargs)
        self.counted += sent
        return sent


class CountingSenderOfAll(socket.socket):
    """Counts in sendall."""

    counted = 0

    def sendall(self, data: Any, flags: int = 0) -> Any:
        self.counted += len(data)
        return super().sendall(data, flags)


class PlainSubclass(socket.socket):
    """Overrides nothing that the bytes go through."""

    def close(self) -> None:
        super().close()


def turned_into(cls: type[socket.socket], sock: socket.socket) -> Any:
    """Return a *cls* on the fd of *sock*, which is closed."""
    family, kind, protocol = sock.family, sock.type, sock.proto
    return cls(family, kind, protocol, fileno=sock.detach())
