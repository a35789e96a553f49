"""The theory, once: a convolution of one tensor, and the laws by which such convolutions combine.

Between two non-linearities a trained network is affine and does the same at every pixel: convolutions, batch norms in
eval mode, sums, paddings, average pools, scalings. What such a region computes from one tensor x, its *anchor*, has the
form

    y[o, n] = bias[o] + sum over i, t of kernel[o, i, t] * x0[i, stride * n + dilation * t - lo]

where x0 is x with zeros around it (or with copies of its pixels, along an axis whose `mode` is "reflect", "replicate"
or "circular"), and n runs over `floor((L + lo + hi - span) / stride) + 1` positions, with
`span = dilation * (taps - 1) + 1`. That is an `AffineConv`. In a transposed convolution, x and L are those of x with
`input_dilation - 1` zeros between its pixels. A value never needs to know the input size L: every law below is exact
for all sizes, and a combination that would not be is refused.

With no spatial axis it is a linear map of the last dimension (nn.Linear), with one to three it is Conv1d, Conv2d or
Conv3d on dimension 1. Numbers are float64 and lazy: laws decide on shapes, and a kernel is computed only when somebody
asks for it. (The padding law asks for the bias.)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.kernels import (
    CONV,
    add_embedded,
    broadcast_channels,
    convolve_kernels,
    dilated,
    embedded,
    fills,
    flat_pads,
    pad_bias_map,
    pad_in_mode,
    regroup,
    scale_inputs_,
    scale_outputs_,
)
from reparam.algebra.lazy import Fresh, Lazy, writable
from reparam.errors import BorderRefusal, Refusal

# Two constants that stand for the same number may come from different formulas, each a handful of float64 operations
# with some cancellation: 2**-40 is about 1e-12, two orders below what verification allows in total.
ROUNDING = 2.0**-40


Number = Lazy[Tensor]


@dataclass(frozen=True)
class Constant:
    """A tensor computed from parameters, buffers and literals alone; `value` is float64 (integers stay integers)."""

    shape: tuple[int, ...]
    value: Number


@dataclass(frozen=True)
class Anchor:
    """A tensor that convolutions start from: its identity (`key`), and the shape it had when it was recorded.

    fixed: its spatial sizes never change. Then zero padding of a bias is known for every pixel.
    """

    key: Hashable
    shape: tuple[int, ...]
    fixed: bool = False


@dataclass(frozen=True)
class AffineConv:
    """A convolution of `anchor` (for the formula, see the text of the module).

    kernel: float64, (out_channels, in_channels / groups, *taps), lazy.
    bias: float64, (out_channels,), lazy; None if it is zero by construction.
    bias_per_pixel: the bias is (out_channels, *sizes) instead: one number per channel and pixel of a fixed size.
    identity: it is the anchor itself, by construction.
    mean: it is an unpadded mean over pixels, the same for every channel, by construction: it commutes with maps of
        channels.
    """

    anchor: Anchor
    in_channels: int
    out_channels: int
    groups: int
    axes: tuple[Axis, ...]
    kernel: Number
    bias: Number | None = None
    identity: bool = False
    mean: bool = False
    bias_per_pixel: bool = False

    @staticmethod
    def of(anchor: Anchor, spatial: int) -> AffineConv:
        """The anchor as the identity convolution of itself, with `spatial` spatial axes."""
        channels = anchor.shape[1 if spatial else -1]
        kernel = Lazy(lambda: torch.ones(channels, 1, *[1] * spatial, dtype=torch.float64))
        return AffineConv(anchor, channels, channels, channels, (Axis(),) * spatial, kernel, identity=True)

    @staticmethod
    def conv(
        weight: Constant,
        bias: Constant | None = None,
        stride: Sequence[int] | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
    ) -> AffineConv:
        """An unpadded convolution without an anchor, for `then`; weight as in torch: (out, in / groups, *taps)."""
        out_channels, inner, *taps = weight.shape
        ones = [1] * len(taps)
        axes = tuple(map(Axis, taps, dilation or ones, stride or ones))
        free = Anchor(None, (1, inner * groups, *ones))
        number = None if bias is None else bias.value
        return AffineConv(free, inner * groups, out_channels, groups, axes, weight.value, number)

    # --- what it is

    @property
    def pointwise(self) -> bool:
        """Whether it is a scale and shift per channel."""
        return self.groups == self.in_channels == self.out_channels and self.pixelwise

    @property
    def pixelwise(self) -> bool:
        """Whether it is a 1x1 convolution: a map of the channels of each pixel, the same for every pixel."""
        return not self.bias_per_pixel and all(axis.single for axis in self.axes)

    @property
    def diagonal(self) -> bool:
        """Whether its kernel is one number per channel (the stride may be any)."""
        return self.groups == self.in_channels == self.out_channels and all(axis.taps == 1 for axis in self.axes)

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return any(axis.input_dilation > 1 for axis in self.axes)

    @property
    def modes(self) -> frozenset[str]:
        """The modes in which it pads."""
        return frozenset(axis.mode for axis in self.axes if axis.has_padding)

    @property
    def taps(self) -> int:
        """The number of taps of the whole window."""
        return math.prod(axis.taps for axis in self.axes)

    def shape(self) -> tuple[int, ...]:
        """The shape of the result at the recorded size."""
        if not self.axes:
            return (*self.anchor.shape[:-1], self.out_channels)
        sizes = map(Axis.outputs, self.axes, self.anchor.shape[2:])
        return (self.anchor.shape[0], self.out_channels, *sizes)

    def bias_value(self) -> Tensor:
        """The bias, zeros for None."""
        return torch.zeros(self.out_channels, dtype=torch.float64) if self.bias is None else self.bias()

    def __call__(self, x: Tensor) -> Tensor:
        """The meaning: the result for an anchor tensor x, computed in x's dtype. The laws are tested against this."""
        if self.bias_per_pixel:
            return replace(self, bias=None, bias_per_pixel=False)(x) + self.bias_value().to(x)
        kernel, bias = self.kernel().to(x), self.bias_value().to(x)
        if not self.axes:
            return F.linear(x, regroup(kernel, self.groups, 1), bias)
        x = dilated(x, [axis.input_dilation for axis in self.axes])
        # Pad first, crop second: at small sizes a crop at one end may reach into the padding of the other.
        for mode in self.modes:
            x = pad_in_mode(x, self.sides(mode), mode)
        x0 = F.pad(x, flat_pads([(min(axis.lo, 0), min(axis.hi, 0)) for axis in self.axes]))
        stride, dilation = [axis.stride for axis in self.axes], [axis.dilation for axis in self.axes]
        return CONV[len(self.axes)](x0, kernel, bias, stride, 0, dilation, self.groups)

    def sides(self, mode: str) -> list[int]:
        """How much it pads in a mode, in the order of F.pad."""
        return flat_pads(self._pads(mode))

    # --- laws

    def with_layout(self, spatial: int) -> AffineConv:
        """The same value with channels on dimension 1 and `spatial` axes, or (0) with channels on the last dimension.

        Only the anchor itself can be read in either layout. Raises Refusal for anything else.
        """
        if len(self.axes) == spatial:
            return self
        if self.identity and len(self.anchor.shape) == (spatial + 2 if spatial else len(self.anchor.shape)):
            return AffineConv.of(self.anchor, spatial)
        raise Refusal(f"it reads {_layout(spatial)}, but its input has {_layout(len(self.axes))}")

    def channels_first(self) -> AffineConv:
        """The same value with channels on dimension 1, as batch norm and constants of shape (C, 1, 1) read it."""
        return self.with_layout(len(self.anchor.shape) - 2)

    def then(self, outer: AffineConv) -> AffineConv:
        """`outer`, which is unpadded, after this: kernels compose, strides multiply, lo and hi stay. Always exact."""
        if outer.in_channels != self.out_channels:
            raise Refusal(f"it reads {outer.in_channels} channels, but its input has {self.out_channels}")
        groups = math.gcd(self.groups, outer.groups)
        axes = _layer_axes(map(Axis.then, self.axes, outer.axes))

        def kernel() -> Tensor:
            return _compose(self, outer, groups, axes)

        def bias() -> Tensor:
            if self.bias_per_pixel:
                strides, dilations = [axis.stride for axis in outer.axes], [axis.dilation for axis in outer.axes]
                conv, image = CONV[len(axes)], self.bias_value()[None]
                biases: Tensor = conv(image, outer.kernel(), None, strides, 0, dilations, outer.groups)[0]
                return biases + broadcast_channels(outer.bias_value(), biases.dim())
            inner = self.bias_value().repeat_interleave(outer.taps).view(outer.groups, -1, 1)
            sums = outer.kernel().flatten(1).view(outer.groups, -1, inner.shape[1]) @ inner
            return sums.flatten() + outer.bias_value()

        number = outer.bias if self.bias is None else Lazy(bias, self.bias)
        return replace(
            self, out_channels=outer.out_channels, groups=groups, axes=axes, kernel=Fresh(kernel, self.kernel),
            bias=number, identity=False, mean=False,
        )  # fmt: skip

    def applied_to(self, inner: AffineConv) -> AffineConv:
        """This, with its own padding, after `inner` (whatever its own anchor is)."""
        value = inner.dilate_input([axis.input_dilation for axis in self.axes])
        for mode in self.modes - {ZEROS}:
            value = value.pad_with_copies(self._pads(mode), mode)
        ends = [(min(a.lo, 0), min(a.hi, 0)) if a.copies_pixels else (a.lo, a.hi) for a in self.axes]
        padded = value.pad(ends)
        return (padded.resolve() if isinstance(padded, PendingBorder) else padded).then(self)

    def scale_shift(self, scale: Number | None = None, shift: Number | None = None) -> AffineConv:
        """y * scale + shift per output channel; both (out_channels,) or (1,), None for neither. Always exact."""
        if scale is None and shift is None:
            return self

        def bias() -> Tensor:
            own = self.bias_value()
            scaled = own if scale is None else broadcast_channels(scale(), own.dim()) * own
            return scaled if shift is None else scaled + broadcast_channels(shift(), scaled.dim())

        number = None if self.bias is None and shift is None else Lazy(bias, self.bias)
        scaled = self.kernel
        if scale is not None:
            scaled = Fresh(lambda: scale_outputs_(writable(self.kernel), scale()), self.kernel)
        return replace(self, kernel=scaled, bias=number, identity=False, mean=False)

    def __add__(self, other: AffineConv) -> AffineConv:
        """The sum of two convolutions of one anchor: both kernels in one window; groups become the gcd."""
        self, other = self._aligned(other)
        if self.out_channels != other.out_channels:
            raise Refusal(f"a sum of {self.out_channels} and {other.out_channels} channels broadcasts")
        if other.kernel.depth > self.kernel.depth:
            self, other = other, self  # the longer chain is computed first
        groups = math.gcd(self.groups, other.groups)
        axes = tuple(map(Axis.joined, self.axes, other.axes))

        def fits(side: AffineConv) -> bool:
            return side.groups == groups and fills(side.axes, axes)

        def kernel() -> Tensor:
            if fits(other) and not fits(self):
                (summand, side), total = (self.kernel(), self), writable(other.kernel)
            else:
                total = writable(self.kernel) if fits(self) else self.kernel()
                total = regroup(embedded(total, self.axes, axes), self.groups, groups)
                summand, side = other.kernel(), other
            return add_embedded(total, axes, groups, summand, side.axes, side.groups)

        biased = self.bias is not None or other.bias is not None
        per_pixel = self.bias_per_pixel or other.bias_per_pixel
        number = Lazy(lambda: self._biases(per_pixel) + other._biases(per_pixel), self.bias) if biased else None
        total = Fresh(kernel, self.kernel)
        return AffineConv(
            self.anchor, self.in_channels, self.out_channels, groups, axes, total, number, bias_per_pixel=per_pixel
        )

    def cat(self, other: AffineConv) -> AffineConv:
        """The output channels of both, these first.

        The two may differ in size at some sizes of the anchor: there the model's own concatenation fails as well.
        """
        self, other = self._aligned(other, wherever_defined=True)
        axes = tuple(map(Axis.joined, self.axes, other.axes))

        def kernel() -> Tensor:
            return torch.cat([regroup(embedded(v.kernel(), v.axes, axes), v.groups, 1) for v in (self, other)])

        biased = self.bias is not None or other.bias is not None
        per_pixel = self.bias_per_pixel or other.bias_per_pixel

        def bias() -> Tensor:
            return torch.cat([self._biases(per_pixel), other._biases(per_pixel)])

        number = Lazy(bias, self.bias) if biased else None
        channels, joined = self.out_channels + other.out_channels, Fresh(kernel, self.kernel)
        return AffineConv(self.anchor, self.in_channels, channels, 1, axes, joined, number, bias_per_pixel=per_pixel)

    def take(self, rows: Sequence[int]) -> AffineConv:
        """The output channels `rows`, in that order; groups stay as long as every group keeps its own channels."""
        if list(rows) == list(range(self.out_channels)):
            return self
        groups = _groups_of(rows, self.out_channels, self.groups)
        index = torch.tensor(rows, dtype=torch.long)  # an empty list as well
        kernel = Fresh(lambda: regroup(self.kernel(), self.groups, groups)[index])
        number = None if self.bias is None else Lazy(lambda: self.bias_value()[index])
        return replace(
            self, out_channels=len(rows), groups=groups, kernel=kernel, bias=number, identity=False, mean=False
        )

    def pad_channels(self, front: int, end: int, value: Number | None = None) -> AffineConv:
        """`front` and `end` more output channels that hold one value (None: zero) everywhere."""
        if front == end == 0:
            return self

        def kernel() -> Tensor:
            return F.pad(regroup(self.kernel(), self.groups, 1).movedim(0, -1), (front, end)).movedim(-1, 0)

        def bias() -> Tensor:
            number = 0.0 if value is None else value().item()
            return F.pad(self.bias_value().movedim(0, -1), (front, end), value=number).movedim(-1, 0)

        number = None if self.bias is None and value is None else Lazy(bias)
        channels = self.out_channels + front + end
        return replace(
            self, out_channels=channels, groups=1, kernel=Lazy(kernel), bias=number, identity=False, mean=False
        )

    def pad(self, pads: Sequence[tuple[int, int]], value: Number | None = None) -> AffineConv | PendingBorder:
        """(lo, hi) more outputs per axis that hold `value` per channel (None: zero); negative amounts crop.

        Exact if the formula, continued outside its extent, reads nothing but zeros there (`lo >= span - stride`,
        `hi >= span - 1`), and if `value` is the bias, which is what it then gives. If only the second condition fails,
        the result is a `PendingBorder`: code may still fill the border.
        """
        if not any(map(any, pads)):
            return self
        for axis, (lo, hi) in zip(self.axes, pads, strict=True):
            if axis.copies_pixels and (lo > 0 or hi > 0):
                raise Refusal(
                    f"it pads with a value around a border of {axis.mode} padding",
                    "one padding mode for each axis would fold",
                )
            if (lo > 0 and axis.lo < axis.span - axis.stride) or (hi > 0 and axis.hi < axis.span - 1):
                raise BorderRefusal(
                    f"it pads after a {axis.span}-wide window that was padded by {axis.lo} and {axis.hi}: at the "
                    "border the folded kernel would read pixels where the model reads padding",
                    f"padding by {axis.span - 1} before that window, or no padding after it, would fold",
                )
        wider = replace(self, axes=tuple(axis.padded(*p) for axis, p in zip(self.axes, pads, strict=True)))
        wider = replace(wider, identity=False, mean=False)
        if self.bias_per_pixel:
            return replace(wider, bias=Lazy(lambda: pad_bias_map(self.bias_value(), pads, value)))
        if self._bias_equals(value) or not any(side > 0 for p in pads for side in p):
            return wider
        faces = frozenset((i, side) for i, p in enumerate(pads) for side in (0, 1) if p[side] > 0)
        return PendingBorder(wider, tuple(pads), faces, value)

    def pad_with_copies(self, pads: Sequence[tuple[int, int]], mode: str) -> AffineConv:
        """(lo, hi) more outputs per axis, none of them negative, copied from the others by `mode` (not "zeros").

        Exact along an axis on which every output reads its own pixel alone: padding the input or the output with copies
        is then the same.
        """
        if not any(map(any, pads)):
            return self
        for axis, pad in zip(self.axes, pads, strict=True):
            if any(pad) and not (axis.single and not self.bias_per_pixel):
                raise Refusal(
                    f"its {mode} padding follows an operation that reads neighbouring pixels, pads or strides: the "
                    "same padding of that operation's input gives other values",
                    f"{mode} padding before that operation would fold",
                )
        axes = tuple(
            replace(axis, lo=pad[0], hi=pad[1], mode=mode) if any(pad) else axis
            for axis, pad in zip(self.axes, pads, strict=True)
        )
        return replace(self, axes=axes, identity=False, mean=False)

    def dilate_input(self, factors: Sequence[int]) -> AffineConv:
        """The outputs with `factor - 1` zeros between them per axis, for a transposed convolution to run over.

        Exact for a 1x1 convolution without a bias: its output for a zero is zero.
        """
        if all(factor == 1 for factor in factors):
            return self
        if any(factor > 1 and not axis.single for axis, factor in zip(self.axes, factors, strict=True)):
            raise Refusal(
                "it is a transposed convolution after an operation that reads neighbouring pixels, pads or strides",
                "a 1x1 convolution before it would fold",
            )
        if not self._bias_equals(None):
            raise Refusal(
                "it is a transposed convolution: it puts zeros between pixels, where the fold would put the bias of "
                "the operation before it",
                "no bias before it would fold",
            )
        axes = _layer_axes(
            replace(axis, input_dilation=factor * axis.input_dilation, spare=0)
            for axis, factor in zip(self.axes, factors, strict=True)
        )
        return replace(self, axes=axes, bias=None, identity=False, mean=False)

    def slice(self, axis: int, start: int = 0, stop: int = 0, step: int = 1) -> AffineConv:
        """Drop `start` outputs at the front and `stop` at the end of a spatial axis, then keep every `step`-th."""
        if (start, stop, step) == (0, 0, 1):
            return self
        cropped = self.axes[axis].padded(-start, -stop)
        axes = _layer_axes((*self.axes[:axis], replace(cropped, stride=cropped.stride * step), *self.axes[axis + 1 :]))
        if not self.bias_per_pixel:
            return replace(self, axes=axes, identity=False, mean=False)

        def bias() -> Tensor:
            own = self.bias_value()
            kept = own.narrow(axis + 1, start, own.shape[axis + 1] - start - stop)
            return kept[(slice(None),) * (axis + 1) + (slice(None, None, step),)]

        return replace(self, axes=axes, bias=Lazy(bias))

    def with_axes(self, spatial: int) -> AffineConv:
        """A 1x1 convolution with another number of spatial axes: the same map of channels."""
        if not self.pixelwise:
            raise Refusal("it reads neighbouring pixels")
        ones = [1] * spatial
        kernel = Fresh(lambda: writable(self.kernel).reshape(self.out_channels, -1, *ones), self.kernel)
        return replace(self, axes=(Axis(),) * spatial, kernel=kernel, mean=False)

    # --- conditions and parts of the laws

    def _pads(self, mode: str) -> list[tuple[int, int]]:
        """How much it pads in a mode at the two ends of each axis."""
        return [
            (max(axis.lo, 0), max(axis.hi, 0)) if axis.has_padding and axis.mode == mode else (0, 0)
            for axis in self.axes
        ]

    def _biases(self, per_pixel: bool) -> Tensor:
        """The bias, for every pixel if `per_pixel`."""
        value = self.bias_value()
        if self.bias_per_pixel or not per_pixel:
            return value
        return broadcast_channels(value, 1 + len(self.axes)).expand(-1, *self.shape()[2:])

    def _aligned(self, other: AffineConv, wherever_defined: bool = False) -> tuple[AffineConv, AffineConv]:
        """Both, if they can be put side by side; at a fixed size without pixels at the end that neither reads."""
        if self.anchor.fixed:
            self, other = self._trimmed(), other._trimmed()
        self._require_same_form(other, wherever_defined)
        return self, other

    def _trimmed(self) -> AffineConv:
        sizes = self.anchor.shape[2:]
        return replace(self, axes=tuple(axis.trimmed(size) for axis, size in zip(self.axes, sizes, strict=False)))

    def _require_same_form(self, other: AffineConv, wherever_defined: bool) -> None:
        if self.anchor != other.anchor:
            raise Refusal("the two sides start from different tensors")
        if len(self.axes) != len(other.axes):
            raise Refusal(f"one side has {_layout(len(self.axes))}, the other {_layout(len(other.axes))}")
        for a, b, length in zip(self.axes, other.axes, self.anchor.shape[2:], strict=False):
            loose = wherever_defined and not (
                a.copies_pixels or b.copies_pixels or self.is_transposed or other.is_transposed
            )
            equal = a.same_size_as(b) or (loose and a.outputs(length) == b.outputs(length))
            if a.stride != b.stride or a.input_dilation != b.input_dilation or not equal:
                raise Refusal("the two sides differ in stride or in the size of their output")
            if a.has_padding and b.has_padding and a.mode != b.mode:
                raise Refusal(
                    f"one side pads with {a.mode}, the other with {b.mode}",
                    "the same padding mode on all branches would fold",
                )

    def _bias_equals(self, value: Number | None) -> bool:
        """Whether the bias is `value` (None: zero), up to rounding."""
        if value is None and self.bias is None:
            return True
        bias = self.bias_value()
        given = torch.zeros(()) if value is None else value()
        scale = max(bias.abs().max().item(), given.abs().max().item())
        return bool(((bias - given).abs() <= ROUNDING * scale).all())


