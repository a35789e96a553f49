"""Bisection names the element that makes the difference."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from reparam.compare.bisect import bisect


@given(st.integers(1, 200), st.data())
def test_bisect_finds_a_planted_element(count: int, data: st.DataObject) -> None:
    guilty = data.draw(st.integers(0, count - 1))
    calls = []

    def fails(some: Sequence[int]) -> bool:
        calls.append(len(some))
        return guilty in some

    assert bisect(range(count), fails) == guilty
    assert len(calls) <= 2 + count.bit_length()


@given(st.integers(2, 50), st.data())
def test_bisect_names_one_of_several(count: int, data: st.DataObject) -> None:
    guilty = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    assert bisect(range(count), lambda some: not guilty.isdisjoint(some)) in guilty
    assert bisect(range(count), lambda some: guilty.issubset(some)) in guilty


def test_bisect_names_nothing_where_nothing_is_wrong() -> None:
    assert bisect([1, 2, 3], lambda some: False) is None
    assert bisect([1, 2, 3], lambda some: True) is None
    assert bisect([], lambda some: bool(some)) is None
