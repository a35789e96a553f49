"""Numbers that are computed on demand, and for how long they are cached.

A kernel in float64 takes twice the memory of its float32 weights, and so does every intermediate kernel. Two rules keep
one of them in memory at a time: a law writes into the kernel that it is handed where nobody else has seen it
(`writable`), and within a `cache_scope` a large tensor is dropped as soon as the next one has been computed. A dropped
tensor is computed again when it is asked for again.

Which scope is open is the only state outside the values: a context variable, because the functions that compute numbers
call one another and take no arguments. It decides how long tensors stay in memory, never what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")

_SMALL = 2**20  # bytes: tensors up to this size are cached until the scope ends
_MISSING: Any = object()


class Lazy(Generic[T]):
    """A number that `compute` gives when it is first asked for.

    It is cached: for good, or as `cache_scope` says while one is open.

    first: the number that `compute` asks for first. It is computed before `compute` is called, and so is its own
        `first`: a chain of thousands does not recurse.
    depth: the length of that chain.
    """

    __slots__ = ("_compute", "_first", "_runs", "_shared", "_value", "depth")

    def __init__(self, compute: Callable[[], T], first: Lazy[Any] | None = None) -> None:
        self._compute: Callable[[], T] | None = compute
        self._first = first
        self._value: T = _MISSING
        self._runs = 0  # how often it was computed
        self._shared = True  # whether others may hold the value
        self.depth: int = 0 if first is None else first.depth + 1

    @staticmethod
    def of(value: T) -> Lazy[T]:
        """A value that is known already."""
        return Lazy(lambda: value)

    def __call__(self) -> T:
        value = self._get()
        self._shared = True
        return value

    def _get(self) -> T:
        value = self._value
        if value is not _MISSING:
            return value
        chain: list[Lazy[Any]] = [self]
        while (first := chain[-1]._first) is not None and first._is_missing:
            chain.append(first)
        while len(chain) > 1:
            chain.pop()._run()
        return self._run()

    @property
    def _is_missing(self) -> bool:
        return self._value is _MISSING

    def _run(self) -> T:
        assert self._compute is not None
        value = self._value = self._compute()
        if not isinstance(value, Tensor):
            self._compute = self._first = None
            return value
        self._runs += 1
        brief = self._runs == 1 and value.numel() * value.element_size() > _SMALL
        self._shared = not (brief and isinstance(self, Fresh))
        cache = _CACHE.get()
        if cache is not None:
            cache.add(self, brief)
        elif self._shared:
            self._compute = self._first = None  # cached for good
        return value

    def drop(self) -> None:
        """Compute the value again when it is asked for again."""
        self._value = _MISSING


class Fresh(Lazy[Tensor]):
    """A tensor in memory of its own: `compute` returns no alias of another tensor."""

    __slots__ = ()


class Uncached(Fresh):
    """A copy of a tensor that lives elsewhere: made at every call, never cached."""

    __slots__ = ()
    _is_missing = False

    def _get(self) -> Tensor:
        assert self._compute is not None
        return self._compute()


def writable(number: Lazy[Tensor]) -> Tensor:
    """The value in memory that the caller may overwrite: a copy, unless the tensor is large, new and unseen."""
    value = number._get()
    if isinstance(number, Uncached):
        return value
    if number._shared:
        return value.clone()
    number.drop()
    return value


class _Cache:
    """The tensors computed in a scope; `latest` is the last large one, if it was computed for the first time."""

    def __init__(self) -> None:
        self.tensors: set[Lazy[Any]] = set()
        self.latest: Lazy[Any] | None = None

    def add(self, number: Lazy[Any], brief: bool) -> None:
        self.tensors.add(number)
        if brief:
            if self.latest is not None and self.latest._runs == 1:
                self.latest.drop()
            self.latest = number

    def clear(self) -> None:
        for number in self.tensors:
            number.drop()
            number._runs = 0


_CACHE: ContextVar[_Cache | None] = ContextVar("cache", default=None)


@contextmanager
def cache_scope() -> Iterator[None]:
    """Drop all tensors that are computed within it when it ends, and large ones when the next large one is computed.

    A tensor that is computed a second time stays until the end, so none is computed three times.
    """
    cache = _Cache()
    token = _CACHE.set(cache)
    try:
        yield
    finally:
        _CACHE.reset(token)
        cache.clear()
