"""The geometry of one axis, by numbers that torch itself gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from reparam.algebra.axis import Axis

AXES = [
    Axis(taps, dilation, stride, lo, hi, spare=spare)
    for taps, dilation, stride, lo, hi, spare in itertools.product(
        (1, 2, 3, 4), (1, 2), (1, 2, 3), (0, 1, 2), (0, 2), (0, 1)
    )
]


def outputs(axis: Axis, length: int) -> int:
    """Counted by torch."""
    window = nn.Conv1d(1, 1, axis.taps, axis.stride, 0, axis.dilation)
    return window(torch.zeros(1, 1, length + axis.lo + axis.hi)).shape[2]


@pytest.mark.parametrize("axis", AXES, ids=repr)
def test_the_number_of_outputs(axis: Axis) -> None:
    for length in range(axis.min_length, axis.min_length + 5):
        assert axis.outputs(length) == outputs(axis, length) > 0
    shorter = axis.min_length - 1
    assert shorter < 1 or axis.outputs(shorter) < 1


@pytest.mark.parametrize("axis", AXES, ids=repr)
def test_pixels_at_the_end_that_no_output_reads_are_trimmed_at_one_length(axis: Axis) -> None:
    for length in range(axis.min_length, axis.min_length + 5):
        trimmed = axis.trimmed(length)
        assert axis.outputs(length) == trimmed.outputs(length) == trimmed.balanced().outputs(length)
        assert (length + trimmed.slack) % axis.stride == 0
        assert trimmed.lo == axis.lo


@pytest.mark.parametrize(("taps", "dilation"), itertools.product(range(1, 7), (1, 2, 3)))
def test_the_padding_that_keeps_the_size(taps: int, dilation: int) -> None:
    """One more at the end, where the padding is odd: as torch says itself."""
    layer = nn.Conv1d(1, 1, taps, padding="same", dilation=dilation)
    lo, hi = layer._reversed_padding_repeated_twice
    assert Axis(taps, dilation, 1, lo, hi).is_same
    assert not Axis(taps, dilation, 1, lo + 1, hi - 1).is_same
    assert not Axis(taps, dilation, 1, lo, hi + 1).is_same
    assert not Axis(taps, dilation, 2, lo, hi).is_same
    assert not Axis(taps, dilation, 1, lo, hi, input_dilation=2).is_same
