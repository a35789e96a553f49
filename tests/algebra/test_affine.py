"""Every law of AffineConv against direct evaluation, exactly.

Kernels, biases and images are small integers, so every sum and product is exact in float64 and a law either gives the
same tensor, bit for bit, or is wrong. Sizes are odd ones, not square, and the smallest legal among them: borders are
where a wrong law shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra.affine import AffineConv, Anchor, Constant, PendingBorder
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.layer_form import widened
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal
from reparam.rewrite.layers import plain_layer

Function = Callable[[Tensor], Tensor]

CHANNELS = 6


def integers(*shape: int) -> Tensor:
    """Whole numbers from -3 to 3, none of them zero."""
    return (torch.randint(1, 4, shape) * (2 * torch.randint(0, 2, shape) - 1)).double()


def constant(*shape: int) -> Constant:
    return Constant(shape, Lazy.of(integers(*shape)))


def anchor(spatial: int, channels: int = CHANNELS) -> Anchor:
    return Anchor("x", (1, channels, *[99] * spatial) if spatial else (1, channels))


# --- what is drawn

spatials = st.integers(0, 3)
seeds = st.integers(0, 2**16).map(torch.manual_seed)
taps = st.sampled_from([1, 1, 2, 3, 4])
steps = st.sampled_from([1, 1, 2, 3])
modes = st.sampled_from([ZEROS, ZEROS, "reflect", "replicate", "circular"])
group_counts = st.sampled_from([1, 2, 3, 6])


@st.composite
def axes_of(draw: st.DrawFn) -> Axis:
    """Any geometry: even windows, uneven paddings, crops; and often that of the anchor itself."""
    if draw(st.integers(0, 3)) == 0:
        return Axis()
    return Axis(draw(taps), draw(steps), draw(steps), draw(st.integers(-2, 4)), draw(st.integers(-2, 4)), draw(modes))


@st.composite
def values(draw: st.DrawFn, spatial: int, axes: Sequence[Axis] | None = None, outputs: int | None = None) -> AffineConv:
    """Any AffineConv of the anchor, of a drawn number of groups (6 of 6 channels: depthwise, with a multiplier)."""
    draw(seeds)
    groups = draw(group_counts)
    out_channels = outputs or draw(st.sampled_from([6, 12]))
    if axes is None:
        axes = [draw(axes_of()) for _ in range(spatial)]
        if draw(st.integers(0, 3)) == 0:  # a transposed convolution, which has no stride and pads zeros
            axes = [replace(axis, stride=1, mode=ZEROS, input_dilation=draw(steps)) for axis in axes]
    if all(axis.size_key == Axis().size_key for axis in axes) and outputs in (None, CHANNELS) and draw(st.booleans()):
        return AffineConv.of(anchor(spatial), spatial)
    kernel = integers(out_channels, CHANNELS // groups, *[axis.taps for axis in axes])
    bias = Lazy.of(integers(out_channels)) if draw(st.booleans()) else None
    return AffineConv(anchor(spatial), CHANNELS, out_channels, groups, tuple(axes), Lazy.of(kernel), bias)


@st.composite
def convolutions(draw: st.DrawFn, spatial: int, channels: int) -> AffineConv:
    """An unpadded convolution of `channels` channels that nothing has been put into yet."""
    draw(seeds)
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 6, 12) if channels % g == 0]))
    out_channels = groups * draw(st.integers(1, 2))
    weight = constant(out_channels, channels // groups, *[draw(taps) for _ in range(spatial)])
    bias = constant(out_channels) if draw(st.booleans()) else None
    stride, dilation = ([draw(steps) for _ in range(spatial)] for _ in range(2))
    return AffineConv.conv(weight, bias, stride, dilation, groups)


@st.composite
def siblings(draw: st.DrawFn, outputs: int | None = None) -> tuple[AffineConv, AffineConv]:
    """Two values of one anchor that give equally many outputs at every size."""
    spatial = draw(spatials)
    first = draw(values(spatial, outputs=outputs))
    return first, draw(values(spatial, [draw(same_size(axis)) for axis in first.axes], outputs))


@st.composite
def same_size(draw: st.DrawFn, axis: Axis) -> Axis:
    """Another window, dilation and padding of the size_key of `axis`, and of its mode."""
    lo = draw(st.integers(-2, 4))
    other = Axis(draw(taps), draw(steps), axis.stride, lo, mode=axis.mode, input_dilation=axis.input_dilation)
    return replace(other, hi=axis.slack + other.span - other.lo)


# --- how it is checked


def sizes(smallest: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The smallest legal size and some above it, no two axes alike."""
    for extra in ((0, 0, 0), (1, 2, 0), (4, 1, 3), (3, 8, 2)):
        yield tuple(small + more for small, more in zip(smallest, extra, strict=False))


