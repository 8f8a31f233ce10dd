"""Message bodies that gsplice sees through: a library's object, and the socket under it.

A library that parses a message's head gives its user an object to read the body from. The bytes
are those of a socket, so they can be spliced; but the object counts them, and does something at
their end (gives the connection back to a pool, say).

Invariant: an object knows of every byte that has been taken behind its back before any of its own
methods is called again. The end of the body it meets by itself: once its bytes have been taken, or
the socket has ended too early, it is read from as any loop would, and says what there is to say.

Each library has its own module in `gsplice.takeover`, which registers here how to look at its
objects. They are known by the name of their exact class, so no library has to be imported, and a
subclass, which may do something to the bytes, is used by its own methods. So is an object of which
a method has been replaced (`_own_methods`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gsplice import _account, _own_methods
from gsplice._endpoint import ObjectSource, SocketSource

#: Bytes. A body that is known to be smaller is cheaper to read than to see through, which takes two
#: engines and a wait for the hub: by pywsgi, in blocks of 8 KiB, one of 64 KiB is read for 0.7
#: times the CPU, and one of 128 KiB for as much.
_WORTHWHILE: Final = 128 * 1024


class Body:
    """What is left of a message's body.

    To make one touches every attribute of the object that is needed later: where a version of the
    library has not got it, that must be found out before a byte is taken.

    :param under: what its bytes come from: a socket, or a reader on one.
    :param left: how many they are; None for all up to end of file.
    """

    __slots__ = ("left", "under")

    def __init__(self, under: Any, left: int | None) -> None:
        self.under = under
        self.left = left

    def read(self, limit: int) -> bytes | None:
        """Read at most *limit* bytes as anyone would, by the object's own method."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Do what the object does before it reads the first byte; it may wait."""

    def take_buffered(self, limit: int | None) -> bytes:
        """Take what the library itself has read ahead of *under*, at most *limit* bytes."""
        return b""

    def took(self, count: int) -> None:
        """Have the object know that *count* bytes of it have been taken."""
        raise NotImplementedError

    def failed(self, error: OSError) -> Exception:
        """Have the object know that reading met *error*; return what its `read` had raised."""
        return error


class BodySource(SocketSource):
    """A body on a real stream socket: the bytes are the socket's, but `take` is its own `read`.

    :param under: the socket, with what has been read ahead of it.
    """

    __slots__ = ("_own", "body")

    def __init__(self, body: Body, under: SocketSource) -> None:
        super().__init__(under.socket, under.ahead)
        self.body = body
        self._own = ObjectSource(body.read)

    def take_buffered(self, limit: int | None) -> bytes:
        """Take what has been read from the socket already, at most *limit* bytes."""
        return self.body.take_buffered(limit) or super().take_buffered(limit)

    def take(self, limit: int) -> bytes:
        """Read at most *limit* bytes; none means the end of the body."""
        return self._own.take(limit)

    def failed(self, error: OSError) -> Exception:
        """Have the object know that reading met *error*; return what its `read` had raised."""
        super().failed(error)
        try:
            return self.body.failed(error)
        except Exception:  # a library's; the first error is the one to tell
            return error

    def is_small(self, count: int | None) -> bool:
        """Whether there is so little to take that it is not worth while."""
        return is_small(self.body.left) or is_small(count)

    def is_over(self, moved: int | None) -> bool:
        """Whether nothing is left of it but its end, once *moved* bytes have been taken."""
        return moved is not None and moved == self.body.left

    def first_count(self, count: int | None) -> int | None:
        """Return how many bytes the socket has to give, where *count* are wanted."""
        left = self.body.left
        if left is None or count is None:
            return count if left is None else left
        return min(left, count)


#: ``module.Class`` → what looks at one; None where it cannot be seen through as it is now.
_looks: Final[dict[str, Callable[[Any], Body | None]]] = {}
#: ``module.Class`` → the attribute with the thing that the object does nothing but read, and the
#: methods that it reads it by.
_wrappers: Final[dict[str, tuple[str, tuple[str, ...]]]] = {}


def is_small(size: int | None) -> bool:
    """Whether a body of *size* bytes, None for unknown, is not worth while."""
    return size is not None and size < _WORTHWHILE


def is_known(thing: Any) -> bool:
    """Whether *thing* is of a class that may be seen through."""
    return _class_name(thing) in _looks


def see_through(class_name: str, look: Callable[[Any], Body | None]) -> None:
    """Register how to look at objects of the class *class_name*."""
    _looks[class_name] = look


def unwrap(class_name: str, attribute: str, methods: tuple[str, ...]) -> None:
    """Register that objects of the class *class_name* stand for their *attribute*.

    :param methods: what such an object is read by, and used by where one of them is its own.
    """
    _wrappers[class_name] = attribute, methods


def wrapped(thing: Any) -> Any:
    """Return what *thing* stands for, however many wrappers are around it; itself, mostly."""
    while wrapper := _wrappers.get(_class_name(thing)):
        attribute, methods = wrapper
        inner = getattr(thing, attribute, None)
        if inner is None or _own_methods.has_own(thing, methods):
            break
        thing = inner
    return thing


def look(thing: Any) -> Body | None:
    """Return the body that *thing* is, None where it is none or cannot be seen through."""
    name = _class_name(thing)
    see = _looks.get(name)
    if see is None or _own_methods.has_own(thing, _own_methods.READING):
        return None
    try:
        return see(thing)
    except AttributeError:  # a version of the library that is not known
        _account.fell_back(f"{name} is not as expected")
        return None


def _class_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
