"""The bench runs: it measures, says whom it had to leave out and who failed, and draws pictures.

Its figures are not looked at, as a machine that runs tests is busy; that there are some, is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from benches import BENCH, bench
from programs import ENVIRONMENT, PATIENCE, REPOSITORY, Program, needs_module, wait_until

needs_module("tabulate")

from bench import pictures  # noqa: E402
from bench.command_line import COMMANDS  # noqa: E402
from bench.contenders import all_contenders  # noqa: E402
from bench.goals import Limit, goal_row, goals_table  # noqa: E402
from bench.measure import Measurement  # noqa: E402
from bench.processes import with_descendants  # noqa: E402
from bench.regimes import REGIMES, SCALE, RelayRegime  # noqa: E402
from bench.rounds import Rounds, turns  # noqa: E402
from bench.usage import Usage  # noqa: E402

SHORT = ("--rounds=1", "--seconds=0.1")
FIGURES = ("rate", "cost", "p50", "p99", "p99.9", "times the rate", "times less cpu", "rounds")
#: What there is without a relay: the socket that listens.
LISTENER = 1


class Run:
    """Two contenders in three regimes, where Go is not installed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "figures.json"
        regimes = ("--regime=one-way-[14]k", "--regime=ping-pong-256")
        contenders = (f"--contender={name}" for name in ("go", "gsplice", "gevent"))
        json_file = f"--json={self.file}"
        done = bench(*SHORT, "--warmup=0.05", *regimes, *contenders, json_file, GSPLICE_BENCH_GO="")
        assert done.returncode == 0, done.stdout + done.stderr
        self.output = done.stdout
        self.figures: dict[str, Any] = json.loads(self.file.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("bench"))


def test_every_measurement_is_in_the_file_that_the_pictures_are_drawn_from(run: Run) -> None:
    assert list(run.figures["regimes"]) == ["one-way-1k", "one-way-4k", "ping-pong-256"]
    for regime in run.figures["regimes"].values():
        assert regime["failures"] == {}
        assert regime["size"] in (256, 1024, 4096)
        assert regime["connections"] == 1
        assert list(regime["contenders"]) == ["gevent", "gsplice"], "the one to compare with first"
        for contender in regime["contenders"].values():
            assert set(contender) == set(FIGURES)
            (measurement,) = contender["rounds"].values()
            assert measurement["amount"] > 0
            assert measurement["relay_cpu"] > 0
            assert measurement["rss"] > 0
            assert measurement["fds"] > LISTENER


def test_a_ping_pong_has_its_latencies(run: Run) -> None:
    for contender in run.figures["regimes"]["ping-pong-256"]["contenders"].values():
        assert 0 < contender["p50"] <= contender["p99"] <= contender["p99.9"]
        (measurement,) = contender["rounds"].values()
        shares = [share for share, _ in measurement["quantiles"]]
        assert shares == sorted(shares)
        assert {0.5, 0.9, 0.99, 0.999, 0.9999} <= set(shares)


def test_a_run_says_what_it_ran_on_and_names_each_goal_that_it_could_check(run: Run) -> None:
    assert set(run.figures["machine"]) >= {"cpus", "kernel", "python", "gevent", "gsplice", "load"}
    goals = run.output.partition("goals, by the median of the rounds:")[2]
    for regime in run.figures["regimes"]:
        assert f"\n{regime} " in goals
    assert "0 reached, " in goals
    assert " with too few rounds (5 are the least)" in goals


def test_a_contender_that_is_not_installed_is_left_out_and_named(run: Run) -> None:
    assert "left out: go (go is not installed)" in run.output


