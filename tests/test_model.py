"""Whatever is done to transfers, in any order: every byte is somewhere, once.

`model.Transfers` says what can be done, `traffic` and `oracle` what has to hold. Here a short run
of it is part of every test run, the same one each time; `soak` is the long one.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from model import Transfers

SHORT = settings(
    max_examples=100,
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
