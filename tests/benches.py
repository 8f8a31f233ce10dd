"""``python -m bench``, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from programs import ENVIRONMENT, PATIENCE, REPOSITORY

BENCH = (sys.executable, "-m", "bench")


def bench(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *words],
        cwd=REPOSITORY,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=3 * PATIENCE,
    )
