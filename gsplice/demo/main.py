"""The command itself: from the heading to the table."""

from __future__ import annotations

import signal
import sys
from typing import Final

from gsplice import _output
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
        _output.say(f"gsplice: demo: {error}\n", sys.stderr)
        return 1
    except KeyboardInterrupt:
        _output.say("gsplice: demo: interrupted\n", sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _show(megabytes: int, rounds: int, seconds: float, progress: Progress) -> None:
    _output.say(f"{table.heading()}\n", sys.stdout)
    checked = min(megabytes, _VERIFIED) * 10**6
    with running_forwarders() as forwarders:
        contest = Contest(forwarders, rounds, seconds, progress)
        results = contest.run(scenarios(megabytes), checked)
    progress.clear()
    _output.say(f"{table.results(results, checked)}\n", sys.stdout)
