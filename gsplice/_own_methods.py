"""Whether a method of an object is its own, so that the object is used by its methods.

Where the bytes of an object are moved behind its back, its methods are not called. That is right
only as long as they do what its library wrote: a method that was put in the place of one (into the
object, into its class, or by a subclass) may count the bytes, or change them.

Invariant: a method counts as the library's only where its code comes from a module of the
library's. A name or a docstring would not do: `functools.wraps` copies them.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Final

#: What bytes are read by, and what they are written by.
READING: Final = ("read", "read1", "readinto", "readline", "recv", "recv_into")
WRITING: Final = ("write", "send", "sendall")

#: The flag of a class that nobody can change, as ``io``'s are (Include/object.h, from Python 3.10).
_IMMUTABLE: Final = 1 << 8
_BUILT_IN: Final = (types.MethodDescriptorType, types.WrapperDescriptorType)


def has_own(thing: Any, names: Iterable[str], *modules: str) -> bool:
    """Return whether one of the methods *names* of *thing* is its own.

    :param modules: where the others are defined; by default, where its class and its bases are.
    """
    cls, own = type(thing), getattr(thing, "__dict__", {})
    found = [own[name] for name in names if name in own]
    if not cls.__flags__ & _IMMUTABLE:
        methods = (getattr(cls, name, None) for name in names if name not in own)
        found += [one for one in methods if one is not None and not isinstance(one, _BUILT_IN)]
    if not found:
        return False
    known = modules or tuple(base.__module__ for base in cls.__mro__)
    return not all(_is_from(method, known) for method in found)


def level(thing: Any, name: str) -> int:
    """Return how far from *thing* its method *name* is defined: 0 in it, more in each base."""
    if name in getattr(thing, "__dict__", {}):
        return 0
    bases = type(thing).__mro__
    found = (number for number, base in enumerate(bases, 1) if name in vars(base))
    return next(found, len(bases) + 1)  # by `__getattr__`, if at all


def _is_from(method: Any, modules: Iterable[str]) -> bool:
    """Whether the code of *method* is from one of *modules*, or from a takeover."""
    module: str = getattr(method, "__globals__", {}).get("__name__", "")
    return module in modules or module.startswith("gsplice.")
