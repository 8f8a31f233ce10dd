"""The standard library's ``shutil.copyfileobj``: what can be spliced is, the rest is as before."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, Final

from gsplice import _recognition
from gsplice._gevent import GeventSocket
from gsplice.takeover._replacements import Replacements
from gsplice.transfer import can_splice, copy

MODULE: Final = "shutil"


def install(module: ModuleType, replacements: Replacements) -> None:
    """Take over ``copyfileobj``."""
    original = replacements.original(module, "copyfileobj", "fsrc", "fdst", "length")

    @functools.wraps(original)
    def copyfileobj(fsrc: Any, fdst: Any, length: int = 0) -> None:
        needs_us = (
            isinstance(fsrc, GeventSocket)
            or isinstance(fdst, GeventSocket)
            # The original would lose what one write() does not take.
            or _recognition.writes_at_once(fdst)
        )
        if isinstance(length, int) and (needs_us or can_splice(fsrc, fdst)):
            copy(fsrc, fdst)
        else:
            original(fsrc, fdst, length)

    replacements.replace(module, "copyfileobj", copyfileobj)
