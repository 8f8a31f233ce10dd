"""Message bodies that gsplice sees through: a library's object, and the socket under it.

A library that parses a message's head gives its user an object to read the body from. The bytes
are those of a socket, so they can be spliced; but the object counts them, and does something at
their end (gives the connection back to a pool, say).

Invariant: an object knows of every byte that has been taken behind its back before any of its own
methods is called again. The end of the body it meets by itself: once its bytes have been taken, or
the socket has ended too early, it is read from as any loop would, and says what there is to say.

Each library has its own module in `gsplice.takeover`, which registers here how to look at its
objects. They are known by the name of their exact class, so no library has to be imported, and a
subclass, which may do something to the bytes, is used by its own methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gsplice import _account
from gsplice._endpoint import ObjectSource, SocketSource

#: Bytes. A body that is known to be smaller is cheaper to read than to see through.
_SMALL: Final = 64 * 1024


class Body:
    """What is left of a message's body.

    To make one touches every attribute of the object that is needed later: where a version of the
    library has not got it, that must be found out before a byte is taken.

    :param under: what its bytes come from: a reader on a socket, or a source that was made of one.
    :param left: how many they are; None for all up to end of file.
    :param read: how the object itself is read.
    """

    __slots__ = ("left", "read", "under")

    def __init__(self, under: Any, left: int | None, read: Callable[[int], bytes | None]) -> None:
        self.under = under
        self.left = left
        self.read = read

    def prepare(self) -> None:
        """Do what the object does before it reads the first byte; it may wait."""

    def took(self, count: int) -> None:
        """Have the object know that *count* bytes of it have been taken."""
        raise NotImplementedError

    def failed(self, error: Exception) -> Exception:
        """Have the object know that reading met *error*; return what its `read` had raised."""
        return error


class BodySource:
    """A body whose bytes can be taken from *inner* first, and then from the object itself."""

    __slots__ = ("body", "inner", "own")

    def __init__(self, body: Body, inner: SocketSource) -> None:
        self.body = body
        self.inner = inner
        self.own = ObjectSource(body.read)

    def failed(self, error: Exception) -> Exception:
        """Have the object know that reading met *error*; return what its `read` had raised."""
        self.inner.failed(error)
        return self.body.failed(error)

    def is_small(self, count: int | None) -> bool:
        """Whether there is so little to take that it is not worth while."""
        sizes = [size for size in (self.body.left, count) if size is not None]
        return bool(sizes) and min(sizes) < _SMALL

    def is_over(self, moved: int | None) -> bool:
        """Whether nothing is left of it but its end, once *moved* bytes have been taken."""
        return moved is not None and moved == self.body.left

    def first_count(self, count: int | None) -> int | None:
        """Return how many bytes *inner* has to give, where *count* are wanted."""
        left = self.body.left
        if left is None or count is None:
            return count if left is None else left
        return min(left, count)


#: ``module.Class`` → what looks at one; None where it cannot be seen through as it is now.
_looks: Final[dict[str, Callable[[Any], Body | None]]] = {}
#: ``module.Class`` → the attribute with the thing that the object does nothing but read.
_wrappers: Final[dict[str, str]] = {}


def see_through(class_name: str, look: Callable[[Any], Body | None]) -> None:
    """Register how to look at objects of the class *class_name*."""
    _looks[class_name] = look


def unwrap(class_name: str, attribute: str) -> None:
    """Register that objects of the class *class_name* stand for their *attribute*."""
    _wrappers[class_name] = attribute


def wrapped(thing: Any) -> Any:
    """Return what *thing* stands for; itself, mostly."""
    attribute = _wrappers.get(_class_name(thing))
    return thing if attribute is None else getattr(thing, attribute, thing)


def look(thing: Any) -> Body | None:
    """Return the body that *thing* is, None where it is none or cannot be seen through."""
    name = _class_name(thing)
    see = _looks.get(name)
    if see is None:
        return None
    try:
        return see(thing)
    except AttributeError:  # a version of the library that is not known
        _account.fell_back(f"{name} is not as expected")
        return None


def _class_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
