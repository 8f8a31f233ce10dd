"""Whatever is done to transfers, in any order: every byte is somewhere, once.

`model.Transfers` says what can be done, `traffic` and `oracle` what has to hold. Here a short run
of it is part of every test run, the same one each time; `soak` is the long one.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import model
import pytest
import ways
from _pytest.outcomes import Failed
from choices import ENDINGS, KINDS, MODES
from eagerness import make_eager
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import initialize, run_state_machine_as_test
from model import Hang, Transfers
from traffic import Connection

from gsplice._methods import MethodCopy
from gsplice._pipe import Pipe
from gsplice._pump import Pump

SHORT = settings(
    max_examples=40,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


#: In the stories of every run, among much else.
WHAT_THERE_HAS_TO_BE = (
    "begin relay",
    "bytes in hand at an end",
    "bytes read ahead",
    "bytes spliced",
    "clean end",
    "divide",
    "ended by TimeoutError",
    "ended by TransferStopped",
    "flood",
    "stream",
)


@pytest.fixture(autouse=True)
def _hub_deadline() -> None:
    """Have each story bounded, and not all of them together."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_eager", [False, True], ids=["", "moderated wherever it can be"])
def test_no_story_loses_a_byte(is_eager: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_eager:
        make_eager(monkeypatch, reads=4, rounds=2, plenty=64 * 1024)
    run_state_machine_as_test(Transfers, settings=SHORT)
    for what in WHAT_THERE_HAS_TO_BE:
        assert Transfers.counts[what], f"in no story there was: {what}"


def _lend_again_what_is_dirty(engine: Pump) -> bytes:
    """Hand back what is held, as `Pump._take_back` does, but leave a page of it in the pipe."""
    pending, engine._pending = engine._pending, b""
    pipe, engine._pipe = engine._pipe, None
    if pipe is None:
        return pending
    left = pipe.take_back()
    os.write(pipe.write_fd, left[:4096])
    engine._pipes.give_back(pipe)
    return pending + left


#: Faults, each of which at least one story has to find.
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "what is in a pipe is lost": (Pipe, "take_back", lambda pipe: b""),
    "what could not be sent is lost": (MethodCopy, "_take_back", lambda engine: b""),
    "an end is never told": (Pump, "_finish", lambda engine: None),
    "a dirty pipe is lent again": (Pump, "_take_back", _lend_again_what_is_dirty),
}
#: Stories of any seed.
FINDING = settings(SHORT, derandomize=False, phases=[Phase.generate])


class Floods(Transfers):
    """Stories in which a transfer ends, or goes on, while it holds bytes: each begins with one."""

    @initialize(
        target=Transfers.connections,
        kinds=KINDS,
        mode=MODES,
        ending=ENDINGS,
    )
    def flood_first(self, **choices: Any) -> Connection:
        """Flood a reader that is stalled."""
        return self.flood(**choices)


@contextlib.contextmanager
def spinning_is_a_hang(seconds: float) -> Iterator[None]:
    """End what keeps the processor busy for so long without coming back to the event loop."""

    def give_up(number: int, frame: Any) -> None:
        raise Hang(f"it has been busy for {seconds:g} s")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_model_finds(
    monkeypatch: pytest.MonkeyPatch, fault: tuple[Any, str, Any], hub_errors: list[Any]
) -> None:
    monkeypatch.setattr(*fault)
    monkeypatch.setattr(ways, "PATIENCE", 0.5)
    monkeypatch.setattr(model, "DEADLINE", 20.0)
    with spinning_is_a_hang(20), pytest.raises((AssertionError, Failed, Flaky, Hang)):
        run_state_machine_as_test(Floods, settings=FINDING)
    hub_errors.clear()  # a fault may well be found there
