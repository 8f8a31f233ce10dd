"""The command itself: from the heading to the table."""

from __future__ import annotations

import signal
import sys
from typing import Final

from gsplice.demo import table
from gsplice.demo.contest import Contest
from gsplice.demo.deadline import DemoError
from gsplice.demo.processes import running_forwarders
from gsplice.demo.progress import Progress
from gsplice.demo.scenarios import scenarios

#: Megabytes whose SHA-256 is compared, at the most: hashing is slower than forwarding.
_VERIFIED: Final = 256


def run(megabytes: int, rounds: int, seconds: float) -> int:
    """Run the demonstration; return the exit status.

    :param megabytes: how much a round moves through each forwarder.
    :param rounds: how many rounds there are, at the most.
    :param seconds: how long all of it may take; rounds for which there is no time are left out.
    """
    try:
        with Progress(sys.stderr) as progress:
            _show(megabytes, rounds, seconds, progress)
    except DemoError as error:
        print(f"gsplice: demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gsplice: demo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _show(megabytes: int, rounds: int, seconds: float, progress: Progress) -> None:
    print(table.heading(), flush=True)
    checked = min(megabytes, _VERIFIED) * 10**6
    with running_forwarders() as forwarders:
        contest = Contest(forwarders, rounds, seconds, progress)
        results = contest.run(scenarios(megabytes), checked)
    progress.clear()
    print(table.results(results, checked), flush=True)
