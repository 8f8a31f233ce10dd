"""One measurement of one contender in one regime, for a second or so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.contenders import Contender
from bench.machine import OtherLoad
from bench.processes import LineProcess, ProcessFailed
from bench.regimes import OF_BYTES, RelayRegime
from bench.setting import Setting, set_up
from bench.usage import Usage

LATENCY_FIELDS = ("p50", "p99", "p999", "quantiles")


@dataclass(frozen=True)
class Measurement:
    """What one contender did in one round of one regime."""

    seconds: float
    amount: int  # in the regime's unit: bytes, messages or connections that came through
    relay_cpu: float
    client_cpu: float
    backend_cpu: float
    other_load: float  # CPUs kept busy by the rest of the machine, and so not there for these
    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    quantiles: Sequence[tuple[float, float]] = field(default=())  # the share, and its latency
    rss: int = 0  # bytes that the relay held at the end
    fds: int = 0

    @property
    def rate(self) -> float:
        return self.amount / self.seconds

    @property
    def cost(self) -> float:
        """The relay's CPU seconds for each byte, message or connection."""
        return self.relay_cpu / self.amount


def measure(
    contender: Contender, regime: RelayRegime, warmup: float, seconds: float
) -> Measurement:
    with set_up(contender, regime) as setting:
        setting.begin()
        return _observe(setting, warmup, seconds)


def _observe(setting: Setting, warmup: float, seconds: float) -> Measurement:
    observed = Observed(setting.client, setting.relay, setting.backend)
    answer = setting.observe(warmup, seconds, observed.pids)
    return observed.measurement(answer, amount_of(answer, setting.regime))


class Observed:
    """The processes of a measurement, from before it begins: what they use, and what others do."""

    def __init__(
        self, client: LineProcess, relay: LineProcess, backend: LineProcess | None
    ) -> None:
        self._relay = relay
        backend_pids = backend.family() if backend else []
        self._backends = len(backend_pids)
        self.pids = [client.pid, *backend_pids, *relay.family()]
        self._others = OtherLoad(self.pids)

    def measurement(self, answer: Mapping[str, Any], amount: int) -> Measurement:
        """What the client or the backend has observed, and the CPU is that of :attr:`pids`."""
        other_load = self._others.so_far()
        usage = Usage.of(self._relay.family())
        if not amount:
            raise ProcessFailed(f"nothing came through in {answer['seconds']:.2f} s")
        client_cpu, *cpu = answer["cpu"]
        return Measurement(
            seconds=answer["seconds"],
            amount=amount,
            relay_cpu=sum(cpu[self._backends :]),
            client_cpu=client_cpu,
            backend_cpu=sum(cpu[: self._backends]),
            other_load=other_load,
            rss=usage.rss,
            fds=usage.fds.total(),
            **{name: answer[name] for name in LATENCY_FIELDS if name in answer},
        )


def amount_of(answer: dict[str, int], regime: RelayRegime) -> int:
    """What came through, in the regime's unit."""
    if "bytes" in answer:
        return answer["bytes"]
    return answer["messages"] * (regime.size if regime.unit is OF_BYTES else 1)
