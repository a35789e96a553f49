"""Bisection: which of many elements makes something fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def bisect(candidates: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> T | None:
    """The element whose addition turns a passing prefix of `candidates` into a failing one.

    `fails` is called on about log2(len(candidates)) + 2 prefixes. None where all candidates together pass, and where
    the empty prefix fails: then none of them is guilty.
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
