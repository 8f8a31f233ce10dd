"""What processes hold, as the kernel tells it: memory, and fds by their kind."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.processes import ProcessFailed


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    rss: int
    fds: Counter[str]  # by kind: "socket", "pipe", ...

    @classmethod
    def of(cls, pids: Sequence[int]) -> "Usage":
        fds = sum((_fds_by_kind(pid) for pid in pids), Counter[str]())
        return cls(sum(map(_rss, pids)), fds)


def _rss(pid: int) -> int:
    # Not statm: the kernel keeps that per CPU and adds it up when it pleases.
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise ProcessFailed(f"process {pid} has no RSS")


def _fds_by_kind(pid: int) -> Counter[str]:
    """Counted by what the links say: "socket:[4711]" is a socket."""
    folder = f"/proc/{pid}/fd"
    kinds = Counter[str]()
    for fd in os.listdir(folder):
        try:
            kinds[os.readlink(f"{folder}/{fd}").partition(":")[0]] += 1
        except FileNotFoundError:
            pass  # it has been closed since
    return kinds
