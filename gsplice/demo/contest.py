"""Rounds, in which the forwarders take turns, and what is made of their figures."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gsplice.demo import traffic
from gsplice.demo.deadline import DemoError, alive
from gsplice.demo.processes import Forwarder
from gsplice.demo.progress import Progress
from gsplice.demo.scenarios import Sample, Scenario
from gsplice.demo.traffic import Moved, Payload

#: Seconds without a byte, after which none will come.
_STALL: Final = 20


class Result(NamedTuple):
    """A scenario's figures: the medians of all rounds, by the forwarder's name."""

    scenario: Scenario
    rounds: int
    medians: dict[str, Sample]


class Contest:
    """Has all *forwarders* do the same, in *rounds* for which there are *seconds*."""

    def __init__(
        self, forwarders: Sequence[Forwarder], rounds: int, seconds: float, progress: Progress
    ) -> None:
        self._forwarders = forwarders
        self._rounds = rounds
        self._deadline = time.monotonic() + seconds
        self._progress = progress
        self._payload = Payload()

    def run(self, scenarios: Sequence[Scenario], checked: int) -> list[Result]:
        """Compare the SHA-256 of *checked* bytes, then measure all *scenarios*."""
        self._progress.steps = len(self._forwarders) * (1 + self._rounds * len(scenarios))
        for forwarder in self._forwarders:
            with self._step("SHA-256", forwarder, checked) as moved:
                traffic.verify(forwarder, self._payload, checked, moved)
        return [
            self._measure(scenario, len(scenarios) - done)
            for done, scenario in enumerate(scenarios)
        ]

    def _measure(self, scenario: Scenario, to_come: int) -> Result:
        """Measure *scenario* in its share of the time: one of *to_come*, it included."""
        samples: dict[str, list[Sample]] = {forwarder.name: [] for forwarder in self._forwarders}
        begin = time.monotonic()
        end = begin + (self._deadline - begin) / to_come
        for number in range(self._rounds):
            done = time.monotonic() - begin
            if number and begin + done * (number + 1) / number > end:
                self._progress.skip(len(self._forwarders) * (self._rounds - number))
                break
            # Who is first changes, so that whatever comes and goes on the machine favours nobody.
            for forwarder in self._forwarders[:: -1 if number % 2 else 1]:
                with self._step(scenario.title, forwarder, scenario.size) as moved:
                    sample = scenario.measure(forwarder, self._payload, moved)
                samples[forwarder.name].append(sample)
        rounds = len(samples[self._forwarders[0].name])
        return Result(scenario, rounds, {name: _median(them) for name, them in samples.items()})

    @contextlib.contextmanager
    def _step(self, title: str, forwarder: Forwarder, size: float) -> Iterator[Moved]:
        where = f"{forwarder.title}: {title}"
        with self._progress.step(title, forwarder.name, size), alive(where, _STALL) as happened:

            def moved(amount: float) -> None:
                self._progress.moved(amount)
                happened()

            try:
                yield moved
            except OSError as error:
                raise DemoError(f"{where}: {error}") from None


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(*map(statistics.median, zip(*samples, strict=True)))
