"""Drawn values of `AffineConv`, and how a law is held against direct evaluation.

Kernels, biases and images are small integers, so every sum and product is exact in float64 and a law either gives the
same tensor, bit for bit, or is wrong. Sizes are odd ones, not square, and the smallest legal among them: borders are
where a wrong law shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra.affine import AffineConv, Anchor, Constant
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.lazy import Lazy

Function = Callable[[Tensor], Tensor]


CHANNELS = 6


def integers(*shape: int) -> Tensor:
    """Whole numbers from -3 to 3, none of them zero."""
    return (torch.randint(1, 4, shape) * (2 * torch.randint(0, 2, shape) - 1)).double()


def constant(*shape: int) -> Constant:
    return Constant(shape, Lazy.of(integers(*shape)))


def anchor(spatial: int, channels: int = CHANNELS) -> Anchor:
    return Anchor("x", (1, channels, *[99] * spatial) if spatial else (1, channels))


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


def legal_sizes(smallest: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The smallest legal size and some above it, no two axes alike."""
    for extra in ((0, 0, 0), (1, 2, 0), (4, 1, 3), (3, 8, 2)):
        yield tuple(small + more for small, more in zip(smallest, extra, strict=False))


def images(*legal: AffineConv) -> Iterator[Tensor]:
    """Images of every size, all of them legal for every value in `legal`."""
    windows = zip(*[value.axes for value in legal], strict=True)
    for size in legal_sizes([max(axis.min_length for axis in window) for window in windows]):
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
            at = list(map(pixel_at, v.axes, map(position, v.axes, n, t), x.shape[2:]))
            if None not in at:
                pixels = channels[(..., *at)]
                y[(..., *n)] += torch.einsum("goi,bgi->bgo", blocks[(..., *t)], pixels).flatten(1)
    return y


def position(axis: Axis, output: int, tap: int) -> int:
    """Where a tap of an output reads, counted from the first pixel, with the zeros between the pixels."""
    return axis.stride * output + axis.dilation * tap - axis.lo


def pixel_at(axis: Axis, position: int, length: int) -> int | None:
    """Which of `length` pixels stands at a position that may be outside of them; None where there is a zero."""
    last = length - 1
    if 0 <= position <= axis.input_dilation * last:
        return None if position % axis.input_dilation else position // axis.input_dilation
    match axis.mode:
        case "reflect":
            return -position if position < 0 else 2 * last - position
        case "replicate":
            return 0 if position < 0 else last
        case "circular":
            return position % length
    return None


def stuffed(x: Tensor, steps: Sequence[int]) -> Tensor:
    """x with steps - 1 zeros between any two pixels."""
    wide = x.new_zeros(
        *x.shape[:2], *[step * (length - 1) + 1 for length, step in zip(x.shape[2:], steps, strict=True)]
    )
    wide[(..., *[slice(None, None, step) for step in steps])] = x
    return wide
