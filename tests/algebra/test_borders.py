"""Padding, crops, copied borders and slices: every law exact, or refused because it would be wrong at some size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra.affine import AffineConv, PendingBorder
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.layer_form import widened
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal
from tests.algebra.laws import CHANNELS, anchor, check, column, integers, modes, padded, steps, stuffed, values


@st.composite
def frames(draw: st.DrawFn, v: AffineConv) -> list[tuple[int, int]]:
    """Paddings (negative: crops) of which at least one is not zero."""
    side = st.integers(-1, 2)
    pads = [(draw(side), draw(side)) for _ in v.axes]
    assume(any(map(any, pads)))
    return pads


def extended(v: AffineConv, pads: Sequence[tuple[int, int]]) -> AffineConv:
    """What folding a padding without asking whether it may would give."""
    return replace(v, axes=tuple(axis.padded(*pad) for axis, pad in zip(v.axes, pads, strict=True)))


def images_after_crop(v: AffineConv, pads: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Images of every remainder of every stride for which v is not empty, nor what is left of it after the crops."""
    naive = extended(v, pads)
    cropped = extended(v, [(min(lo, 0), min(hi, 0)) for lo, hi in pads])
    smallest = [max(each.min_length for each in axes) for axes in zip(v.axes, cropped.axes, naive.axes, strict=True)]
    for more in range(4 * max(axis.stride for axis in v.axes)):
        yield integers(1, v.in_channels, *[size + more for size in smallest])


@given(st.data(), st.integers(1, 3), st.sampled_from(["zero", "bias", "wrong"]))
def test_pad_is_exact_or_refused_of_necessity(data: st.DataObject, spatial: int, kind: str) -> None:
    v = data.draw(values(spatial))
    pads = data.draw(frames(v))
    value = {"zero": None, "bias": v.bias_value(), "wrong": v.bias_value() + 1}[kind]
    tries = list(images_after_crop(v, pads))
    naive = extended(v, pads)
    equal = all(torch.equal(naive(x), padded(v(x), pads, value)) for x in tries)
    try:
        law: AffineConv | PendingBorder | Refusal = v.pad(pads, None if value is None else Lazy.of(value))
    except Refusal as refusal:
        law = refusal
    if not v.is_transposed or equal is False:  # zeros between the pixels may hide what the window reads
        assert isinstance(law, AffineConv) == equal
    why = law.refusal if isinstance(law, PendingBorder) else law
    assert not isinstance(why, Refusal) or "border" in why.reason


@given(st.data(), st.integers(1, 3), modes)
def test_copied_borders_are_exact_or_refused(data: st.DataObject, spatial: int, mode: str) -> None:
    """Along any axis on which every output reads its own pixel, whatever the others read."""
    assume(mode != ZEROS)
    v = data.draw(values(spatial))
    pads = [(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(spatial)]
    if any(any(pad) and not axis.single for axis, pad in zip(v.axes, pads, strict=True)):
        with pytest.raises(Refusal, match=mode):
            v.pad_with_copies(pads, mode)
        pads = [pad if axis.single else (0, 0) for axis, pad in zip(v.axes, pads, strict=True)]
    flat = [side for pad in reversed(pads) for side in pad]
    check(v.pad_with_copies(pads, mode), lambda x: F.pad(v(x), flat, mode), v)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("before", [Axis(2), Axis(stride=2), Axis(lo=1, hi=0), Axis(lo=-1), Axis(3, lo=2, hi=2)])
def test_copied_borders_are_refused_of_necessity(before: Axis, mode: str) -> None:
    v = replace(
        AffineConv.of(anchor(1), 1), axes=(before,), kernel=Lazy.of(integers(6, 1, before.taps)), identity=False
    )
    naive = replace(v, axes=(replace(before.padded(1, 1), mode=mode),))
    tries = [integers(2, CHANNELS, length) for length in (9, 10)]
    assert not all(torch.equal(naive(x), F.pad(v(x), [1, 1], mode)) for x in tries)
    with pytest.raises(Refusal, match="gives other values"):
        v.pad_with_copies([(1, 1)], mode)


@given(st.data(), st.integers(1, 3))
def test_slice(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    axis, step = data.draw(st.integers(0, spatial - 1)), data.draw(steps)
    start, stop = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))

    def direct(x: Tensor) -> Tensor:
        y = v(x)
        index = slice(start, y.shape[axis + 2] - stop, step)
        return y[(slice(None),) * (axis + 2) + (index,)]

    if v.is_transposed and step > 1:
        with pytest.raises(Refusal, match="no layer"):
            v.slice(axis, start, stop, step)
        step = 1
    check(v.slice(axis, start, stop, step), direct, v)


