"""What is sent through a relay: the regimes that are measured."""

import resource
from dataclasses import dataclass
from typing import ClassVar

from bench import places
from bench.peers import BACKEND, CLIENT, CONNECTIONS

KIB = 1024
MIB = 1024 * KIB
MOST_RELAYS = 10_000
SPARE_FDS = 200  # what a process has open besides

SINK, ECHO = (BACKEND, "sink"), (BACKEND, "echo")


@dataclass(frozen=True)
class Unit:
    """What is counted, and how a rate and the cost of it are shown."""

    rate: str
    rate_scale: float
    cost: str
    cost_scale: float
    cost_digits: int


OF_BYTES = Unit("MB/s", 1e-6, "CPU s/GB", 1e9, 3)
OF_MESSAGES = Unit("messages/s", 1.0, "CPU µs/message", 1e6, 1)
OF_CONNECTIONS = Unit("connections/s", 1.0, "CPU µs/connection", 1e6, 1)


@dataclass(frozen=True)
class Regime:
    """``size`` bytes a write, or a message, on each of ``connections`` at the same time."""

    name: str
    size: int
    connections: int


@dataclass(frozen=True)
class RelayRegime(Regime):
    """A client, a relay and a backend, all at a place.

    The client or the backend, whoever observes, counts in the regime's unit. ``also`` are
    contenders that else take part only when they are named.
    """

    place: places.Place = places.LOOPBACK
    also: tuple[str, ...] = ()

    what: ClassVar[str]
    unit: ClassVar[Unit]
    client: ClassVar[tuple[str, str]]
    backend: ClassVar[tuple[str, str] | None]
    backend_observes: ClassVar[bool] = False
    connections_last: ClassVar[bool] = True  # for the whole of a measurement

    @property
    def client_program(self) -> tuple[str, str]:
        """The program and the role that it has."""
        return self.client

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the writes or messages, one after another, and then the first again."""
        return (self.size,)


@dataclass(frozen=True)
class OneWay(RelayRegime):
    """A client that writes without a pause; what comes out at the backend is counted.

    It is a plain program, which leaves it to the kernel how much goes into a segment; with
    ``no_delay`` (``TCP_NODELAY``) every write is a segment of its own.
    """

    no_delay: bool = False

    what = "writes"
    unit = OF_BYTES
    client = (CLIENT, "write")
    backend = SINK
    backend_observes = True

    @property
    def client_program(self) -> tuple[str, str]:
        return (CLIENT, "write-no-delay") if self.no_delay else self.client


@dataclass(frozen=True)
class PingPong(RelayRegime):
    """A client that sends the next message when the whole of the last one has come back."""

    what = "messages"
    unit = OF_MESSAGES
    client = (CLIENT, "ping")
    backend = ECHO


# Nine of ten messages are under 1 KiB, nine of ten bytes are in the tenth message. The nine come to
# 4,648 bytes, and the mean of all is that as well.
SMALL_ONES = (64, 128, 256, 384, 512, 640, 768, 896, 1000)
MIXED = (*SMALL_ONES, 9 * sum(SMALL_ONES))
MEAN_OF_MIXED = sum(MIXED) // len(MIXED)


@dataclass(frozen=True)
class MixedOneWay(OneWay):
    """Writes of many sizes."""

    sizes = MIXED


@dataclass(frozen=True)
class MixedPingPong(PingPong):
    """Messages of many sizes."""

    sizes = MIXED


@dataclass(frozen=True)
class Transfers(RelayRegime):
    """A client that makes a connection, sends so many bytes and ends it, again and again."""

    what = "transfers, each on a connection of its own,"
    unit = OF_BYTES
    client = (CONNECTIONS, "transfer")
    backend = SINK
    connections_last = False


@dataclass(frozen=True)
class ShortConnections(RelayRegime):
    """A client that makes a connection for each message, which comes back on it."""

    what = "messages, each on a connection of its own,"
    unit = OF_CONNECTIONS
    client = (CONNECTIONS, "exchange")
    backend = ECHO
    connections_last = False


@dataclass(frozen=True)
class FileToSocket(RelayRegime):
    """No relay: the client connects, and is sent a file, again and again."""

    what = "files, each on a connection of its own,"
    unit = OF_BYTES
    client = (CONNECTIONS, "fetch")
    backend = None
    connections_last = False


REGIMES: tuple[RelayRegime, ...] = (
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
    MixedOneWay("mixed-nodelay", MEAN_OF_MIXED, 1, no_delay=True),
    MixedPingPong("mixed-ping-pong-x8", MEAN_OF_MIXED, 8),
    OneWay("one-way-16k-x100", 16 * KIB, 100),
    OneWay("one-way-16k-x1000", 16 * KIB, 1000),
    PingPong("ping-pong-256-x100", 256, 100),
    PingPong("ping-pong-256-x1000", 256, 1000),
    Transfers("transfers-10m", 10_000_000, 1),
    ShortConnections("connections-256-x16", 256, 16, also=("gsplice-server",)),
    OneWay("unix-to-tcp-64k", 64 * KIB, 1, place=places.UNIX_TO_TCP),
    OneWay("tcp-to-unix-64k", 64 * KIB, 1, place=places.TCP_TO_UNIX),
    PingPong("unix-to-tcp-ping-pong-256", 256, 1, place=places.UNIX_TO_TCP),
    OneWay("veth-1k", 1 * KIB, 1, place=places.VETH),
    OneWay("veth-64k", 64 * KIB, 1, place=places.VETH),
    PingPong("veth-ping-pong-256", 256, 1, place=places.VETH),
    FileToSocket("file-64m", 64 * MIB, 1),
)


def relays_allowed(fds_each: int) -> int:
    """How many relays one process may have fds for on this machine, and some to spare."""
    _, fds = resource.getrlimit(resource.RLIMIT_NOFILE)
    if fds == resource.RLIM_INFINITY:
        return MOST_RELAYS
    return min(MOST_RELAYS, (fds - SPARE_FDS) // fds_each)


# In round figures; two sockets are the least that a relay can do with.
MOST_HERE = max(1000, relays_allowed(fds_each=2) // 1000 * 1000)

# What a message and a byte cost, with that many relays at the same time.
SCALE: tuple[RelayRegime, ...] = (
    *(
        PingPong(f"ping-pong-256-x{count}", 256, count)
        for count in sorted({1, 10, 100, 1000, MOST_HERE})
    ),
    *(OneWay(f"one-way-16k-x{count}", 16 * KIB, count) for count in (1, 10, 100, 1000)),
)