@dataclass(frozen=True)
class PendingBorder:
    """A padded convolution whose padding does not hold its bias yet.

    Blocks that pad by hand write zeros first and then fill the border, face by face, with what batch norm makes of a
    zero. Once every face holds the bias, the padded convolution (`inside`) is exact.

    pads: the pixels at the two ends of each axis; value: what they hold (None: zero).
    faces: the faces (axis, end) that do not hold the bias.
    written: whether code has filled a face.
    """

    inside: AffineConv
    pads: tuple[tuple[int, int], ...]
    faces: frozenset[tuple[int, int]]
    value: Number | None = None
    written: bool = False

    def resolve(self) -> AffineConv:
        """What it is if nothing more is written to it: at a fixed size, a convolution with a bias per pixel.

        Raises Refusal at any other.
        """
        inside = self.inside
        if self.written or not inside.anchor.fixed:
            raise self.refusal

        def bias() -> Tensor:
            own = broadcast_channels(inside.bias_value(), 1 + len(inside.axes))
            before = [size - lo - hi for size, (lo, hi) in zip(inside.shape()[2:], self.pads, strict=True)]
            return pad_bias_map(own.expand(-1, *before), self.pads, self.value)

        return replace(inside, bias=Lazy(bias), bias_per_pixel=True)

    @property
    def refusal(self) -> Refusal:
        """Why it is not one convolution."""
        return BorderRefusal(
            "the padding holds another value than the bias before it, so the border would differ",
            "no bias before the padding, padding with that bias, padding before the first operation, or "
            "fixed_size=True (for images of one size) would fold",
        )

    def fill(self, axis: int, side: int, width: int, value: Number) -> AffineConv | PendingBorder:
        """The face at `side` (0 front, 1 end) of a spatial axis, `width` pixels deep, overwritten by `value`."""
        if width != self.pads[axis][side]:
            raise Refusal(f"it overwrites {width} pixels of a border of {self.pads[axis][side]}")
        faces = self.faces - {(axis, side)} if self.inside._bias_equals(value) else self.faces | {(axis, side)}
        return PendingBorder(self.inside, self.pads, faces, written=True) if faces else self.inside


