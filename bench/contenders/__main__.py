"""``python -m bench.contenders NAME BACKEND_PORT``: one contender, in this process."""

import ctypes
import os
import resource
import signal
import sys

from bench.contenders import contender_named

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def _end_with_parent() -> None:
    """Even if the bench is killed, no relay stays behind; what this process execs inherits it."""
    os.setpgid(0, 0)  # so that all it starts can be ended with it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _allow_many_fds() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(name: str, backend_port: str) -> None:
    _end_with_parent()
    _allow_many_fds()
    contender_named(name).serve(int(backend_port))


if __name__ == "__main__":
    main(*sys.argv[1:])