@pytest.mark.parametrize(
    "words",
    [
        ["--contender=nobody"],
        ["--regime=nowhere"],
        ["memory", "--contender=nobody"],
        ["web", "--case=nothing"],
        ["web-alternating", "--contender=nobody"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_a_name_that_nothing_has_is_one_clear_line(words: Sequence[str]) -> None:
    done = bench(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    *_, unknown = words[-1].split("=")
    assert done.stderr.startswith(f"nothing is called {unknown!r}; there are ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds=0"],
        ["--seconds=nan"],
        ["--seconds=inf"],
        ["--seconds=0"],
        ["--warmup=-1"],
        ["--json=/nonexistent/figures.json"],
        ["--json=/"],
        ["--pictures=/dev/null/pictures"],
        ["memory", "--relays=0"],
        ["memory", "--settle=-1"],
        ["memory", "--idle=0"],
        ["memory", "--size=1048577"],
        ["pictures", "/dev/null"],
        ["pictures", "/dev/null", "-o", "/dev/null/pictures"],
    ],
    ids=" ".join,
)
def test_a_value_that_makes_no_sense_is_told_before_anything_is_measured(
    words: Sequence[str],
) -> None:
    done = bench(*words)
    assert (done.returncode, done.stdout) == (2, "")
    *_, last = done.stderr.splitlines()
    assert ": error: " in last
    assert "Traceback" not in done.stderr


def test_the_help_names_each_command() -> None:
    _, _, last = bench("--help").stdout.partition("\nCommands:")
    assert all(command in last for command in COMMANDS)


def test_a_file_that_cannot_be_written_in_the_end_is_one_clear_line() -> None:
    one = ("--regime=ping-pong-256", "--contender=gevent", "--quick")
    done = bench(*one, "--json=/dev/full")
    assert done.stderr == "/dev/full could not be written: No space left on device\n"
    assert "goals" not in done.stderr
    assert "ping-pong-256" in done.stdout


def test_a_compiler_that_fails_is_one_clear_line(tmp_path: Path) -> None:
    one = ("--regime=ping-pong-256", "--contender=gevent", "--quick")
    done = bench(*one, GSPLICE_BENCH_CC="false", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "c could not be compiled: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_who_has_no_ticker_is_named_and_nothing_measured_is_no_success() -> None:
    done = bench("ticker", "--contender=ceiling", "--quick")
    assert "it has no ticker" in done.stdout
    assert done.returncode == 1


def contenders_under(pid: int, name: str) -> Iterator[int]:
    for child in with_descendants(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if command[2:4] == [b"bench.contenders", name.encode()]:
            yield child


@pytest.mark.parametrize(
    "words",
    [["--list"], ["scale", "--list"], ["web", "--list"], ["web-alternating", "--list"]],
)
def test_a_list_of_which_only_the_head_is_read_ends_quietly(words: Sequence[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [*BENCH, *words],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdout=writes,
            stderr=subprocess.PIPE,
            timeout=3 * PATIENCE,
        )
    finally:
        os.close(writes)
    assert (done.stderr, done.returncode) == (b"", 128 + signal.SIGPIPE)


def test_a_contender_that_dies_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    words = ("--regime=ping-pong-256", "--contender=gevent", "--contender=gsplice")
    at_work: list[int] = []

    def is_relaying() -> bool:
        at_work[:] = contenders_under(bench.process.pid, "gevent")
        return any(Usage.of([pid]).fds["socket"] >= LISTENER + 2 for pid in at_work)

    with Program(*BENCH, *SHORT, "--warmup=0.7", *words, f"--json={file}") as bench:
        wait_until(is_relaying, "the gevent loop relays a connection")
        for pid in at_work:
            os.kill(pid, signal.SIGKILL)
        assert bench.process.wait(PATIENCE) == 1
        assert bench.stop() == 1
    assert "  gevent failed: " in bench.output
    regime = json.loads(file.read_text())["regimes"]["ping-pong-256"]
    assert list(regime["failures"]) == ["gevent"]
    assert list(regime["contenders"]) == ["gsplice"]
    assert regime["contenders"]["gsplice"]["times the rate"] is None


def test_pictures_are_drawn_from_what_was_measured(run: Run, tmp_path: Path) -> None:
    needs_module("matplotlib")
    done = bench("pictures", run.file, "-o", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(drawn) == {"write-size.png", "latency-ping-pong-256.png", "overview.png"}
    for picture in drawn.values():
        assert picture.startswith(b"\x89PNG")


def test_pictures_without_matplotlib_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="pictures need matplotlib"):
        pictures.main([str(tmp_path / "figures")])


def measured(seconds: float, cpu: float, p99: float = 1.0) -> Measurement:
    """A thousand messages in so many seconds."""
    return Measurement(seconds, 1000, cpu, 0.0, 0.0, 0.0, p99=p99)


def regime(name: str) -> RelayRegime:
    return next(one for one in REGIMES if one.name == name)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.5, 0.8, 1.0, 1.0, 5.0], "reached"),
        ([1.0, 1.0, 1.0, 5.0], "too few rounds"),
        ([0.5, 0.95, 5.0], "within the noise"),
        ([0.5, 0.89, 5.0], "missed"),
    ],
)
def test_a_goal_is_judged_by_the_median_and_not_by_the_best_round(
    values: list[float], verdict: str
) -> None:
    row = goal_row("one-way-1k", "gsplice", "rate x", "gevent", Limit(1.0), values)
    assert row[-1] == verdict


def test_a_goal_that_is_a_bound_is_missed_by_what_is_above_it() -> None:
    *_, margin, verdict = goal_row("", "", "", "", Limit(9, at_most=True), [18.0])
    assert (margin, verdict) == ("-100 %", "missed")


def test_a_goal_is_beside_whoever_does_best_in_the_same_rounds() -> None:
    rounds: Rounds[Measurement] = Rounds(regime("ping-pong-256"))
    for number, slow in enumerate((1, 3)):  # the second round: the machine was slow
        rounds.add("gsplice", number, measured(1.0 * slow, 0.5 * slow))
        rounds.add("gevent", number, measured(2.0 * slow, 1.0 * slow))
        rounds.add("haproxy", number, measured(0.5 * slow, 0.4 * slow))
    rate, cpu, latency = goals_table([rounds]).splitlines()[3:6]
    words = "ping-pong-256 gsplice rate x haproxy >= 1.00 0.50 0.50 to 0.50 -50 % missed"
    assert " ".join(rate.split()) == words
    words = "ping-pong-256 gsplice cpu x haproxy >= 1.00 0.80 0.80 to 0.80 -20 % missed"
    assert " ".join(cpu.split()) == words
    assert latency.split()[2:5] == ["p99", "x", "haproxy"]


def test_another_contender_goes_first_in_each_round() -> None:
    taken = list(turns("abc", 4))
    assert [taker for _, taker in taken] == list("abcbcacababc")
    assert [number for number, _ in taken] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    "names",
    [
        [contender.name for contender in all_contenders()],
        [regime.name for regime in REGIMES],
        [regime.name for regime in SCALE],
    ],
    ids=["contenders", "regimes", "scale"],
)
def test_no_name_is_there_twice(names: Sequence[str]) -> None:
    assert len(names) == len(set(names))
