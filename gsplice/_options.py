"""The arguments that the calls have in common: checked in one place, with one message each."""

from __future__ import annotations

import math
import numbers
import operator
import os
from typing import Any, Final

MODES: Final = ("auto", "splice", "copy")
#: The environment variable that says what "auto" means, for the whole process.
_MODE_VARIABLE: Final = "GSPLICE_MODE"

#: The default of ``moderation``, in seconds.
MODERATION: Final = 0.001

#: A hundred years in seconds. What is longer has no end that anybody will see, and so counts as
#: infinite. No event loop fails before that: libuv does where the milliseconds, and its clock's,
#: have more than 64 bits.
LONGEST: Final = 100 * 365.25 * 24 * 60 * 60


def mode(given: str) -> str:
    """Return the mode to use; raise ValueError where *given*, or the environment, names none."""
    _check_mode("mode", given)
    if given != "auto":
        return given
    meant = os.environ.get(_MODE_VARIABLE) or "auto"
    _check_mode(f"the environment variable {_MODE_VARIABLE}", meant)
    return meant


def count(given: int | None) -> int | None:
    """Return the number of bytes to move, None for all."""
    number = _whole("count", given)
    if number is not None and number < 0:
        raise ValueError(f"count must not be negative: {number}")
    return number


def seconds(name: str, given: float | None) -> float | None:
    """Return the time-out *given* for *name* in seconds, None for none, or one without an end."""
    if given is None:
        return None
    number = _number(name, given)
    if not number > 0:
        raise ValueError(f"{name} must be more than 0 seconds: {given!r}")
    return None if math.isinf(number) else number


def moderation(given: float) -> float:
    """Return the longest that a byte may wait for company, in seconds."""
    return not_negative("moderation", given)


def not_negative(name: str, given: float) -> float:
    """Return the number of seconds *given* for *name*, which may be 0, and has to have an end."""
    number = _number(name, given)
    if not number >= 0:
        raise ValueError(f"{name} must not be negative: {given!r}")
    if math.isinf(number):
        raise ValueError(f"{name} must not be longer than a hundred years: {given!r}")
    return number


def max_connections(given: int | None, name: str = "max_connections") -> int | None:
    """Return how many connections a server may serve at once, None for any number."""
    number = _whole(name, given)
    if number is not None and number < 1:
        raise ValueError(f"{name} must be at least 1: {number}")
    return number


def _check_mode(name: str, given: str) -> None:
    if given not in MODES:
        raise ValueError(f"{name} must be 'auto', 'splice' or 'copy', not {given!r}")


def _whole(name: str, given: int | None) -> int | None:
    if given is None:
        return None
    try:
        return operator.index(given)
    except TypeError:
        raise TypeError(f"{name} must be an int or None, not {given!r}") from None


def _number(name: str, given: Any) -> float:
    if isinstance(given, numbers.Real):
        return _within_reason(given)
    raise TypeError(f"{name} must be a number of seconds, not {given!r}")


def _within_reason(given: Any) -> float:
    """Return the number *given*, and infinity for what is longer than `LONGEST`."""
    if given > LONGEST:
        return math.inf
    return float(max(given, -1))  # an int below that may be too large for a float
