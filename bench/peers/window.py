"""What the peers in Python have in common, as ``peer.h`` is for those in C.

They may well be slower than the relay they are at the ends of, so that rates come out nearer to
each other than they are.
"""

import contextlib
import ctypes
import json
import signal
import socket
import time
from collections.abc import Sequence

from bench.machine import process_clock
from bench.processes import PR_SET_PDEATHSIG, allow_many_fds

LONGEST_START_SECONDS = 15.0
LONGEST_DRAIN_SECONDS = 5.0
DISCARD_SIZE = 1 << 20
SCRATCH = bytearray(DISCARD_SIZE)
NAMED_SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0)


def prepare_process() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    allow_many_fds()


def say(line: str) -> None:
    print(line, flush=True)


class Window:
    """A time to observe in, and what the named processes use of the CPU meanwhile."""

    def __init__(self, command: str) -> None:
        word, warmup, seconds, *pids = command.split()
        assert word == "measure", command
        self.begin = time.monotonic() + float(warmup)
        self.end = self.begin + float(seconds)
        self._clocks = [process_clock(int(pid)) for pid in pids]

    def open(self) -> None:
        self._cpu = [time.clock_gettime(clock) for clock in self._clocks]
        self._opened = time.monotonic()

    def close(self) -> None:
        seconds = time.monotonic() - self._opened
        used = [time.clock_gettime(clock) for clock in self._clocks]
        cpu = [after - before for before, after in zip(self._cpu, used, strict=True)]
        self.answer: dict[str, object] = {"seconds": seconds, "cpu": cpu}


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def discard(connection: socket.socket) -> int:
    """As ``recv_into``: TCP drops the bytes in the kernel, a unix socket has to copy them."""
    return connection.recv_into(SCRATCH, DISCARD_SIZE, socket.MSG_TRUNC)


def send_up_to(connection: socket.socket, payload: memoryview) -> memoryview:
    """What is left of the payload when the socket takes no more."""
    with contextlib.suppress(BlockingIOError):
        while payload:
            payload = payload[connection.send(payload) :]
    return payload


def latency_figures(latencies: Sequence[float]) -> dict[str, object]:
    ordered = sorted(latencies)

    def percentile(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    return {
        "messages": len(ordered),
        **{name: percentile(share) for name, share in NAMED_SHARES.items()},
        "quantiles": [(share, percentile(share)) for share in SHARES],
    }


def answer(window: Window, figures: dict[str, object]) -> None:
    say(json.dumps({**window.answer, **figures}))