def _compose(inner: AffineConv, outer: AffineConv, groups: int, axes: Sequence[Axis]) -> Tensor:
    """kernel[o, i, t] = sum over m and s of outer[o, m, s] * inner[m, i, t - s], on the lattice of `axes`."""
    if outer.diagonal:
        return scale_outputs_(writable(inner.kernel), outer.kernel().flatten())
    if inner.diagonal:
        factor = inner.kernel().flatten()
        return scale_inputs_(_dilated_outer(writable(outer.kernel), outer, inner, axes), factor, outer.groups)
    steps = [axis.place_in(window)[1] for axis, window in zip(inner.axes, axes, strict=True)]
    first = regroup(dilated(inner.kernel(), steps), inner.groups, groups)
    second = regroup(_dilated_outer(outer.kernel(), outer, inner, axes), outer.groups, groups)
    return convolve_kernels(first, second, groups)


def _dilated_outer(kernel: Tensor, outer: AffineConv, inner: AffineConv, axes: Sequence[Axis]) -> Tensor:
    """The outer kernel on the lattice of the composition: one of its steps is a stride of the inner convolution."""
    steps = [a.behind(b).place_in(window)[1] for a, b, window in zip(outer.axes, inner.axes, axes, strict=True)]
    return dilated(kernel, steps)


def _groups_of(rows: Sequence[int], out_channels: int, groups: int) -> int:
    """The most groups, a divisor of `groups`, such that the j-th part of `rows` stays inside the j-th group."""
    for candidate in range(groups, 1, -1):
        if groups % candidate == 0 and len(rows) % candidate == 0:
            part, block = len(rows) // candidate, out_channels // candidate
            if all(row // block == i // part for i, row in enumerate(rows)):
                return candidate
    return 1


def _layer_axes(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """The axes, if one layer of torch can have them."""
    result = tuple(axes)
    if any(axis.input_dilation > 1 for axis in result) and any(axis.stride > 1 for axis in result):
        raise Refusal("it would be a transposed convolution with a stride as well, which no layer has")
    return result


def _layout(spatial: int) -> str:
    axes = "1 spatial axis" if spatial == 1 else f"{spatial} spatial axes"
    return f"channels first with {axes}" if spatial else "channels last"
