"""What everything does without the takeovers, and with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from peers import pattern

import gsplice

DATA = pattern(300_007, 7)
Outcome = tuple[Any, ...]


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Have everything taken over."""
    gsplice.patch_all()
    try:
        yield
    finally:
        gsplice.unpatch_all()


def outcome(function: Callable[[], Any]) -> Outcome:
    """Return what can be told about a call: its result, or its error."""
    try:
        return ("returned", function())
    except Exception as error:
        return (type(error), getattr(error, "errno", None), str(error), error.args)


def before_and_after(scenario: Callable[[], Outcome]) -> tuple[Outcome, Outcome]:
    """Run *scenario* without the takeovers, and with them."""
    before = scenario()
    with patched():
        return before, scenario()
