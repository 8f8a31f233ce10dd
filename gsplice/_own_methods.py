"""Whether a method of an object is its own, so that the object is used by its methods.

Where the bytes of an object are moved behind its back, its methods are not called. That is right
only as long as they do what its library wrote: a method that was put in the place of one (into the
object, into its class, or by a subclass) may count the bytes, or change them.

Invariant: a method counts as the library's only where its code comes from a module of the
library's. A name or a docstring would not do: `functools.wraps` copies them.
"""

from __future__ import annotations

import functools
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
    has_in_itself = not own.keys().isdisjoint(names)
    if cls.__flags__ & _IMMUTABLE and not has_in_itself:
        return False
    known = modules or tuple([base.__module__ for base in cls.__mro__])
    if has_in_itself and not all(_is_from(own[name], known) for name in names if name in own):
        return True
    return _any_is_own(tuple([getattr(cls, name, None) for name in names]), known)


def _any_is_own(methods: tuple[Any, ...], modules: tuple[str, ...]) -> bool:
    try:
        return _looked_at(methods, modules)
    except TypeError:  # one of them cannot be hashed: that is no function of a library's
        return True


@functools.lru_cache(maxsize=64)
def _looked_at(methods: tuple[Any, ...], modules: tuple[str, ...]) -> bool:
    """Return whether one of *methods* is not from *modules*: for each class that is met, once."""
    found = (one for one in methods if one is not None and not isinstance(one, _BUILT_IN))
    return not all(_is_from(method, modules) for method in found)


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
