"""A backend, a contender and a client, each a process, at a place: ready, and nothing sent yet."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench.addresses import show
from bench.contenders import Contender
from bench.peers import peer_command
from bench.places import BACKEND_HOST, CLIENT_HOST, RELAY_HOST, Opened
from bench.processes import READY_SECONDS, LineProcess, ProcessFailed
from bench.regimes import RelayRegime
from bench.usage import Usage

# A relay that is stuck is given up on; nothing else takes as long.
PATIENCE_SECONDS = 20.0
CONNECT_SECONDS = 0.005  # for each connection, at the most
PROBE_SECONDS = 0.05
SETTLE_SECONDS = 0.2  # for what a connection leaves behind to be cleared away


@dataclass
class Setting:
    """The processes of a measurement."""

    regime: RelayRegime
    backend: LineProcess | None
    relay: LineProcess
    client: LineProcess
    usage_before: Usage | None = None  # the relay's, when it had no connection

    def begin(self) -> None:
        """Have a one-way client write without a pause; others begin when they are observed.

        First something has to have come on each of its connections: a relay that is saturated may
        accept no more.
        """
        if self.regime.shape.backend_observes:
            assert self.backend is not None
            connections = self.regime.connections + (self.usage_before is not None)
            self.client.tell("greet")
            self.backend.tell(f"await {connections}")
            self.backend.answer(READY_SECONDS)
            self.client.tell("go")

    def observe(self, warmup: float, seconds: float, pids: Sequence[int]) -> dict[str, Any]:
        """What came through in that window, and the CPU that each of the processes used."""
        self.begin_to_observe(warmup, seconds, pids)
        return self.observed(warmup + seconds)

    def begin_to_observe(self, warmup: float, seconds: float, pids: Sequence[int]) -> None:
        self._observer.tell(f"measure {warmup} {seconds} {' '.join(map(str, pids))}")

    def observed(self, seconds: float) -> dict[str, Any]:
        """The answer, which is due in so many seconds."""
        answer: dict[str, Any] = json.loads(self._observer.answer(seconds + PATIENCE_SECONDS))
        return answer

    @property
    def _observer(self) -> LineProcess:
        observer = self.backend if self.regime.shape.backend_observes else self.client
        assert observer is not None
        return observer


def relay_command(contender: Contender, at: str, target: str) -> list[str]:
    return [sys.executable, "-m", "bench.contenders", contender.name, at, target]


@contextmanager
def set_up(
    contender: Contender, regime: RelayRegime, probe_first: bool = False
) -> Iterator[Setting]:
    """All of them are new, and end with the context.

    With ``probe_first`` something has passed through the relay before, on a connection of its own:
    until then it may not be itself yet, but Python that becomes another program. This is what
    :attr:`Setting.usage_before` needs.
    """
    # A process for each measurement: what one leaves behind (buffers grown, pools filled) is not
    # part of the next, and the chance in a process's memory layout is drawn anew each time.
    with ExitStack() as stack:
        place = stack.enter_context(regime.place.open())
        backend, target = _start_backend(stack, place, regime)
        command = relay_command(contender, show(place.relay), target)
        relay = stack.enter_context(LineProcess(place.command(RELAY_HOST, command)))
        address = relay.wait_until_ready()
        try:
            before = _probed(backend, relay, place, regime, address) if probe_first else None
            client = _start_client(stack, place, regime, address)
            setting = Setting(regime, backend, relay, client, before)
            if contender.process_for_each and regime.shape.connections_last:
                _await_processes(relay, regime.connections + 1)
            yield setting
        except ProcessFailed as failure:
            raise blamed_on(relay, failure) from None


def _start_backend(
    stack: ExitStack, place: Opened, regime: RelayRegime
) -> tuple[LineProcess | None, str]:
    """The backend and its address; or no process, and the file that is sent."""
    if regime.shape.backend is None:
        file = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - it does
        file.truncate(regime.size)
        file.write(bytes(regime.size))  # not a hole: in the page cache
        file.flush()
        return None, f"file:{file.name}"
    program, role = regime.shape.backend
    command = peer_command(program, role, show(place.backend))
    backend = stack.enter_context(LineProcess(place.command(BACKEND_HOST, command)))
    return backend, backend.wait_until_ready()


def _start_client(
    stack: ExitStack, place: Opened, regime: RelayRegime, address: str
) -> LineProcess:
    program, role = regime.shape.client
    sizes = ",".join(map(str, regime.sizes))
    command = peer_command(program, role, address, sizes, regime.connections)
    client = stack.enter_context(LineProcess(place.command(CLIENT_HOST, command)))
    client.wait_until_ready(READY_SECONDS + regime.connections * CONNECT_SECONDS)
    return client


def _probed(
    backend: LineProcess | None,
    relay: LineProcess,
    place: Opened,
    regime: RelayRegime,
    address: str,
) -> Usage:
    """What it holds when something has passed through it."""
    regime = replace(regime, connections=1)
    with ExitStack() as stack:
        client = _start_client(stack, place, regime, address)
        probe = Setting(regime, backend, relay, client)
        probe.begin()
        probe.observe(0.0, PROBE_SECONDS, [])
    time.sleep(SETTLE_SECONDS)
    return Usage.of(relay.family())


def _await_processes(relay: LineProcess, count: int) -> None:
    """One for each connection: their CPU counts only once they are known."""
    deadline = time.monotonic() + READY_SECONDS
    while len(relay.family()) < count:
        if time.monotonic() > deadline:
            raise ProcessFailed(f"it has {len(relay.family())} processes of {count}")
        time.sleep(0.005)


def blamed_on(relay: LineProcess, failure: ProcessFailed) -> ProcessFailed:
    """What the relay has to say goes first: it is the cause more often than who noticed it."""
    complaint = relay.last_complaint()
    return ProcessFailed(f"{complaint} ({failure})") if complaint else failure
