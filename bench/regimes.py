"""What is sent through a relay: the regimes that are measured."""

import resource
from dataclasses import dataclass

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
class Shape:
    """What a client does again and again, and who counts it in which unit.

    Client and backend are programs of ``peers/``, each with the role that it has. Without a backend
    there is no relay: the contender has what it sends.
    """

    kind: str
    what: str  # that the client repeats
    unit: Unit
    client: tuple[str, str]
    backend: tuple[str, str] | None
    backend_observes: bool = False  # else the client does

    @property
    def connections_last(self) -> bool:
        """For the whole of a measurement; else there is one for each message, transfer or file."""
        return self.client[0] != CONNECTIONS


# A one-way client is a plain program, which leaves it to the kernel how much goes into a segment;
# with TCP_NODELAY every write is a segment of its own. What counts is what comes out at the
# backend. A ping-pong's client sends the next message when the whole of the last one has come back.
WRITE, WRITE_NO_DELAY, PING = (CLIENT, "write"), (CLIENT, "write-no-delay"), (CLIENT, "ping")
TRANSFER, EXCHANGE, FETCH = ((CONNECTIONS, role) for role in ("transfer", "exchange", "fetch"))
# fmt: off
#                 kind               repeated     counted         client          backend
ONE_WAY   = Shape("one-way",         "writes",    OF_BYTES,       WRITE,          SINK, True)
NO_DELAY  = Shape("one-way-nodelay", "writes",    OF_BYTES,       WRITE_NO_DELAY, SINK, True)
PING_PONG = Shape("ping-pong",       "messages",  OF_MESSAGES,    PING,           ECHO)
TRANSFERS = Shape("transfers",       "transfers", OF_BYTES,       TRANSFER,       SINK)
EXCHANGES = Shape("connections",     "messages",  OF_CONNECTIONS, EXCHANGE,       ECHO)
FILES     = Shape("files",           "files",     OF_BYTES,       FETCH,          None)
# fmt: on


@dataclass(frozen=True)
class Regime:
    """``size`` bytes a write, or a message, on each of ``connections`` at the same time."""

    name: str
    size: int
    connections: int


@dataclass(frozen=True)
class RelayRegime(Regime):
    """A client, a relay and a backend, all at a place.

    ``mixed`` are the sizes where there are many, one after another, and then the first again;
    ``size`` is their mean then. ``also`` are contenders that else take part only when they are
    named.
    """

    shape: Shape
    place: places.Place = places.LOOPBACK
    mixed: tuple[int, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def unit(self) -> Unit:
        return self.shape.unit

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.mixed or (self.size,)


# Nine of ten messages are under 1 KiB, nine of ten bytes are in the tenth message. The nine come to
# 4,648 bytes, and the mean of all is that as well.
SMALL_ONES = (64, 128, 256, 384, 512, 640, 768, 896, 1000)
MIXED = (*SMALL_ONES, 9 * sum(SMALL_ONES))
MEAN = sum(MIXED) // len(MIXED)

# fmt: off
REGIMES: tuple[RelayRegime, ...] = (
    # name                                  size      conn.  shape
    RelayRegime("one-way-1k",                1 * KIB,     1, ONE_WAY),
    RelayRegime("one-way-4k",                4 * KIB,     1, ONE_WAY),
    RelayRegime("one-way-16k",              16 * KIB,     1, ONE_WAY),
    RelayRegime("one-way-64k",              64 * KIB,     1, ONE_WAY),
    RelayRegime("one-way-512k",            512 * KIB,     1, ONE_WAY),
    RelayRegime("one-way-64k-x8",           64 * KIB,     8, ONE_WAY),
    RelayRegime("one-way-1k-nodelay",        1 * KIB,     1, NO_DELAY),
    RelayRegime("one-way-4k-nodelay",        4 * KIB,     1, NO_DELAY),
    RelayRegime("ping-pong-256",             256,         1, PING_PONG),
    RelayRegime("ping-pong-256-x32",         256,        32, PING_PONG),
    RelayRegime("ping-pong-64k-x8",         64 * KIB,     8, PING_PONG),
    RelayRegime("mixed-nodelay",            MEAN,         1, NO_DELAY,  mixed=MIXED),
    RelayRegime("mixed-ping-pong-x8",       MEAN,         8, PING_PONG, mixed=MIXED),
    RelayRegime("one-way-16k-x100",         16 * KIB,   100, ONE_WAY),
    RelayRegime("one-way-16k-x1000",        16 * KIB,  1000, ONE_WAY),
    RelayRegime("ping-pong-256-x100",        256,       100, PING_PONG),
    RelayRegime("ping-pong-256-x1000",       256,      1000, PING_PONG),
    RelayRegime("transfers-10m",          10_000_000,     1, TRANSFERS),
    RelayRegime("connections-256-x16",       256,        16, EXCHANGES, also=("gsplice-server",)),
    RelayRegime("unix-to-tcp-64k",          64 * KIB,     1, ONE_WAY,   places.UNIX_TO_TCP),
    RelayRegime("tcp-to-unix-64k",          64 * KIB,     1, ONE_WAY,   places.TCP_TO_UNIX),
    RelayRegime("unix-to-tcp-ping-pong-256", 256,         1, PING_PONG, places.UNIX_TO_TCP),
    RelayRegime("veth-1k",                   1 * KIB,     1, ONE_WAY,   places.VETH),
    RelayRegime("veth-64k",                 64 * KIB,     1, ONE_WAY,   places.VETH),
    RelayRegime("veth-ping-pong-256",        256,         1, PING_PONG, places.VETH),
    RelayRegime("file-64m",                 64 * MIB,     1, FILES),
)
# fmt: on


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
        RelayRegime(f"ping-pong-256-x{count}", 256, count, PING_PONG)
        for count in sorted({1, 10, 100, 1000, MOST_HERE})
    ),
    *(
        RelayRegime(f"one-way-16k-x{count}", 16 * KIB, count, ONE_WAY)
        for count in (1, 10, 100, 1000)
    ),
)
