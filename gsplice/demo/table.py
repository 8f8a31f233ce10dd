"""What a person reads: what is compared on which machine, and the figures."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import gevent

import gsplice
from gsplice import _kernel, _options
from gsplice._meter import count
from gsplice.demo import forwarders
from gsplice.demo.contest import Result
from gsplice.demo.processes import NAMES

#: Columns of a line, and of its parts; the ratio has what is left.
_WIDTH: Final = 78
_LABEL: Final = 40
_FIGURE: Final = 14


def heading() -> str:
    """Return what will be compared with what."""
    usual, ours = NAMES
    return f"""\
client -> forwarder -> backend, a process each, over TCP on loopback.
The same bytes go through two forwarders:

  {usual:14}the usual gevent code: a StreamServer, a greenlet for each
  {"":14}direction, buffers of {forwarders.BUFFER_SIZE // 1024} KiB
  {ours:14}gsplice.server.ForwardServer

{_paragraph("On this machine: " + ", ".join(_machine()))}
"""


def results(results: Sequence[Result], checked: int) -> str:
    """Return the figures of all scenarios, and how to read them.

    :param checked: how many bytes had the same SHA-256 at the far end.
    """
    parts = [
        f"SHA-256 at the far end: right through both, {checked / 1e6:,.0f} MB of random bytes.",
        _row("", *NAMES, "ratio") + "\n" + "\n".join(map(_figures, results)),
        _paragraph(
            f"Medians of {_rounds(results)}, in which the two take turns. Ratio: so many times the "
            "rate, so many times less CPU; above 1 is in gsplice's favour. CPU is the forwarder's "
            "own. Spliced bytes never left the kernel; what is small is copied, for which it takes "
            "less. In timed streams the far end counts and discards, so as not to be the limit; "
            "with 1 KiB writes the client may be. An MB is 10^6 bytes."
        ),
        _paragraph(_conclusion(results[0])),
    ]
    return "\n\n".join(parts)


def _machine() -> list[str]:
    return [
        f"{_cores()}",
        f"{platform.system()} {platform.release()} {platform.machine()}{_congestion_control()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        f"gevent {gevent.__version__} ({gevent.config.loop.__module__.removeprefix('gevent.')})",
        f"gsplice {gsplice.__version__} ({_mode()})",
    ]


def _cores() -> str:
    if hasattr(os, "sched_getaffinity"):
        return count(len(os.sched_getaffinity(0)), "core")
    return count(os.cpu_count() or 1, "core")


def _congestion_control() -> str:
    """Return how TCP connections begin to send here: some kinds pace, which takes CPU (tcp(7))."""
    try:
        name = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""
    return f" ({name})"


def _mode() -> str:
    return f"mode {_options.mode('auto')}" if _kernel.HAVE_SPLICE else "no splice on this platform"


def _figures(result: Result) -> str:
    usual, ours = (result.medians[name] for name in NAMES)
    rows = (
        (result.scenario.rate_unit, usual.rate, ours.rate, ours.rate / usual.rate),
        (result.scenario.cpu_unit, usual.cpu, ours.cpu, usual.cpu / ours.cpu),
    )
    return "\n".join(
        (
            result.scenario.title,
            *(
                _row(f"  {unit}", _number(theirs), _number(mine), f"{ratio:.2f} x")
                for unit, theirs, mine, ratio in rows
            ),
            _row("  spliced", "-", f"{ours.spliced:.0%}"),
        )
    )


def _row(label: str, usual: str, ours: str, ratio: str = "") -> str:
    ratio_width = _WIDTH - _LABEL - 2 * _FIGURE
    row = f"{label:{_LABEL}}{usual:>{_FIGURE}}{ours:>{_FIGURE}}{ratio:>{ratio_width}}"
    return row.rstrip()


def _number(number: float) -> str:
    """Return *number* with three figures that count, or all before the point."""
    decimals = 0 if number >= 100 else 1 if number >= 10 else 2 if number >= 1 else 3
    return f"{number:,.{decimals}f}"


def _rounds(results: Sequence[Result]) -> str:
    fewest, most = min(each.rounds for each in results), max(each.rounds for each in results)
    return count(most, "round") if fewest == most else f"{fewest} to {most} rounds"


def _conclusion(result: Result) -> str:
    usual, ours = (result.medians[name] for name in NAMES)
    return (
        f"Here, gsplice moves a stream at {ours.rate / usual.rate:.1f} times the rate, "
        f"and a byte of it costs {ours.cpu / usual.cpu:.0%} of the CPU."
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH)
