"""Whatever is done to transfers, in any order: every byte is somewhere, once.

`model.Transfers` says what can be done, `traffic` and `oracle` what has to hold. Here a short run
of it is part of every test run, the same one each time; `soak` is the long one.
"""

from __future__ import annotations

from typing import Any

import pytest
import ways
from _pytest.outcomes import Failed
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from model import Transfers

from gsplice._methods import MethodCopy
from gsplice._pipe import Pipe
from gsplice._pump import Pump

SHORT = settings(
    max_examples=80,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _hub_deadline() -> None:
    """Have each story bounded, and not all of them together."""


@pytest.mark.timeout(300)
def test_no_story_loses_a_byte() -> None:
    run_state_machine_as_test(Transfers, settings=SHORT)
    for what in ("clean end", "ended by TransferStopped", "ended by TimeoutError", "bytes spliced"):
        assert Transfers.counts[what], f"in no story there was: {what}"


#: Faults, each of which at least one story has to find.
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "what is in a pipe is lost": (Pipe, "take_back", lambda pipe: b""),
    "what could not be sent is lost": (MethodCopy, "_take_back", lambda engine: b""),
    "an end is never told": (Pump, "_finish", lambda engine: None),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_model_finds(monkeypatch: pytest.MonkeyPatch, fault: tuple[Any, str, Any]) -> None:
    monkeypatch.setattr(*fault)
    monkeypatch.setattr(ways, "PATIENCE", 0.5)
    with pytest.raises((AssertionError, Failed, Flaky)):
        run_state_machine_as_test(Transfers, settings=settings(SHORT, phases=[Phase.generate]))
