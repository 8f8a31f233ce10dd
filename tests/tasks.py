"""What the tests of `Transfer` and of `Relay` have in common: both are tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent import socket
from peers import Line

import gsplice

each_task = pytest.mark.parametrize("make", [gsplice.Transfer, gsplice.Relay])
MakeTask = Callable[..., Any]


def end_both(ends: Line) -> None:
    """Let each side of the line come to its end."""
    for sock in (ends.client, ends.backend):
        sock.shutdown(socket.SHUT_WR)
