"""A long run of the model: a million operations and ten minutes at the least, each with its seed.

    python tests/soak.py
    python tests/soak.py --minutes 2 --operations 0 --seed 7 --output soak.json
    python tests/soak.py --seed 12 --rounds 1

It runs in rounds, each with a seed of its own: the first one's, and then one more each time. In
those of odd seeds whatever is read a few times is moderated. A round that fails prints the shortest
story of it that Hypothesis has found; the last line above runs a round again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gevent
import pytest
from eagerness import make_eager
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from model import Transfers

import gsplice

_ROUND = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def main() -> int:
    """Run rounds until there were enough of them, and write what has become of it."""
    options = _arguments()
    began = time.monotonic()
    rounds = 0
    failed = None
    while failed is None and _has_to_go_on(options, rounds, time.monotonic() - began):
        try:
            with pytest.MonkeyPatch.context() as patch:
                if (options.seed + rounds) % 2:
                    make_eager(patch, reads=4, rounds=2, plenty=64 * 1024)
                run_state_machine_as_test(seed(options.seed + rounds)(Transfers), settings=_ROUND)
        except BaseException:
            traceback.print_exc()
            failed = options.seed + rounds
        rounds += 1
        _show(options.seed + rounds - 1, time.monotonic() - began)
    result = _result(options.seed, rounds, time.monotonic() - began, failed)
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    if failed is not None:
        print(f"FAILED; again with: python tests/soak.py --seed {failed} --rounds 1")
    return failed is not None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="at the least (%(default)s)")
    parser.add_argument(
        "--operations", type=int, default=1_000_000, help="at the least (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="so many, whatever the other two say")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**9), help="of the first one"
    )
    parser.add_argument("--output", type=Path, help="a file for the result, in JSON")
    return parser.parse_args()


def _has_to_go_on(options: argparse.Namespace, rounds: int, seconds: float) -> bool:
    if options.rounds is not None:
        return bool(rounds < options.rounds)
    return bool(seconds < options.minutes * 60 or Transfers.operations() < options.operations)


def _show(last: int, seconds: float) -> None:
    counts = Transfers.counts
    print(
        f"{seconds:7.1f} s  seed {last}  {Transfers.operations():11,} operations"
        f"  {counts['open']:9,} connections  {counts['bytes'] / 1e6:10,.1f} MB",
        flush=True,
    )


def _result(first: int, rounds: int, seconds: float, failed: int | None) -> dict[str, Any]:
    loop = type(gevent.get_hub().loop)
    return {
        "passed": failed is None,
        "seeds": [first, first + rounds - 1],
        "failed seed": failed,
        "seconds": round(seconds, 1),
        "operations": Transfers.operations(),
        "counts": dict(sorted(Transfers.counts.items())),
        "fallbacks": gsplice.stats().fallbacks,
        "python": platform.python_version(),
        "gevent": f"{gevent.__version__} on {loop.__module__}",
        "kernel": os.uname().release,
    }


if __name__ == "__main__":
    sys.exit(main())
