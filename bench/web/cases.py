"""What is asked of a server: the cases that are measured."""

from dataclasses import dataclass

from bench.regimes import KIB, Regime

MIB = 1024 * KIB
GIB = 1024 * MIB

PROXY, UPLOAD, STATIC, BYTES = "proxy", "upload", "static", "bytes"
# One connection tells little of small bodies: the server waits for its client then.
KEPT_ALIVE = 8


@dataclass(frozen=True)
class Case(Regime):
    """Exchanges with bodies of ``size`` bytes, one at a time on each of ``connections``.

    ``kind`` is what the server does: it proxies a backend's response, proxies a request's body to
    a backend (an upload), serves a static file itself, or answers with bytes that it has.
    """

    kind: str

    @property
    def is_small(self) -> bool:
        """Whether the exchange costs more than its bytes."""
        return self.size < MIB

    @property
    def file(self) -> str:
        """The name of the file, and so the last part of the path, whoever serves it."""
        return str(self.size)

    @property
    def path(self) -> str:
        return f"/{PROXY if self.kind == UPLOAD else self.kind}/{self.file}"

    @property
    def has_backend(self) -> bool:
        return self.kind in (PROXY, UPLOAD)


CASES: tuple[Case, ...] = (
    Case("proxy-1k", 1 * KIB, KEPT_ALIVE, PROXY),
    Case("proxy-10k", 10 * KIB, KEPT_ALIVE, PROXY),
    Case("proxy-64m", 64 * MIB, 1, PROXY),
    Case("proxy-1g", 1 * GIB, 1, PROXY),
    Case("upload-64m", 64 * MIB, 1, UPLOAD),
    Case("static-1k", 1 * KIB, KEPT_ALIVE, STATIC),
    Case("static-10k", 10 * KIB, KEPT_ALIVE, STATIC),
    Case("static-64m", 64 * MIB, 1, STATIC),
    Case("static-1g", 1 * GIB, 1, STATIC),
)

# What an exchange costs, with gsplice's methods and without them in turn: on one connection, so
# that none is under way when the one takes the place of the other.
SMALL_CASES: tuple[Case, ...] = (
    Case("proxy-1k", 1 * KIB, 1, PROXY),
    Case("proxy-10k", 10 * KIB, 1, PROXY),
    Case("static-1k", 1 * KIB, 1, STATIC),
    Case("static-10k", 10 * KIB, 1, STATIC),
    Case("bytes-1k", 1 * KIB, 1, BYTES),
    Case("bytes-10k", 10 * KIB, 1, BYTES),
)
