"""How moderation decides what is a stream, and for how long, by a clock that is the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from gevent import socket
from peers import Pairs

from gsplice import _moderation
from gsplice._moderation import NEVER, PATIENCE, PERIOD, Moderation, first_look


class Watched:
    """A `Moderation` and its clock."""

    def __init__(self, source: socket.socket, clock: SimpleNamespace) -> None:
        self.source = source
        self.moderation = Moderation(source, lambda: None)
        self._clock = clock
        self._moved = 0
        self.patience = PATIENCE
        self.look(0, 0)  # the first only sees what the peer had been sent before

    def look(self, average: int, pace: float, remaining: int | None = None) -> bool:
        """Be read as often as it takes for a look; return whether it is a stream by now."""
        self._clock.now += self.patience * pace or PERIOD
        self._moved += self.patience * average
        reads = self.moderation.read(self._moved, remaining)
        return self._is_stream(reads)

    def tick(self, count: int, seconds: float = PERIOD, remaining: int | None = None) -> bool:
        """Let it tick after *seconds*, and find *count* bytes; return whether it is a stream."""
        self._clock.now += seconds
        self._moved += count
        return self._is_stream(self.moderation.found(self._moved, remaining))

    def ticks(self, count: int, most: int = 60, seconds: float = PERIOD) -> int:
        """Let it tick, and find *count* bytes each time; return how often it was still a stream."""
        for number in range(most):
            if not self.tick(count, seconds):
                return number
        return most

    def _is_stream(self, reads: int) -> bool:
        assert (reads == NEVER) == self.moderation.is_stream
        if reads != NEVER:
            self.patience = reads
        return self.moderation.is_stream


@pytest.fixture
def watched(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(_moderation, "time", SimpleNamespace(monotonic=lambda: clock.now))
    _, source = pairs("tcp")
    made = Watched(source, clock)
    yield made
    made.moderation.close()


def test_those_that_begin_together_look_at_different_times() -> None:
    """Else who comes last in a turn of the loop waits for the looks of all the others."""
    looks = [first_look(others) for others in range(2 * PATIENCE)]
    assert looks[0] == PATIENCE
    assert sorted(looks) == sorted([*range(PATIENCE, 2 * PATIENCE)] * 2)


#: Seconds from one read to the next, and bytes a read.
POLLED = (0.000_05, 2_000)


@pytest.mark.parametrize(
    ("pace", "average", "is_polled"),
    [
        (*POLLED, True),
        (0.000_02, 81_919, True),
        (0.000_02, 81_920, False),  # joined by the kernel
        (0.000_01, 60_000, False),  # too much for two ticks in a millisecond
        (0.000_11, 2_000, False),  # too slow
    ],
)
def test_quick_small_reads_are_polled(
    watched: Watched, pace: float, average: int, is_polled: bool
) -> None:
    assert watched.look(average, pace) == is_polled


def test_an_answer_ends_it(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(100_000_000)
    watched.source.sendall(b"enough")
    assert not watched.tick(100_000_000)


def test_a_tick_that_finds_little_ends_it(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(4096)
    assert not watched.tick(4095)


def test_a_tick_that_finds_no_more_than_two_reads_brought_ends_it(watched: Watched) -> None:
    """Who waits for an answer that takes another way has one message under way at each tick."""
    assert watched.look(10_000, 0.000_02)
    assert watched.tick(20_000)
    assert not watched.tick(19_999)
    assert watched.patience == 4 * PATIENCE


def test_a_stream_that_flows_four_times_slower_than_it_did_ends(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.ticks(200_000, 16) == 16
    assert watched.ticks(50_000, 16) == 16
    assert watched.ticks(49_999) == 15
    assert watched.patience == PATIENCE, "it was no mistake"


def test_a_stream_has_to_look_like_one_again_each_second(watched: Watched) -> None:
    pace, average = POLLED
    for _ in range(2):
        assert watched.look(average, pace)
        assert watched.ticks(40_000, 2000) == 1023


def test_a_tick_right_behind_a_late_one_is_not_held_against_it(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(200_000, seconds=5 * PERIOD)
    assert watched.tick(0, seconds=PERIOD / 10)


def test_what_is_slower_as_a_stream_is_none_for_a_while(watched: Watched) -> None:
    pace, average = POLLED  # 40,000 bytes in each period
    assert watched.look(average, pace)
    assert watched.ticks(29_000) == 15  # the next is the last
    assert watched.patience == 4 * PATIENCE
    assert watched.look(average, pace)
    assert watched.ticks(31_000) == 60
    assert not watched.tick(0)
    assert watched.patience == PATIENCE


def test_what_is_slower_in_the_long_run_is_none_for_a_while(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.ticks(40_000, 16) == 16  # what had piled up comes as well
    assert watched.ticks(25_000) == 64 - 17
    assert watched.patience == 4 * PATIENCE


def test_it_is_held_against_the_most_that_was_seen_which_fades(watched: Watched) -> None:
    pace, average = POLLED
    for _ in range(3):  # 40,000 bytes in each period; half of it; half of it
        assert watched.look(average, pace)
        assert watched.ticks(21_000) == 15
        average = 1_000
    for _ in range(4):
        assert watched.look(average, pace)
        watched.tick(0)
    assert watched.look(average, pace)
    assert watched.ticks(21_000) == 60


def test_what_ends_at_once_again_and_again_is_tried_ever_less_often(watched: Watched) -> None:
    pace, average = POLLED
    seen = []
    for _ in range(8):
        assert watched.look(average, pace)
        assert not watched.tick(0)
        seen.append(watched.patience // PATIENCE)
    assert seen == [4, 16, 64, 256, 1024, 1024, 1024, 1024]


def test_a_long_stream_is_looked_at_anew_where_ticks_find_much(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(2_600_000)
    assert watched.ticks(2_600_000, 100, seconds=PERIOD / 2) == 100
    assert watched.tick(5_300_000, seconds=PERIOD)  # a late one, not a faster flow
    assert not watched.tick(2_700_000, seconds=PERIOD / 2)
    assert watched.patience == PATIENCE
    assert not watched.look(150_000, pace)  # its writes are large ones by now


def test_where_much_flows_it_ticks_twice_as_often_until_less_does(watched: Watched) -> None:
    """Else the sender, who may have no more under way, would stand still between two ticks."""
    pace, average = POLLED
    assert watched.look(average, pace)
    ticks = watched.moderation._ticks
    assert ticks is not None
    periods = [PERIOD]
    for megabytes_in_a_period in (1.83, 1.85, 1.65, 1.63, 1.83):
        count = int(megabytes_in_a_period * periods[-1] / PERIOD * 1_000_000)
        assert watched.tick(count, seconds=periods[-1])
        periods.append(ticks.period)
    assert periods == [PERIOD, PERIOD, PERIOD / 2, PERIOD / 2, PERIOD, PERIOD]


def test_what_a_late_tick_finds_is_not_taken_for_much(watched: Watched) -> None:
    pace, average = POLLED
    assert watched.look(average, pace)
    assert watched.tick(5_000_000, seconds=3 * PERIOD)
    assert watched.moderation._ticks is not None
    assert watched.moderation._ticks.period == PERIOD


def test_the_last_bytes_of_a_limit_are_waited_for(watched: Watched) -> None:
    pace, average = POLLED
    assert not watched.look(average, pace, remaining=39_000)
    assert watched.look(average, pace, remaining=41_000)
    assert watched.tick(40_000, remaining=41_000)
    assert not watched.tick(40_000, remaining=39_000)