def images(*legal: AffineConv) -> Iterator[Tensor]:
    """Images of every size, all of them legal for every value in `legal`."""
    windows = zip(*[value.axes for value in legal], strict=True)
    for size in sizes([max(axis.min_length for axis in window) for window in windows]):
        yield integers(2, legal[0].in_channels, *size)


def check(law: AffineConv, direct: Function, *legal: AffineConv) -> None:
    """law(x) equals direct(x), and its shape is what its axes and groups say."""
    inner = [law.in_channels // law.groups, *[axis.taps for axis in law.axes]]
    assert list(law.kernel().shape) == [law.out_channels, *inner]
    assert law.bias_value().shape == (law.out_channels,)
    for x in images(law, *legal):
        y = law(x)
        assert torch.equal(y, direct(x))
        assert y.shape[2:] == tuple(map(Axis.outputs, law.axes, x.shape[2:]))


def column(numbers: Tensor, x: Tensor) -> Tensor:
    """One number per channel, shaped to broadcast over x."""
    return numbers.view(1, -1, *[1] * (x.dim() - 2))


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: Tensor | None = None) -> Tensor:
    """Padded with one value per channel, then cropped."""
    flat = [side for pad in reversed(pads) for side in pad]
    value = torch.zeros(x.shape[1], dtype=x.dtype) if value is None else value
    x = F.pad(x - column(value, x), [max(side, 0) for side in flat]) + column(value, x)
    return F.pad(x, [min(side, 0) for side in flat])


def convolved(outer: AffineConv, x: Tensor) -> Tensor:
    """What torch makes of an unpadded convolution."""
    if not outer.axes:
        channels = x.view(len(x), outer.groups, -1)
        rows = outer.kernel().view(outer.groups, -1, channels.shape[2])
        return torch.einsum("goi,bgi->bgo", rows, channels).flatten(1) + outer.bias_value()
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(outer.axes)]
    stride, dilation = [axis.stride for axis in outer.axes], [axis.dilation for axis in outer.axes]
    return convolution(x, outer.kernel(), outer.bias_value(), stride, 0, dilation, outer.groups)


def by_definition(v: AffineConv, x: Tensor) -> Tensor:
    """The formula of AffineConv, one output and one tap at a time."""
    sizes = list(map(Axis.outputs, v.axes, x.shape[2:]))
    y = column(v.bias_value(), x).repeat(len(x), 1, *sizes)
    blocks = v.kernel().view(v.groups, v.out_channels // v.groups, -1, *[axis.taps for axis in v.axes])
    channels = x.view(len(x), v.groups, -1, *x.shape[2:])
    for n in itertools.product(*map(range, sizes)):
        for t in itertools.product(*[range(axis.taps) for axis in v.axes]):
            ats = [axis.stride * i + axis.dilation * j - axis.lo for axis, i, j in zip(v.axes, n, t, strict=True)]
            at = list(map(pixel_at, v.axes, ats, x.shape[2:]))
            if None not in at:
                pixels = channels[(..., *at)]
                y[(..., *n)] += torch.einsum("goi,bgi->bgo", blocks[(..., *t)], pixels).flatten(1)
    return y


def pixel_at(axis: Axis, position: int, length: int) -> int | None:
    """Which of `length` pixels stands at a position that may be outside of them; None where there is a zero."""
    last = length - 1
    if 0 <= position <= axis.input_dilation * last:
        return None if position % axis.input_dilation else position // axis.input_dilation
    return {
        ZEROS: None,
        "reflect": -position if position < 0 else 2 * last - position,
        "replicate": min(max(position, 0), last),
        "circular": position % length,
    }[axis.mode]


# --- the meaning


@given(st.data(), spatials)
def test_a_call_is_the_formula(data: st.DataObject, spatial: int) -> None:
    v = data.draw(values(spatial))
    for size in list(sizes([axis.min_length for axis in v.axes]))[:2]:
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
def test_fed(data: st.DataObject, spatial: int, single: bool) -> None:
    """What pads and reads its anchor, reading what another made of that: exact wherever it is not refused."""
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
    """The step is the gcd of all tap positions, so a dilation survives whatever has a single tap."""
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
    """Sizes may differ at sizes of the anchor at which there is nothing to put side by side."""
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


@given(siblings(6), st.booleans())
def test_a_layer_takes_every_size_and_gives_the_same(pair: tuple[AffineConv, AffineConv], summed: bool) -> None:
    """What torch runs in the end, at the smallest size first: a value, and the sum of two."""
    v = pair[0] + pair[1] if summed else pair[0]
    module, _ = plain_layer(v, torch.empty(0, dtype=torch.float64))
    for x in images(v):
        assert torch.equal(module(x), v(x))


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


def stuffed(x: Tensor, steps: Sequence[int]) -> Tensor:
    """x with steps - 1 zeros between any two pixels."""
    wide = x.new_zeros(
        *x.shape[:2], *[step * (length - 1) + 1 for length, step in zip(x.shape[2:], steps, strict=True)]
    )
    wide[(..., *[slice(None, None, step) for step in steps])] = x
    return wide


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
