"""What is sent through a relay: the regimes that are measured."""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Regime:
    """``size`` bytes a write, or a message, on each of ``connections`` at the same time."""

    name: str
    size: int
    connections: int


@dataclass(frozen=True)
class OneWay(Regime):
    """A client that writes without a pause; what comes out at the backend is counted.

    It is a plain program, which leaves it to the kernel how much goes into a segment; with
    ``no_delay`` (``TCP_NODELAY``) every write is a segment of its own.
    """

    no_delay: bool = False


@dataclass(frozen=True)
class PingPong(Regime):
    """A client that sends the next message when the whole of the last one has come back."""


REGIMES: tuple[Regime, ...] = (
    OneWay("one-way-1k", 1 * KIB, 1),
    OneWay("one-way-4k", 4 * KIB, 1),
    OneWay("one-way-16k", 16 * KIB, 1),
    OneWay("one-way-64k", 64 * KIB, 1),
    OneWay("one-way-512k", 512 * KIB, 1),
    OneWay("one-way-64k-x8", 64 * KIB, 8),
    OneWay("one-way-1k-nodelay", 1 * KIB, 1, no_delay=True),
    OneWay("one-way-4k-nodelay", 4 * KIB, 1, no_delay=True),
    PingPong("ping-pong-256", 256, 1),
    PingPong("ping-pong-256-x32", 256, 32),
    PingPong("ping-pong-64k-x8", 64 * KIB, 8),
)
