"""Numbers worked out when they are asked for, and how long they are kept.

A kernel in float64 takes twice the memory of the weights that it is made of, and so does every kernel on the way to it.
Within `passing` they are kept for as long as they are of use, and forgotten at its end: a number that is asked for
again is worked out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")

_SMALL = 2**20  # bytes, of numbers that are always kept until the end
_UNKNOWN: Any = object()


class Lazy(Generic[T]):
    """A number worked out when it is first asked for: once, and at most twice within `passing`.

    first: another number, which the work asks for before any that is large or far. It is worked out before the work is
    begun, and so are those that come first for it, one after another: a chain of thousands does not nest.
    """

    __slots__ = ("_first", "_value", "_work", "depth")

    def __init__(self, work: Callable[[], T], first: Lazy[Any] | None = None) -> None:
        self._work: Callable[[], T] | None = work
        self._first = first
        self._value: T = _UNKNOWN
        self.depth: int = 0 if first is None else first.depth + 1

    def __call__(self) -> T:
        value = self._known()
        kept = _KEPT.get()
        if kept is not None and kept.unseen is self:
            kept.unseen = None
        return value

    def _known(self) -> T:
        value = self._value
        if value is not _UNKNOWN:
            return value
        chain: list[Lazy[Any]] = [self]
        while (before := chain[-1]._first) is not None and before.missing:
            chain.append(before)
        while len(chain) > 1:
            chain.pop()._worked_out()
        return self._worked_out()

    def _worked_out(self) -> T:
        assert self._work is not None
        value = self._value = self._work()
        kept = _KEPT.get()
        if kept is None or not isinstance(value, Tensor):
            self._work = self._first = None
        else:
            kept.add(self, value)
        return value

    @property
    def missing(self) -> bool:
        """Whether it has to be worked out before it is of use to another."""
        return self._value is _UNKNOWN

    def forget(self) -> None:
        """Work it out anew when it is asked for again."""
        self._value = _UNKNOWN


class Fresh(Lazy[Tensor]):
    """A tensor that its work makes anew: none of its memory is that of any other tensor."""

    __slots__ = ()


class Uncached(Fresh):
    """A copy of what lies elsewhere, made each time it is asked for and never kept."""

    __slots__ = ()
    missing = False

    def _known(self) -> Tensor:
        assert self._work is not None
        return self._work()


def taken(number: Lazy[Tensor]) -> Tensor:
    """What a number is, in memory of the caller's own, who may write into it.

    That is the very tensor where it has been made for this alone, and kept for nobody; else it is a copy.
    """
    value, kept = number._known(), _KEPT.get()
    if isinstance(number, Uncached):
        return value
    if kept is None or kept.unseen is not number or not isinstance(number, Fresh):
        return value.clone()
    kept.latest = kept.unseen = None
    number.forget()
    return value


class _Kept:
    """What is known for now: all that is small, what had to be worked out twice, and of all else the latest.

    unseen: the latest, as long as nobody has been given it.
    """

    def __init__(self) -> None:
        self.every: set[Lazy[Any]] = set()
        self.latest: Lazy[Any] | None = None
        self.unseen: Lazy[Any] | None = None

    def add(self, number: Lazy[Any], value: Tensor) -> None:
        if number in self.every or value.numel() * value.element_size() <= _SMALL:
            self.every.add(number)  # the second time it stays: nothing is worked out three times
            return
        self.every.add(number)
        if self.latest is not None and self.latest is not number:
            self.latest.forget()
        self.latest = self.unseen = number


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def passing() -> Iterator[None]:
    """Within this, tensors that are worked out are forgotten at its end, and large ones as soon as others follow."""
    kept = _Kept()
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)
        for number in kept.every:
            number.forget()
