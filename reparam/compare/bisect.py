"""Which of many makes something fail, found by halving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def bisect(candidates: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> T | None:
    """The element that makes `fails` true, found with about log2(len(candidates)) + 2 calls on prefixes.

    None where all of them together do not fail, or where it fails without any of them: then none is guilty. One guilty
    element is always found. Of several, it is one whose arrival turns a prefix from passing to failing.
    """
    if not fails(candidates) or fails(candidates[:0]):
        return None
    passing, failing = 0, len(candidates)
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if fails(candidates[:middle]):
            failing = middle
        else:
            passing = middle
    return candidates[failing - 1]
