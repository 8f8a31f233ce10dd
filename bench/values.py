"""What options may be: types for argparse, which makes of what they raise one line for the user."""

import math
import os
from argparse import ArgumentTypeError
from pathlib import Path

from bench.regimes import MIB


def count(text: str) -> int:
    """How many: one, or more."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"{text} is less than 1")
    return number


def message_size(text: str) -> int:
    """Bytes: as many as the client has to send."""
    if (number := count(text)) > MIB:
        raise ArgumentTypeError(f"{text} is more than {MIB}")
    return number


def seconds(text: str) -> float:
    """How long: some time, and not for ever."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text} is no time that something can take")
    return number


def seconds_or_none(text: str) -> float:
    """The same, or no time at all."""
    return 0.0 if float(text) == 0 else seconds(text)


# What is measured for minutes has to find a place in the end; so it is tried out in the beginning.


def file_to_write(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written")
    return path


def folder_to_fill(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentTypeError(f"{text} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written to")
    return path
