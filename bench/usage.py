"""What processes hold: memory and file descriptors."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

# One of them may end while it is looked at; it holds nothing then.
HAS_ENDED = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Usage:
    """Of some processes together."""

    rss: int
    fds: Counter[str]  # by kind: "socket", "pipe", ...

    @classmethod
    def of(cls, pids: Sequence[int]) -> "Usage":
        fds = sum((_fds_by_kind(pid) for pid in pids), Counter[str]())
        return cls(sum(map(_rss, pids)), fds)


def _rss(pid: int) -> int:
    # Not statm: the kernel keeps that per CPU and adds it up when it pleases.
    with suppress(*HAS_ENDED), open(f"/proc/{pid}/smaps_rollup") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    return 0


def _fds_by_kind(pid: int) -> Counter[str]:
    """Counted by what the links say: "socket:[4711]" is a socket."""
    folder = f"/proc/{pid}/fd"
    kinds: Counter[str] = Counter()
    with suppress(*HAS_ENDED):
        for fd in os.listdir(folder):
            with suppress(FileNotFoundError):  # it has just been closed
                kinds[os.readlink(f"{folder}/{fd}").partition(":")[0]] += 1
    return kinds
