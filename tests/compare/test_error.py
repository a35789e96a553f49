"""The relative error between two outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.compare.error import relative_error

numbers = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=8)


@given(numbers, st.floats(1e-6, 1e6), st.floats(1e-8, 1e3))
def test_relative_error_measures_against_the_largest_value(values: list[float], scale: float, part: float) -> None:
    truth = torch.tensor(values, dtype=torch.float64)
    assert relative_error(truth, truth) == 0
    size = truth.abs().max().item()
    if size > 1e-3:
        shifted = truth.clone()
        shifted[0] += size * part
        assert relative_error(truth, shifted) == pytest.approx(part, rel=1e-6)
        assert relative_error(truth * scale, shifted * scale) == pytest.approx(part, rel=1e-6)


def test_relative_error_where_there_is_no_ratio() -> None:
    zero, one, none = torch.zeros(2), torch.ones(2), torch.zeros(0)
    nan, inf = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])
    assert relative_error(zero, zero) == 0
    assert relative_error(none, none) == 0
    assert relative_error(zero, one) == float("inf")
    assert relative_error(one, zero) == 1
    assert relative_error(nan, nan) == relative_error(inf, inf) == 0
    assert relative_error(nan, torch.tensor([1.5, float("nan")])) == 0.5
    for truth, value in [(nan, inf), (inf, nan), (inf, -inf), (one, nan), (nan, one), (nan, zero), (one, inf)]:
        assert relative_error(truth, value) == float("inf")
    assert relative_error(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    assert relative_error(torch.tensor([3 + 4j]), torch.tensor([3 + 3j])) == 0.25
    assert relative_error(zero, none) == float("inf")
