"""What a takeover has replaced, and how it is put back.

Invariant: `undo` leaves every owner with the very object that it had before, or without the
attribute where it had inherited it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

_INHERITED: Final = object()


class NotAsExpected(Exception):
    """A library is not, inside, what its takeover was written for."""


class Replacements:
    """The attributes that one takeover has replaced."""

    __slots__ = ("_record",)

    def __init__(self) -> None:
        self._record: list[tuple[Any, str, Any]] = []

    def original(self, owner: Any, name: str, *parameters: str) -> Callable[..., Any]:
        """Return the function *name* of a class or a module, which takes *parameters*.

        :raises NotAsExpected: where it is not there, or takes others.
        """
        function: Any = getattr(owner, name, None)
        try:
            found = tuple(inspect.signature(function).parameters)
        except (TypeError, ValueError) as error:  # it is none, or will not say
            raise NotAsExpected(name) from error
        if found != parameters:
            raise NotAsExpected(name)
        original: Callable[..., Any] = function
        return original

    def require(self, cls: Any, *names: str) -> None:
        """Make sure that objects of the class *cls* have all that the takeover uses besides.

        :raises NotAsExpected: where neither the class has it, nor its ``__init__`` sets it.
        """
        code = getattr(cls.__init__, "__code__", None)
        known = getattr(code, "co_names", ())
        for name in names:
            if name not in known and not hasattr(cls, name):
                raise NotAsExpected(name)

    def replace(self, owner: Any, name: str, new: Any) -> None:
        """Put *new* into a class or a module."""
        self._record.append((owner, name, vars(owner).get(name, _INHERITED)))
        setattr(owner, name, new)

    def undo(self) -> None:
        """Put every original back."""
        while self._record:
            owner, name, original = self._record.pop()
            if original is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
