"""One measurement: a backend, a contender and a client, each a process, for a second or so."""

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.compiler import compiled, compiler
from bench.contenders import Contender
from bench.machine import OtherLoad
from bench.processes import LineProcess, ProcessFailed
from bench.regimes import OneWay, Regime

# A relay that is stuck is given up on; nothing else takes as long.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Measurement:
    """What one contender did in one round of one regime."""

    seconds: float
    amount: int  # bytes that came out (one-way), or messages that came back (ping-pong)
    relay_cpu: float
    client_cpu: float
    backend_cpu: float
    other_load: float  # CPUs kept busy by the rest of the machine, and so not there for these
    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0

    @property
    def rate(self) -> float:
        return self.amount / self.seconds

    @property
    def cost(self) -> float:
        """The relay's CPU seconds for each byte, or each message."""
        return self.relay_cpu / self.amount


def peer_command(*role: str | int) -> list[str]:
    words = [str(word) for word in role]
    if compiler():
        return [str(compiled(Path(__file__).with_name("peer.c"))), *words]
    return [sys.executable, "-m", "bench.peer", *words]


def relay_command(contender: Contender, backend_port: int) -> list[str]:
    return [sys.executable, "-m", "bench.contenders", contender.name, str(backend_port)]


def client_role(regime: Regime) -> str:
    if not isinstance(regime, OneWay):
        return "ping"
    return "write-no-delay" if regime.no_delay else "write"


def measure(contender: Contender, regime: Regime, warmup: float, seconds: float) -> Measurement:
    # A process for each measurement: what one leaves behind (buffers grown, pools filled) is not
    # part of the next, and the chance in a process's memory layout is drawn anew each time.
    one_way = isinstance(regime, OneWay)
    role = client_role(regime)
    with ExitStack() as stack:
        backend = stack.enter_context(LineProcess(peer_command("sink" if one_way else "echo")))
        backend_port = int(backend.wait_until_ready())
        relay = stack.enter_context(LineProcess(relay_command(contender, backend_port)))
        relay_port = int(relay.wait_until_ready())
        try:
            client = stack.enter_context(
                LineProcess(peer_command(role, relay_port, regime.size, regime.connections))
            )
            client.wait_until_ready()
            if one_way:
                client.tell("go")
            observer = backend if one_way else client
            return _observe(observer, relay, client, backend, warmup, seconds)
        except ProcessFailed as failure:
            raise blamed_on(relay, failure) from None


def blamed_on(relay: LineProcess, failure: ProcessFailed) -> ProcessFailed:
    """What the relay has to say goes first: it is the cause more often than who noticed it."""
    complaint = relay.last_complaint()
    return ProcessFailed(f"{complaint} ({failure})") if complaint else failure


def _observe(
    observer: LineProcess,
    relay: LineProcess,
    client: LineProcess,
    backend: LineProcess,
    warmup: float,
    seconds: float,
) -> Measurement:
    pids = [client.pid, backend.pid, *relay.family()]
    others = OtherLoad(pids)
    observer.tell(f"measure {warmup} {seconds} {' '.join(map(str, pids))}")
    answer = json.loads(observer.answer(warmup + seconds + PATIENCE_SECONDS))
    amount = answer["bytes"] if "bytes" in answer else answer["messages"]
    if not amount:
        raise ProcessFailed(f"nothing came through in {seconds} s")
    client_cpu, backend_cpu, *relay_cpu = answer["cpu"]
    return Measurement(
        seconds=answer["seconds"],
        amount=amount,
        relay_cpu=sum(relay_cpu),
        client_cpu=client_cpu,
        backend_cpu=backend_cpu,
        other_load=others.so_far(),
        **{name: answer[name] for name in ("p50", "p99", "p999") if name in answer},
    )
