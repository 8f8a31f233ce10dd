"""What has to be known of the machine to read its figures."""

import importlib
import os
import platform
import time
from pathlib import Path

import gevent


def facts() -> dict[str, str]:
    return {
        "cpus": f"{len(os.sched_getaffinity(0))} x {_cpu_model()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "congestion control": _congestion_control(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gevent": f"{gevent.__version__}, {gevent.config.loop.__module__}",
        "gsplice": _gsplice_version(),
        "load": f"{os.getloadavg()[0]:.2f} before the start",
    }


def process_clock(pid: int) -> int:
    """The clock of a process's CPU time: all its threads, the ended ones too, to the nanosecond."""
    return (~pid << 3) | 2  # what clock_getcpuclockid(3) computes on Linux


class OtherLoad:
    """How many CPUs are busy with something else than the processes ``ours``, from now on.

    Steal counts: time that the host of a virtual machine gave to somebody else.
    """

    def __init__(self, ours: list[int]) -> None:
        self._clocks = [process_clock(pid) for pid in ours]
        self._begun = time.monotonic()
        self._before = self._used_by_others()

    def so_far(self) -> float:
        used = self._used_by_others() - self._before
        return max(0.0, used / (time.monotonic() - self._begun))

    def _used_by_others(self) -> float:
        return _machine_cpu_seconds() - sum(map(time.clock_gettime, self._clocks))


def _machine_cpu_seconds() -> float:
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _waiting, irq, softirq, steal = map(
            int, stat.readline().split()[1:9]
        )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def _congestion_control() -> str:
    """What TCP connections begin with here (tcp(7))."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "not known"


def _gsplice_version() -> str:
    try:
        return str(importlib.import_module("gsplice").__version__)
    except (ImportError, AttributeError):
        return "not there"