@given(st.data(), st.integers(1, 3))
def test_widened_is_padded_as_a_layer_is(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    law = widened(v)
    if v.is_transposed:
        assert all(0 <= axis.hi - axis.lo < max(axis.input_dilation, axis.dilation) for axis in law.axes)
        assert all(axis.transposed_padding >= 0 for axis in law.axes)
    else:
        assert all(axis.lo == axis.hi >= 0 or axis.copies_pixels for axis in law.axes)
    assert [axis.min_length for axis in law.axes] == [axis.min_length for axis in v.axes]
    check(law, v, v)


@given(st.integers(-3, 6), st.integers(-3, 6))
def test_widening_one_tap_needs_few(lo: int, hi: int) -> None:
    """One tap at most at each end and the one in the middle, unless their distances share no step."""
    wide = Axis(1, 1, 1, lo, hi).widened()
    before, after = wide.lo - lo, wide.hi - hi
    assert wide.span == before + 1 + after
    assert wide.dilation == (math.gcd(before, after) or 1)


@given(st.data(), st.integers(1, 3))
def test_spread(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    by = [data.draw(steps) for _ in range(spatial)]
    spread = [axis for axis, step in zip(v.axes, by, strict=True) if step > 1]
    strided = any(axis.stride > 1 for axis in v.axes)
    if spread and (v.bias is not None or strided or not all(axis.single for axis in spread)):
        with pytest.raises(Refusal):
            v.dilate_input(by)
    else:
        check(v.dilate_input(by), lambda x: stuffed(v(x), by), v)


faces = st.tuples(st.integers(0, 1), st.integers(0, 1), st.booleans())


@given(st.data(), st.lists(faces, min_size=1, max_size=9))
def test_a_border_stands_once_every_face_holds_the_bias(
    data: st.DataObject, writes: list[tuple[int, int, bool]]
) -> None:
    """Faces overwritten in any order, with the right value or a wrong one: it folds exactly when the tensors agree."""
    v = AffineConv.of(anchor(2), 2).scale_shift(shift=Lazy.of(integers(CHANNELS)))
    pads = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(2)]
    assume(any(map(any, pads)))
    state = v.pad(pads)
    x = integers(1, CHANNELS, 2, 3)
    y, goal = padded(v(x), pads), extended(v, pads)(x)
    for axis, side, right in writes:
        width = pads[axis][side]
        if isinstance(state, AffineConv) or not width:
            continue
        value = v.bias_value() if right else v.bias_value() + 1
        length = y.shape[axis + 2]
        at = [slice(None)] * 4
        at[axis + 2] = slice(length - width, length) if side else slice(0, width)
        y[tuple(at)] = column(value, y)
        state = state.fill(axis, side, width, Lazy.of(value))
        assert isinstance(state, AffineConv) == torch.equal(y, goal)
        if isinstance(state, AffineConv):
            assert torch.equal(state(x), goal)


def test_a_face_of_another_depth_is_refused() -> None:
    v = AffineConv.of(anchor(2), 2).scale_shift(shift=Lazy.of(integers(CHANNELS))).pad([(1, 1), (1, 1)])
    assert isinstance(v, PendingBorder)
    with pytest.raises(Refusal, match="overwrites 2 pixels"):
        v.fill(0, 0, 2, Lazy.of(integers(CHANNELS)))


# --- the conditions one by one, on every small axis


def of_one_axis(axis: Axis) -> AffineConv:
    """One channel, no bias, every tap another number."""
    kernel = torch.arange(1.0, axis.taps + 1, dtype=torch.float64).view(1, 1, -1)
    return AffineConv(anchor(1, 1), 1, 1, 1, (axis,), Lazy.of(kernel))


SMALL = [
    Axis(taps, dilation, stride, lo, hi)
    for taps, dilation, stride in itertools.product((1, 2, 3), (1, 2), (1, 2, 3))
    for lo, hi in itertools.product((0, 1, 2), (0, 1, 2))
]


@pytest.mark.parametrize("pad", [(0, 1), (1, 0), (2, 0), (0, 2)])
def test_a_padding_is_refused_exactly_where_the_window_would_reach_into_the_image(pad: tuple[int, int]) -> None:
    """At every remainder of every stride: a bound that is one pixel too weak or too strict shows."""
    for axis in SMALL:
        v = of_one_axis(axis)
        naive = extended(v, [pad])
        tries = [integers(1, 1, axis.min_length + more) for more in range(2 * axis.stride)]
        exact = all(torch.equal(naive(x), F.pad(v(x), pad)) for x in tries)
        try:
            law = v.pad([pad])
        except Refusal:
            law = None
        assert (law is not None) == exact, axis


@pytest.mark.parametrize(("off", "folds"), [(1e-8, False), (1e-11, False), (1e-14, True), (0.0, True)])
def test_a_padding_that_rounds_differently_from_the_bias_is_the_bias(off: float, folds: bool) -> None:
    """Two formulas of one number differ by 1e-15 or so; two numbers that a model can tell apart differ by far more."""
    bias = torch.tensor([3.0, -7.0, 0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    v = AffineConv.of(anchor(1), 1).scale_shift(shift=Lazy.of(bias))
    value = bias.clone()
    value[1] *= 1 + off
    assert isinstance(v.pad([(1, 1)], Lazy.of(value)), AffineConv) == folds


def test_what_is_padded_by_less_than_it_rounds_is_no_constant_of_zero() -> None:
    """The tolerance is relative to the largest bias: tiny ones are not lost."""
    v = AffineConv.of(anchor(1), 1).scale_shift(shift=Lazy.of(torch.full((CHANNELS,), 1e-20, dtype=torch.float64)))
    assert isinstance(v.pad([(1, 1)]), PendingBorder)


@given(st.data(), st.integers(2, 3))
def test_zeros_are_put_between_the_pixels_of_each_axis(data: st.DataObject, spatial: int) -> None:
    """One axis after another: what was put between the pixels of the others stays."""
    by = [data.draw(st.integers(1, 3)) for _ in range(spatial)]
    v = AffineConv.of(anchor(spatial), spatial)
    for i, step in enumerate(by):
        v = v.dilate_input([step if j == i else 1 for j in range(spatial)])
    assert [axis.input_dilation for axis in v.axes] == by
    check(v, lambda x: stuffed(x, by))


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), *itertools.product((2, 3), (1, 2, 3))])
def test_transposed_axes_become_those_of_a_layer(taps: int, dilation: int) -> None:
    """Every padding and crop: `output_padding` stays below what torch allows, and no kernel grows without need."""
    for factor, lo, hi in itertools.product((2, 3), range(-2, 8), range(-2, 8)):
        axis = Axis(taps, dilation, 1, lo, hi, input_dilation=factor)
        wide = axis.widened_transposed()
        behind, front = wide.hi - axis.hi, wide.lo - axis.lo
        assert wide.slack == axis.slack
        assert min(behind, front, wide.transposed_padding) >= 0
        assert 0 <= wide.hi - wide.lo < max(factor, wide.dilation), axis
        assert behind == max(0, lo - (axis.span - 1), lo - hi)
        if front:
            assert wide.hi - wide.lo == factor - 1  # no more taps than are needed
            assert hi + behind - lo >= factor
        elif taps > 1 and not behind:
            assert (wide.taps, wide.dilation) == (taps, dilation)
