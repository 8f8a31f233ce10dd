"""``python -m bench web-alternating`` runs, and what it compares is what it says.

Its figures are not looked at, as a machine that runs tests is busy; that there are some, is.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import bench
from programs import PATIENCE, installed, needs_module

import gsplice

needs_module("tabulate")

from bench.compiler import compiler  # noqa: E402
from bench.contenders import program  # noqa: E402
from bench.goals import LEAST_ROUNDS  # noqa: E402
from bench.processes import ProcessFailed  # noqa: E402
from bench.rounds import Rounds  # noqa: E402
from bench.web import alternating, alternation, switched  # noqa: E402
from bench.web.alternation import Alternation, Batch, on_one_cpu  # noqa: E402
from bench.web.cases import SMALL_CASES  # noqa: E402
from bench.web.files import folder_for  # noqa: E402
from bench.web.servers import server_named, switched_servers  # noqa: E402
from bench.web.switched import CONTROL, ORIGINAL, PATCHED, VARIANTS  # noqa: E402

SHORT = ("--rounds=1", "--seconds=0.05", "--warmup=0")
PYWSGI = "pywsgi-switched"


def alternating_bench(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return bench("web-alternating", *words, **environment)


@pytest.fixture
def originals() -> Iterator[None]:
    """Have every original back, whatever a test switched to."""
    yield
    gsplice.unpatch_all()


def batches(original: float, patched: float, control: float) -> dict[str, Batch]:
    times = zip(VARIANTS, (original, patched, control), strict=True)
    return {variant: Batch(seconds, 2 * seconds) for variant, seconds in times}


@pytest.mark.parametrize("server", [server.name for server in switched_servers()])
def test_every_server_answers_both_ways_in_one_process(server: str, tmp_path: Path) -> None:
    if not compiler():
        installed("cc")
    needs_module("gunicorn")
    kinds = ["bytes", "static", *(["proxy"] if program("nginx") else [])]
    cases = [f"--case={kind}-10k" for kind in kinds]
    file = tmp_path / "figures.json"
    done = alternating_bench(*SHORT, *cases, f"--contender={server}", f"--json={file}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    measured: dict[str, Any] = json.loads(file.read_text())["cases"]
    assert sorted(measured) == sorted(f"{kind}-10k" for kind in kinds)
    for case in measured.values():
        assert case["failures"] == {}
        (first,) = case["servers"][server]["rounds"].values()
        assert first["turns"]
        for turn in first["turns"]:
            assert set(turn) == set(VARIANTS)
            assert all(batch["time"] > 0 and batch["cpu"] > 0 for batch in turn.values())
    for what in ("time", "cpu"):
        assert done.stdout.count(f" {what} x  the original ") == len(kinds)
    assert " within the noise, " in done.stdout


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_switch_turns_on_what_it_is_called(variant: str, originals: None) -> None:
    switched.switch_to(variant)
    is_on = variant == PATCHED
    assert [gsplice.is_patched(name) for name in ("socket", "http", "pywsgi")] == [is_on] * 3


def test_a_switch_to_nothing_that_is_known_is_refused_and_changes_nothing(originals: None) -> None:
    switched.switch_to(PATCHED)
    with pytest.raises(ValueError, match="no variant 'patchd'"):
        switched.switch_to("patchd")
    assert gsplice.is_patched("socket")


def test_an_answer_says_what_cpu_its_process_has_used(originals: None, tmp_path: Path) -> None:
    application = switched.create(0, str(tmp_path))
    heads: list[tuple[str, dict[str, str]]] = []

    def start_response(status: str, fields: list[tuple[str, str]]) -> None:
        heads.append((status, dict(fields)))

    for _ in range(2):
        assert application({"PATH_INFO": "/bytes/100"}, start_response) == [bytes(100)]
    (status, first), (_, second) = heads
    assert status == "200 OK"
    assert first["Content-Length"] == "100"
    assert 0 < int(first[switched.CPU_USED]) < int(second[switched.CPU_USED])


def test_a_ratio_is_that_of_batches_of_the_same_turn() -> None:
    slow = Alternation([batches(3.0, 2.0, 3.0), batches(30.0, 20.0, 60.0)], 0.0)
    assert slow.ratio(PATCHED, lambda batch: batch.time) == 1.5
    assert slow.ratios(CONTROL, lambda batch: batch.cpu) == [1.0, 0.5]
    assert slow.median(ORIGINAL, lambda batch: batch.cpu) == 33.0


@pytest.mark.parametrize(
    ("patched", "verdict"), [(0.9, "reached"), (1.005, "within the noise"), (1.05, "missed")]
)
def test_to_be_slower_by_more_than_a_hundredth_is_to_miss_the_goal(
    patched: float, verdict: str
) -> None:
    of: Rounds[Alternation] = Rounds(SMALL_CASES[0])
    for number in range(LEAST_ROUNDS):
        of.add(PYWSGI, number, Alternation([batches(1.0, patched, 1.0)], 0.0))
    time, cpu = alternating.goals_table([of]).splitlines()[3:5]
    assert time.startswith("proxy-1k  pywsgi-switched  time x  the original")
    assert time.endswith(verdict)
    assert cpu.endswith(verdict)


def test_what_a_server_differs_from_itself_by_is_noise_and_is_named() -> None:
    of: Rounds[Alternation] = Rounds(SMALL_CASES[0])
    of.add(PYWSGI, 0, Alternation([batches(1.0, 1.04, 0.95)], 0.0))
    assert "note: pywsgi-switched differs from itself by 5.3 % in time" in alternating.case_table(
        of
    )
    assert alternating.goals_table([of]).count("within the noise") == 2 + len(["the summary's"])


def test_without_a_c_compiler_it_is_one_clear_line() -> None:
    done = alternating_bench(*SHORT, "--case=bytes-1k", GSPLICE_BENCH_CC="")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("no C compiler: ")


def test_a_warm_up_that_takes_all_turns_is_a_failure_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiler():
        installed("cc")
    monkeypatch.setattr(alternation, "MOST_TURNS", 1)
    case = next(case for case in SMALL_CASES if case.name == "bytes-1k")
    with (
        folder_for([case]) as folder,
        pytest.raises(ProcessFailed, match="the warm-up took all 1 turns"),
    ):
        alternation.measure(folder, server_named(PYWSGI), case, PATIENCE, 0.1)


def test_the_bench_may_use_every_cpu_again_when_it_has_measured() -> None:
    before = os.sched_getaffinity(0)
    with on_one_cpu():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
