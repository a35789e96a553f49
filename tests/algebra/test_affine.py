"""Every law of AffineConv against direct evaluation, exactly.

Kernels, biases and images are small integers, so every sum and product is exact in float64 and a law either gives the
same tensor, bit for bit, or is wrong. Sizes are odd ones, not square, and the smallest legal among them: borders are
where a wrong law shows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra.affine import AffineConv, Anchor, Constant
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.layer_form import widened
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal
from reparam.rewrite.layers import plain_layer
from tests.algebra.laws import (
    CHANNELS,
    Function,
    anchor,
    axes_of,
    by_definition,
    check,
    column,
    constant,
    convolutions,
    convolved,
    group_counts,
    images,
    integers,
    legal_sizes,
    padded,
    same_size,
    seeds,
    siblings,
    spatials,
    steps,
    stuffed,
    values,
)

# --- what is drawn


# --- how it is checked


# --- the meaning


@given(st.data(), spatials)
def test_a_call_is_the_formula(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    for size in list(legal_sizes([axis.min_length for axis in v.axes]))[:2]:
        x = integers(2, CHANNELS, *size)
        assert torch.equal(v(x), by_definition(v, x))


@given(st.data(), spatials)
def test_the_anchor_is_the_identity(data: st.DataObject, spatial: int) -> None:
    v = AffineConv.of(anchor(spatial), spatial)
    assert v.identity
    assert v.pointwise
    check(v, lambda x: x)


@given(axes_of())
def test_the_smallest_size_gives_an_output_and_none_below_does(axis: Axis) -> None:
    assert axis.outputs(axis.min_length) >= 1
    if axis.min_length > 1 and not axis.copies_pixels:
        assert axis.outputs(axis.min_length - 1) < 1


@given(axes_of())
def test_the_smallest_size_may_be_padded_and_none_below_may(axis: Axis) -> None:
    v = AffineConv.of(anchor(1), 1)
    v = replace(v, axes=(axis,), kernel=Lazy.of(integers(CHANNELS, 1, axis.taps)), identity=False)
    v(integers(1, CHANNELS, axis.min_length))
    if axis.min_length > 1:
        with pytest.raises((RuntimeError, AssertionError)):
            v(integers(1, CHANNELS, axis.min_length - 1))


def test_channels_last_is_a_map_of_the_last_dimension() -> None:
    v = AffineConv.of(Anchor("x", (2, 3, 6)), 0).then(AffineConv.conv(constant(4, 6), constant(4)))
    x = integers(2, 5, 6)
    assert torch.equal(v(x), F.linear(x, v.kernel(), v.bias_value()))
    assert v.shape() == (2, 3, 4)


# --- composition


@given(st.data(), spatials)
def test_then(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    outer = data.draw(convolutions(spatial, v.out_channels))
    if v.is_transposed and any(axis.stride > 1 for axis in outer.axes):
        with pytest.raises(Refusal, match="no layer"):
            v.then(outer)
        return
    law = v.then(outer)
    assert law.groups == math.gcd(v.groups, outer.groups)
    check(law, lambda x: convolved(outer, v(x)))


@given(st.data(), st.integers(1, 3), st.booleans())
def test_applied_to(data: st.DataObject, spatial: int, single: bool) -> None:
    """A padded value of the anchor, applied to another value of the anchor: exact or refused."""
    outer = data.draw(values(spatial))
    inner = data.draw(values(spatial, [Axis()] * spatial if single else None, CHANNELS))
    try:
        law = outer.applied_to(inner)
    except Refusal:
        padded = any(axis.has_padding or axis.input_dilation > 1 for axis in outer.axes)
        assert padded or inner.is_transposed
        return
    for x in images(law, inner):
        y = inner(x)
        if all(length >= axis.min_length for length, axis in zip(y.shape[2:], outer.axes, strict=True)):
            assert torch.equal(law(x), outer(y))


@given(st.data(), spatials)
def test_scale_shift(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    length = st.sampled_from([1, v.out_channels])
    scale = data.draw(st.none() | length.map(integers))
    shift = data.draw(st.none() | length.map(integers))
    law = v.scale_shift(*[None if number is None else Lazy.of(number) for number in (scale, shift)])
    assert (law.axes, law.groups) == (v.axes, v.groups)

    def direct(x: Tensor) -> Tensor:
        y = v(x) if scale is None else v(x) * column(scale, x)
        return y if shift is None else y + column(shift, x)

    check(law, direct)


@given(axes_of(), axes_of())
def test_composed_taps_keep_the_coarsest_lattice(inner: Axis, outer: Axis) -> None:
    """The step is the gcd of all tap positions, so a composition with one tap keeps the dilation."""
    ends = [
        inner.dilation * i + inner.stride * outer.dilation * j for i in range(inner.taps) for j in range(outer.taps)
    ]
    both = inner.then(replace(outer, lo=0, hi=0))
    assert both.span == max(ends) + 1
    assert both.dilation == (math.gcd(*ends) or 1)


@given(st.data(), axes_of())
def test_joined_taps_keep_the_coarsest_lattice(data: st.DataObject, a: Axis) -> None:
    b = data.draw(same_size(a))
    at = sorted({axis.dilation * t - axis.lo for axis in (a, b) for t in range(axis.taps)})
    both = a.joined(b)
    assert (-both.lo, both.span) == (at[0], at[-1] - at[0] + 1)
    assert both.dilation == (math.gcd(*[position - at[0] for position in at]) or 1)
    assert (both.stride, both.slack) == (a.stride, a.slack)


def test_a_dilated_kernel_stays_small() -> None:
    wide = (
        AffineConv.of(anchor(2), 2).pad([(24, 24)] * 2).then(AffineConv.conv(constant(6, 6, 3, 3), dilation=[24, 24]))
    )
    folded = wide.then(AffineConv.conv(constant(6, 6, 1, 1))).scale_shift(Lazy.of(integers(6))) + AffineConv.of(
        anchor(2), 2
    )
    assert folded.kernel().shape == (6, 6, 3, 3)
    assert widened(folded).kernel().shape == (6, 6, 3, 3)


# --- sums and channels


@given(st.sampled_from([6, 12]).flatmap(siblings))
def test_sum(pair: tuple[AffineConv, AffineConv]) -> None:
    u, v = pair
    law = u + v
    assert law.groups == math.gcd(u.groups, v.groups)
    check(law, lambda x: u(x) + v(x), u, v)


@given(siblings())
def test_cat(pair: tuple[AffineConv, AffineConv]) -> None:
    u, v = pair
    check(u.cat(v), lambda x: torch.cat([u(x), v(x)], 1), u, v)


@given(st.data(), spatials)
def test_sums_are_refused_where_sizes_differ(data: st.DataObject, spatial: int) -> None:
    """Every refusal is necessary: at some size the two sides have different numbers of outputs, and may broadcast."""
    u, v = data.draw(values(spatial, outputs=6)), data.draw(values(spatial, outputs=6))
    pairs = list(zip(u.axes, v.axes, strict=True))
    alike = all(
        a.outputs(length) == b.outputs(length)
        for a, b in pairs
        for length in range(max(a.min_length, b.min_length), 60)
    )
    padded_alike = all(a.mode == b.mode for a, b in pairs if a.has_padding and b.has_padding)
    if alike and padded_alike:
        u + v
    else:
        with pytest.raises(Refusal, match="pads with" if alike else "size of their output|pads with"):
            u + v


@given(st.data(), spatials)
def test_cat_is_exact_wherever_there_is_one(data: st.DataObject, spatial: int) -> None:
    """The outputs may differ in size where the concatenation would fail."""
    axes = [data.draw(axes_of()) for _ in range(spatial)]
    u = data.draw(values(spatial, [replace(axis, mode=ZEROS) for axis in axes], outputs=6))
    others = [data.draw(same_size(axis)) for axis in u.axes]
    others = [replace(axis, hi=axis.hi + data.draw(st.integers(1 - axis.stride, axis.stride - 1))) for axis in others]
    v = data.draw(values(spatial, others, outputs=6))
    if any(a.outputs(99) != b.outputs(99) for a, b in zip(u.axes, v.axes, strict=True)):
        with pytest.raises(Refusal, match="size of their output"):
            u.cat(v)
        return
    law = u.cat(v)
    for start in range(6):
        sizes = [
            [n for n in range(max(a.min_length, b.min_length), 40) if a.outputs(n) == b.outputs(n) > 0][start]
            for a, b in zip(u.axes, v.axes, strict=True)
        ]
        x = integers(1, CHANNELS, *sizes)
        truth = torch.cat([u(x), v(x)], 1)
        assert torch.equal(law(x), truth)
        assert torch.equal(widened(law)(x), truth)
        assert torch.equal(plain_layer(law, x)[0](x), truth)


def test_sums_of_other_tensors_layouts_and_channels_are_refused() -> None:
    u = AffineConv.of(anchor(2), 2)
    with pytest.raises(Refusal, match="different tensors"):
        u + AffineConv.of(replace(anchor(2), key="z"), 2)
    with pytest.raises(Refusal, match="channels last"):
        u + AffineConv.of(anchor(2), 0)
    with pytest.raises(Refusal, match="broadcasts"):
        u + u.take([0])


@given(st.data(), spatials)
def test_take(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    rows = data.draw(st.lists(st.integers(0, v.out_channels - 1), min_size=1, max_size=12))
    check(v.take(rows), lambda x: v(x)[:, rows])


@given(st.data(), spatials, group_counts, st.integers(1, 3))
def test_take_keeps_groups_that_keep_their_own(data: st.DataObject, spatial: int, groups: int, each: int) -> None:
    v = data.draw(values(spatial))
    assume(v.groups % groups == 0)
    block = v.out_channels // groups
    rows = [g * block + data.draw(st.integers(0, block - 1)) for g in range(groups) for _ in range(each)]
    law = v.take(rows)
    assert law.groups >= groups  # other groups may fit these rows as well, and more of them
    check(law, lambda x: v(x)[:, rows])


# --- borders


@given(siblings(6), st.booleans())
def test_a_layer_takes_every_size_and_gives_the_same(pair: tuple[AffineConv, AffineConv], summed: bool) -> None:
    """The layer of torch that computes a value, or the sum of two, from the smallest size on."""
    v = pair[0] + pair[1] if summed else pair[0]
    module, _ = plain_layer(v, torch.empty(0, dtype=torch.float64))
    for x in images(v):
        assert torch.equal(module(x), v(x))


# --- layouts


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_only_the_anchor_itself_can_be_seen_in_another_layout(rank: int) -> None:
    shape = (2, 6, 6, 6, 6)[:rank]
    first = AffineConv.of(Anchor("x", shape), rank - 2)
    last = first.with_layout(0)
    assert last.axes == ()
    assert last.channels_first().axes == first.axes
    x = integers(*shape)
    assert torch.equal(last(x), x)
    with pytest.raises(Refusal):
        first.with_layout(rank - 1)
    changed = first.scale_shift(Lazy.of(integers(6)))
    assert changed.with_layout(rank - 2) is changed
    if rank > 2:
        with pytest.raises(Refusal, match="channels last"):
            changed.with_layout(0)


# --- chains of all of it


@st.composite
def chains(draw: st.DrawFn) -> tuple[AffineConv, Function, list[AffineConv]]:
    """A value built by several laws, the same computed step by step, and every value on the way (none may be empty)."""
    spatial = draw(spatials)
    start = AffineConv.of(anchor(spatial), spatial)
    value, direct, way = start, (lambda x: x), [start]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from("conv spread scale branch slice take pad widen".split()))
        try:
            value, direct = _lengthened(draw, kind, value, direct)
        except Refusal:
            continue
        way.append(value)
    return value, direct, way


def _lengthened(draw: st.DrawFn, kind: str, v: AffineConv, f: Function) -> tuple[AffineConv, Function]:
    draw(seeds)
    if kind == "conv" and v.out_channels in (6, 12):
        outer = draw(convolutions(len(v.axes), v.out_channels))
        return v.then(outer), lambda x: convolved(outer, f(x))
    if kind == "spread":
        by = [2] + [draw(steps) for _ in v.axes[1:]] if v.axes else []
        return v.dilate_input(by), lambda x: stuffed(f(x), by)
    if kind == "scale":
        scale, shift = integers(v.out_channels), integers(v.out_channels)
        return v.scale_shift(Lazy.of(scale), Lazy.of(shift)), lambda x: f(x) * column(scale, x) + column(shift, x)
    if kind == "branch":
        axes = [draw(same_size(axis)) for axis in v.axes]
        kernel = Lazy.of(integers(v.out_channels, v.in_channels, *[axis.taps for axis in axes]))
        other = AffineConv(v.anchor, v.in_channels, v.out_channels, 1, tuple(axes), kernel)
        return v + other, lambda x: f(x) + other(x)
    if kind == "slice" and v.axes:
        return v.slice(0, 1, 1, 2), lambda x: f(x)[:, :, 1:-1:2]
    if kind == "take":
        rows = list(range(v.out_channels))[::-1]
        return v.take(rows), lambda x: f(x)[:, rows]
    if kind == "pad" and v.axes:
        pads, value = [(1, 2)] + [(0, 1)] * (len(v.axes) - 1), v.bias_value()
        law = v.pad(pads, Lazy.of(value))
        assert isinstance(law, AffineConv)
        return law, lambda x: padded(f(x), pads, value)
    return widened(v), f


@given(chains())
def test_chains(chain: tuple[AffineConv, Function, list[AffineConv]]) -> None:
    value, direct, way = chain
    check(value, direct, *way)


# --- shapes first, numbers later


def test_laws_compute_no_kernel() -> None:
    def never() -> Tensor:
        raise AssertionError("a kernel was worked out")

    v = AffineConv(anchor(2), CHANNELS, CHANNELS, 2, (Axis(3, lo=2, hi=2),) * 2, Lazy(never))
    outer = replace(v, axes=(Axis(3),) * 2)
    padded_twice = v.pad([(1, 1), (1, 1)])
    assert isinstance(padded_twice, AffineConv)
    result = (padded_twice.then(outer) + padded_twice.then(outer)).cat(padded_twice.then(outer)).take([1, 2])
    result = widened(result.scale_shift(Lazy.of(integers(2)), Lazy.of(integers(2))).slice(0, 1))
    assert result.out_channels == 2
    with pytest.raises(AssertionError, match="worked out"):
        result.kernel()


def test_a_value_is_computed_once() -> None:
    made: list[int] = []
    number = Lazy(lambda: made.append(1) or torch.ones(1))
    assert torch.equal(number(), number())
    assert made == [1]


@pytest.mark.parametrize("way", ["left", "right", "scaled", "composed", "concatenated"])
def test_thousands_of_steps_do_not_nest(way: str) -> None:
    """One after another, whichever side of a sum they are on."""
    count, start = 3000, anchor(0, 1)
    one = Constant((1, 1), Lazy.of(torch.ones(1, 1, dtype=torch.float64)))
    ones = Lazy.of(torch.ones(1, dtype=torch.float64))
    step = AffineConv.conv(one, Constant((1,), ones))
    value = first = AffineConv.of(start, 0).then(step)
    for _ in range(count):
        if way == "left":
            value = value + first
        elif way == "right":
            value = first + value
        elif way == "scaled":
            value = value.scale_shift(ones, ones)
        elif way == "composed":
            value = value.then(step)
        else:
            value = value.cat(first)
    total = value.out_channels if way == "concatenated" else count + 1
    assert value.bias_value().sum() == total == count + 1
    assert value.kernel().sum() == (1 if way in ("scaled", "composed") else total)
