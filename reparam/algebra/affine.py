"""The theory, once: a convolution of one tensor, and the laws by which such convolutions combine.

Between two non-linearities a trained network is affine and shift-invariant: convolutions, batch norms in eval, sums,
paddings, average pools, scalings. Whatever such a stretch computes from one tensor x, its *anchor*, has the form

    y[o, n] = bias[o] + sum over i, t of kernel[o, i, t] * x0[i, stride * n + dilation * t - lo]

where x0 is x with zeros all around it (or continued by reflection, replication or wrapping round, along an axis whose
`mode` says so), and n runs over `floor((L + lo + hi - span) / stride) + 1` positions, with
`span = dilation * (taps - 1) + 1`. That is an `AffineConv`. (Along an axis with a `stretch`, as transposed convolutions
have it, x and L are those of x with zeros between its pixels.) It never needs to know the input size L: every law below
is exact for all sizes, and a combination that would not be is refused.

With no spatial axis it is a linear map on the last dimension (nn.Linear), with one to three it is Conv1d, Conv2d,
Conv3d on dimension 1. Numbers are float64 and deferred: laws decide on shapes, and work out a kernel only if somebody
asks for it. (A bias is asked for by the padding law.)
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
    add_laid,
    column,
    columns,
    convolved,
    densified,
    fills,
    laid,
    reframed,
    regroup,
    rows,
)
from reparam.algebra.lazy import Fresh, Lazy, writable
from reparam.errors import BorderRefusal, Refusal

# Two constants that stand for the same number may have been computed by different formulas, each a handful of float64
# operations with some cancellation: 2**-40 is about 1e-12, two orders below what verification allows in total.
ROUNDING = 2.0**-40


Number = Lazy[Tensor]


@dataclass(frozen=True)
class Constant:
    """A tensor computed from parameters, buffers and literals alone; `value` is float64 (integers stay integers)."""

    shape: tuple[int, ...]
    value: Number


@dataclass(frozen=True)
class Anchor:
    """A tensor that convolutions start from: who it is (compared by identity) and the shape it had when recorded.

    fixed: it has as many pixels always. Then what zero padding makes of a bias is known: a map of biases.
    """

    key: Hashable
    shape: tuple[int, ...]
    fixed: bool = False


@dataclass(frozen=True)
class AffineConv:
    """A convolution of `anchor` (see the module's text for the formula).

    kernel: float64, (out_channels, in_channels / groups, *taps), deferred.
    bias: float64, (out_channels,), deferred; None where it is zero by construction.
    mapped: the bias is one number per channel and pixel, (out_channels, *sizes), of an anchor of fixed size.
    identity: the anchor itself, by construction: nothing has been done to it.
    mean: by construction an unpadded mean over pixels, the same for every channel: it commutes with maps of channels.
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
        """The anchor as the convolution of itself that changes nothing, seen with `spatial` spatial axes."""
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
        """A convolution that nothing has been put into yet; weight as torch has it: (out, in / groups, *taps)."""
        out_channels, inner, *taps = weight.shape
        ones = [1] * len(taps)
        axes = tuple(map(Axis, taps, dilation or ones, stride or ones))
        free = Anchor(None, (1, inner * groups, *ones))
        number = None if bias is None else bias.value
        return AffineConv(free, inner * groups, out_channels, groups, axes, weight.value, number)

    # --- what it is

    @property
    def pointwise(self) -> bool:
        """Every output channel reads the same channel of the same pixel: a per-channel scale and shift."""
        return self.groups == self.in_channels == self.out_channels and self.pixelwise

    @property
    def pixelwise(self) -> bool:
        """A map of the channels of each pixel on its own (a 1x1 convolution), the same for every pixel."""
        return not self.bias_per_pixel and all(axis.single for axis in self.axes)

    @property
    def diagonal(self) -> bool:
        """Each channel on its own and one tap: its kernel is one number per channel."""
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
        return math.prod(axis.taps for axis in self.axes)

    def shape(self) -> tuple[int, ...]:
        """The shape of the result at the recorded size."""
        if not self.axes:
            return (*self.anchor.shape[:-1], self.out_channels)
        sizes = map(Axis.outputs, self.axes, self.anchor.shape[2:])
        return (self.anchor.shape[0], self.out_channels, *sizes)

    def bias_value(self) -> Tensor:
        return torch.zeros(self.out_channels, dtype=torch.float64) if self.bias is None else self.bias()

    def biases(self, mapped: bool) -> Tensor:
        """The bias, for every pixel if `mapped`."""
        value = self.bias_value()
        if self.bias_per_pixel or not mapped:
            return value
        return column(value, 1 + len(self.axes)).expand(-1, *self.shape()[2:])

    def __call__(self, x: Tensor) -> Tensor:
        """The meaning: the result for an anchor tensor x, computed in x's dtype. The laws are tested against this."""
        if self.bias_per_pixel:
            return replace(self, bias=None, bias_per_pixel=False)(x) + self.bias_value().to(x)
        kernel, bias = self.kernel().to(x), self.bias_value().to(x)
        if not self.axes:
            return F.linear(x, regroup(kernel, self.groups, 1), bias)
        x = densified(x, [axis.input_dilation for axis in self.axes])
        # Padding first, crops second: at small sizes a crop at one end may reach into the padding of the other.
        for mode in self.modes:
            x = padded(x, self.sides(mode), mode)
        x0 = F.pad(x, _flat((min(axis.lo, 0), min(axis.hi, 0)) for axis in self.axes))
        stride, dilation = [axis.stride for axis in self.axes], [axis.dilation for axis in self.axes]
        return CONV[len(self.axes)](x0, kernel, bias, stride, 0, dilation, self.groups)

    def sides(self, mode: str) -> list[int]:
        """How much it pads in a mode, as F.pad spells it."""
        here = [axis.has_padding and axis.mode == mode for axis in self.axes]
        return _flat((max(a.lo, 0), max(a.hi, 0)) if pads else (0, 0) for a, pads in zip(self.axes, here, strict=True))

    # --- laws

    def with_layout(self, spatial: int) -> AffineConv:
        """The same value with channels on dimension 1 and `spatial` axes, or (0) channels on the last dimension."""
        if len(self.axes) == spatial:
            return self
        if self.identity and len(self.anchor.shape) == (spatial + 2 if spatial else len(self.anchor.shape)):
            return AffineConv.of(self.anchor, spatial)
        seen, wanted = _layout(len(self.axes)), _layout(spatial)
        raise Refusal(f"it reads {wanted}, but what comes in is a map of {seen}")

    def channels_first(self) -> AffineConv:
        """The same value with channels on dimension 1, as batch norm and constants of shape (C, 1, 1) read it."""
        return self.with_layout(len(self.anchor.shape) - 2)

    def then(self, outer: AffineConv) -> AffineConv:
        """`outer`, unpadded, after this: kernels compose, strides multiply, lo and hi stay. Always exact."""
        if outer.in_channels != self.out_channels:
            raise Refusal(f"it reads {outer.in_channels} channels of {self.out_channels}")
        groups = math.gcd(self.groups, outer.groups)
        axes = _written(map(Axis.then, self.axes, outer.axes))

        def kernel() -> Tensor:
            return _compose(self, outer, groups, axes)

        def bias() -> Tensor:
            if self.bias_per_pixel:
                strides, dilations = [axis.stride for axis in outer.axes], [axis.dilation for axis in outer.axes]
                seen = CONV[len(axes)](
                    self.bias_value()[None], outer.kernel(), None, strides, 0, dilations, outer.groups
                )
                return seen[0] + column(outer.bias_value(), seen[0].dim())
            each = self.bias_value().repeat_interleave(outer.taps).view(outer.groups, -1, 1)
            sums = outer.kernel().flatten(1).view(outer.groups, -1, each.shape[1]) @ each
            return sums.flatten() + outer.bias_value()

        number = outer.bias if self.bias is None else Lazy(bias, self.bias)
        return replace(
            self, out_channels=outer.out_channels, groups=groups, axes=axes, kernel=Fresh(kernel, self.kernel),
            bias=number, identity=False, mean=False,
        )  # fmt: skip

    def scale_shift(self, scale: Number | None = None, shift: Number | None = None) -> AffineConv:
        """Per output channel: y * scale + shift, both (out_channels,) or (1,); None leaves it. Always exact."""
        if scale is None and shift is None:
            return self

        def bias() -> Tensor:
            here = self.bias_value()
            scaled = here if scale is None else column(scale(), here.dim()) * here
            return scaled if shift is None else scaled + column(shift(), scaled.dim())

        number = None if self.bias is None and shift is None else Lazy(bias, self.bias)
        scaled = self.kernel if scale is None else Fresh(lambda: rows(writable(self.kernel), scale()), self.kernel)
        return replace(self, kernel=scaled, bias=number, identity=False, mean=False)

    def __add__(self, other: AffineConv) -> AffineConv:
        """The sum of two convolutions of one anchor: both kernels laid into one window, groups become the gcd."""
        self, other = self._aligned(other)
        if self.out_channels != other.out_channels:
            raise Refusal(f"a sum of {self.out_channels} and {other.out_channels} channels broadcasts")
        if other.kernel.depth > self.kernel.depth:
            self, other = other, self  # the longer chain first
        groups = math.gcd(self.groups, other.groups)
        axes = tuple(map(Axis.joined, self.axes, other.axes))

        def whole(side: AffineConv) -> bool:
            return side.groups == groups and fills(side.axes, axes)

        def kernel() -> Tensor:
            if whole(other) and not whole(self):
                (more, side), wide = (self.kernel(), self), writable(other.kernel)
            else:
                wide = writable(self.kernel) if whole(self) else self.kernel()
                wide = regroup(laid(wide, self.axes, axes), self.groups, groups)
                more, side = other.kernel(), other
            return add_laid(wide, axes, groups, more, side.axes, side.groups)

        biased = self.bias is not None or other.bias is not None
        mapped = self.bias_per_pixel or other.bias_per_pixel
        number = Lazy(lambda: self.biases(mapped) + other.biases(mapped), self.bias) if biased else None
        laid_out = Fresh(kernel, self.kernel)
        return AffineConv(
            self.anchor, self.in_channels, self.out_channels, groups, axes, laid_out, number, bias_per_pixel=mapped
        )

    def cat(self, other: AffineConv) -> AffineConv:
        """The output channels of both, these first.

        Where the sizes of their outputs differ at some sizes of the anchor, there is no such concatenation at those.
        """
        self, other = self._aligned(other, wherever_defined=True)
        axes = tuple(map(Axis.joined, self.axes, other.axes))

        def kernel() -> Tensor:
            return torch.cat([regroup(laid(v.kernel(), v.axes, axes), v.groups, 1) for v in (self, other)])

        biased = self.bias is not None or other.bias is not None
        mapped = self.bias_per_pixel or other.bias_per_pixel
        number = Lazy(lambda: torch.cat([self.biases(mapped), other.biases(mapped)]), self.bias) if biased else None
        many, joined = self.out_channels + other.out_channels, Fresh(kernel, self.kernel)
        return AffineConv(self.anchor, self.in_channels, many, 1, axes, joined, number, bias_per_pixel=mapped)

    def take(self, rows: Sequence[int]) -> AffineConv:
        """The output channels `rows`, in that order; groups stay where every group keeps its own."""
        if list(rows) == list(range(self.out_channels)):
            return self
        groups = _groups_of(rows, self.out_channels, self.groups)
        index = torch.tensor(rows, dtype=torch.long)  # of none as well
        kernel = Fresh(lambda: regroup(self.kernel(), self.groups, groups)[index])
        number = None if self.bias is None else Lazy(lambda: self.bias_value()[index])
        return AffineConv(
            self.anchor,
            self.in_channels,
            len(rows),
            groups,
            self.axes,
            kernel,
            number,
            bias_per_pixel=self.bias_per_pixel,
        )

    def pad_channels(self, front: int, end: int, value: Number | None = None) -> AffineConv:
        """So many more output channels before and behind its own, which hold one value (None: zero) everywhere."""
        if front == end == 0:
            return self

        def kernel() -> Tensor:
            return F.pad(regroup(self.kernel(), self.groups, 1).movedim(0, -1), (front, end)).movedim(-1, 0)

        def bias() -> Tensor:
            held = 0.0 if value is None else value().item()
            return F.pad(self.bias_value().movedim(0, -1), (front, end), value=held).movedim(-1, 0)

        number = None if self.bias is None and value is None else Lazy(bias)
        out_channels = self.out_channels + front + end
        return AffineConv(
            self.anchor,
            self.in_channels,
            out_channels,
            1,
            self.axes,
            Lazy(kernel),
            number,
            bias_per_pixel=self.bias_per_pixel,
        )

    def pad(self, pads: Sequence[tuple[int, int]], value: Number | None = None) -> AffineConv | PendingBorder:
        """(lo, hi) more outputs per axis, reading `value` per channel (None: zero); negative amounts crop.

        Exact where the value, continued outside its extent, reads nothing but zeros (`lo >= span - stride`,
        `hi >= span - 1`) and so equals its bias there, and where the padding holds that very bias. Where only the
        last is missing, a `PendingBorder` comes back, which may still be filled.
        """
        if not any(map(any, pads)):
            return self
        for axis, (lo, hi) in zip(self.axes, pads, strict=True):
            if axis.copies_pixels and (lo > 0 or hi > 0):
                raise Refusal(
                    f"padding with a value around a border that {axis.mode} padding has made",
                    "one kind of padding for each axis would fold",
                )
            if (lo > 0 and axis.lo < axis.span - axis.stride) or (hi > 0 and axis.hi < axis.span - 1):
                raise BorderRefusal(
                    f"padding after a {axis.span}-wide window that was padded by {axis.lo} and {axis.hi}: "
                    "at the border the window would reach pixels that the padding hides",
                    "padding the first operation fully, or not padding the second, would fold",
                )
        extended = replace(self, axes=tuple(axis.padded(*p) for axis, p in zip(self.axes, pads, strict=True)))
        extended = replace(extended, identity=False, mean=False)
        if self.bias_per_pixel:
            return replace(extended, bias=Lazy(lambda: reframed(self.bias_value(), pads, value)))
        if self._holds(value) or not any(side > 0 for p in pads for side in p):
            return extended
        faces = frozenset((i, side) for i, p in enumerate(pads) for side in (0, 1) if p[side] > 0)
        return PendingBorder(extended, tuple(pads), faces, value)

    def pad_with_copies(self, pads: Sequence[tuple[int, int]], mode: str) -> AffineConv:
        """(lo, hi) more outputs per axis, none of them negative, copied from the others by `mode` (not "zeros").

        Exact along an axis on which every output reads its own pixel alone: copying pixels, of the input or of the
        output, is then the same.
        """
        if not any(map(any, pads)):
            return self
        for axis, pad in zip(self.axes, pads, strict=True):
            if any(pad) and not (axis.single and not self.bias_per_pixel):
                raise Refusal(
                    f"{mode} padding of a map that reads neighbouring pixels, is padded or strided: copies of what "
                    "comes out are not what comes out of copies",
                    f"{mode} padding of the input, before all of it, would fold",
                )
        axes = tuple(
            replace(axis, lo=pad[0], hi=pad[1], mode=mode) if any(pad) else axis
            for axis, pad in zip(self.axes, pads, strict=True)
        )
        return replace(self, axes=axes, identity=False, mean=False)

    def dilate_input(self, steps: Sequence[int]) -> AffineConv:
        """Per axis one output every so many pixels and zeros between them, which a transposed convolution runs over.

        Exact for a map of single pixels without a bias: what it makes of zeros is zeros.
        """
        if all(step == 1 for step in steps):
            return self
        if any(step > 1 and not axis.single for axis, step in zip(self.axes, steps, strict=True)):
            raise Refusal("a transposed convolution of a map that reads neighbouring pixels, is padded or strided")
        if not self._holds(None):
            raise Refusal(
                "a transposed convolution lays zeros between pixels, and the map before it has a bias",
                "no bias before it would fold",
            )
        axes = _written(
            replace(axis, input_dilation=step * axis.input_dilation, spare=0)
            for axis, step in zip(self.axes, steps, strict=True)
        )
        return replace(self, axes=axes, bias=None, identity=False, mean=False)

    def slice(self, axis: int, start: int = 0, stop: int = 0, step: int = 1) -> AffineConv:
        """Drop `start` outputs in front and `stop` at the end of a spatial axis, then take every `step`-th."""
        if (start, stop, step) == (0, 0, 1):
            return self
        cropped = self.axes[axis].padded(-start, -stop)
        axes = _written((*self.axes[:axis], replace(cropped, stride=cropped.stride * step), *self.axes[axis + 1 :]))
        if not self.bias_per_pixel:
            return replace(self, axes=axes, identity=False, mean=False)

        def bias() -> Tensor:
            here = self.bias_value()
            return here.narrow(axis + 1, start, here.shape[axis + 1] - start - stop)[
                (slice(None),) * (axis + 1) + (slice(None, None, step),)
            ]

        return replace(self, axes=axes, bias=Lazy(bias))

    def applied_to(self, inner: AffineConv) -> AffineConv:
        """This, which pads and reads its anchor, reading `inner` instead: what padding makes of that is for its law."""
        value = inner.dilate_input([axis.input_dilation for axis in self.axes])
        for mode in self.modes - {ZEROS}:
            here = [axis.has_padding and axis.mode == mode for axis in self.axes]
            sides = [(max(a.lo, 0), max(a.hi, 0)) if pads else (0, 0) for a, pads in zip(self.axes, here, strict=True)]
            value = value.pad_with_copies(sides, mode)
        ends = [(min(a.lo, 0), min(a.hi, 0)) if a.copies_pixels else (a.lo, a.hi) for a in self.axes]
        framed = value.pad(ends)
        return (framed.resolve() if isinstance(framed, PendingBorder) else framed).then(self)

    def with_axes(self, spatial: int) -> AffineConv:
        """A pixelwise map with another number of spatial axes: what it does to channels, nothing to pixels."""
        if not self.pixelwise:
            raise Refusal("it reads neighbouring pixels")
        ones = [1] * spatial
        kernel = Fresh(lambda: writable(self.kernel).reshape(self.out_channels, -1, *ones), self.kernel)
        return replace(self, axes=(Axis(),) * spatial, kernel=kernel, mean=False)

    def widened(self) -> AffineConv:
        """The same map as a layer of torch pads it, by zeros: nn.Conv equally at both ends, or nn.ConvTranspose."""
        fitted = Axis.widened_transposed if self.is_transposed else Axis.widened
        axes = tuple(fitted(axis.balanced()) for axis in self.axes)
        if axes == self.axes:
            return self
        return replace(
            self, axes=axes, kernel=Lazy(lambda: laid(self.kernel(), self.axes, axes)), identity=False, mean=False
        )

    def deployable(self) -> tuple[list[tuple[str, list[int]]], AffineConv]:
        """What a layer can hold, and what to pad or crop in front of it: (mode, sides as F.pad spells them), in turn.

        nn.Conv pads in one mode and equally at both ends. Zeros that differ between the two ends widen the kernel by
        zeros, unless that would more than double it. nn.ConvTranspose knows zeros only, and nothing in front of it can
        stand for them. The layer takes every size that this value takes.
        """
        frames: list[tuple[str, list[int]]] = []
        value = replace(self, axes=tuple(map(Axis.balanced, self.axes)))
        mixed = len(self.modes) > 1 or any(axis.copies_pixels and axis.lo != axis.hi for axis in self.axes)
        if mixed or self.is_transposed:
            frames = [(mode, self.sides(mode)) for mode in sorted(self.modes - {ZEROS})]
            value = value._without_padding([axis.copies_pixels for axis in self.axes])
        wide = value.widened()
        if wide.taps <= 2 * self.taps or self.is_transposed:
            return frames, wide
        sides = _flat((0, 0) if axis.copies_pixels else (axis.lo, axis.hi) for axis in value.axes)
        parts = [[max(side, 0) for side in sides], [min(side, 0) for side in sides]]
        # F.pad crops first, which takes other sizes where one end of an axis is cropped and the other padded.
        mixed = any(axis.lo * axis.hi < 0 for axis in value.axes)
        frames += [(ZEROS, part) for part in (parts if mixed else [sides])]
        axes = tuple(axis if axis.copies_pixels else replace(axis, lo=0, hi=0) for axis in value.axes)
        return frames, replace(value, axes=axes, identity=False, mean=False)

    def _without_padding(self, which: Sequence[bool]) -> AffineConv:
        """This behind a padding of its own along some axes."""
        axes = tuple(axis.without_padding() if bare else axis for axis, bare in zip(self.axes, which, strict=True))
        return replace(self, axes=axes, identity=False, mean=False)

    def _aligned(self, other: AffineConv, wherever_defined: bool = False) -> tuple[AffineConv, AffineConv]:
        """Both, where they can be put side by side; at a fixed size without the pixels that none of them reads."""
        if self.anchor.fixed:
            self, other = self._trimmed(), other._trimmed()
        self._matches(other, wherever_defined)
        return self, other

    def _trimmed(self) -> AffineConv:
        sizes = self.anchor.shape[2:]
        return replace(self, axes=tuple(axis.trimmed(size) for axis, size in zip(self.axes, sizes, strict=False)))

    def _matches(self, other: AffineConv, wherever_defined: bool = False) -> None:
        if self.anchor != other.anchor:
            raise Refusal("the two sides start from different tensors")
        if len(self.axes) != len(other.axes):
            raise Refusal(f"one side is a map of {_layout(len(self.axes))}, the other of {_layout(len(other.axes))}")
        for a, b, length in zip(self.axes, other.axes, self.anchor.shape[2:], strict=False):
            loose = wherever_defined and not (
                a.copies_pixels or b.copies_pixels or self.is_transposed or other.is_transposed
            )
            equal = a.same_size_as(b) or (loose and a.outputs(length) == b.outputs(length))
            if a.stride != b.stride or a.input_dilation != b.input_dilation or not equal:
                raise Refusal("the two sides differ in stride or in the size of their output")
            if a.has_padding and b.has_padding and a.mode != b.mode:
                raise Refusal(
                    f"one side pads with {a.mode}, the other with {b.mode}", "padding alike on all branches would fold"
                )

    def _holds(self, value: Number | None) -> bool:
        if value is None and self.bias is None:
            return True
        bias = self.bias_value()
        given = torch.zeros(()) if value is None else value()
        scale = max(bias.abs().max().item(), given.abs().max().item())
        return bool(((bias - given).abs() <= ROUNDING * scale).all())


@dataclass(frozen=True)
class PendingBorder:
    """An AffineConv in a frame of padding whose `faces` (axis, end) do not hold its bias yet.

    Blocks that pad by hand write zeros first and then fill the border, face by face, with what batch norm makes of
    zero. When the last face is right the frame is gone, and the padded convolution stands.
    """

    inside: AffineConv
    pads: tuple[tuple[int, int], ...]
    faces: frozenset[tuple[int, int]]
    value: Number | None = None
    written: bool = False

    def resolve(self) -> AffineConv:
        """What it is when no more is written to it: at a fixed size a map of biases, and else not one convolution."""
        inside = self.inside
        if self.written or not inside.anchor.fixed:
            raise self.refusal

        def bias() -> Tensor:
            around = column(inside.bias_value(), 1 + len(inside.axes))
            before = [size - lo - hi for size, (lo, hi) in zip(inside.shape()[2:], self.pads, strict=True)]
            return reframed(around.expand(-1, *before), self.pads, self.value)

        return replace(inside, bias=Lazy(bias), bias_per_pixel=True)

    @property
    def refusal(self) -> Refusal:
        return BorderRefusal(
            "the padding holds another value than the bias that comes before it, so the border is a different function",
            "no bias before the padding, padding with that bias, padding the first operation instead, or (for "
            "images of one size) fixed_size=True, would fold",
        )

    def fill(self, axis: int, side: int, width: int, value: Number) -> AffineConv | PendingBorder:
        """The whole face at `side` (0 front, 1 end) of a spatial axis, `width` pixels deep, overwritten by `value`."""
        if width != self.pads[axis][side]:
            raise Refusal(f"a border of {self.pads[axis][side]} pixels is overwritten to a depth of {width}")
        right = self.inside._holds(value)
        faces = self.faces - {(axis, side)} if right else self.faces | {(axis, side)}
        return PendingBorder(self.inside, self.pads, faces, written=True) if faces else self.inside


def _compose(inner: AffineConv, outer: AffineConv, groups: int, axes: Sequence[Axis]) -> Tensor:
    """kernel[o, i, t] = sum over m and s of outer[o, m, s] * inner[m, i, t - s], on the lattice of `axes`."""
    if outer.diagonal:
        return rows(writable(inner.kernel), outer.kernel().flatten())
    if inner.diagonal:
        factor = inner.kernel().flatten()
        return columns(_laid_outer(writable(outer.kernel), outer, inner, axes), factor, outer.groups)
    steps = [a.dilation // b.dilation for a, b in zip(inner.axes, axes, strict=True)]
    first = regroup(densified(inner.kernel(), steps), inner.groups, groups)
    second = regroup(_laid_outer(outer.kernel(), outer, inner, axes), outer.groups, groups)
    return convolved(first, second, groups)


def _laid_outer(kernel: Tensor, outer: AffineConv, inner: AffineConv, axes: Sequence[Axis]) -> Tensor:
    """The outer kernel on the lattice of the composition: its own steps are strides of the inner one."""
    steps = [a.dilation * b.stride // c.dilation for a, b, c in zip(outer.axes, inner.axes, axes, strict=True)]
    return densified(kernel, steps)


def _groups_of(rows: Sequence[int], out_channels: int, groups: int) -> int:
    """The most groups, a divisor of `groups`, in which the j-th part of `rows` stays inside the j-th group."""
    for candidate in range(groups, 1, -1):
        if groups % candidate == 0 and len(rows) % candidate == 0:
            part, block = len(rows) // candidate, out_channels // candidate
            if all(row // block == i // part for i, row in enumerate(rows)):
                return candidate
    return 1


def padded(x: Tensor, sides: Sequence[int], mode: str) -> Tensor:
    """F.pad in one of the modes of nn.Conv."""
    return F.pad(x, list(sides), "constant" if mode == ZEROS else mode)


def _written(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Axes that a layer of torch can have."""
    written = tuple(axes)
    if any(axis.input_dilation > 1 for axis in written) and any(axis.stride > 1 for axis in written):
        raise Refusal("a stride and a transposed convolution in one, which no layer has")
    return written


def _flat(pads: Iterable[tuple[int, int]]) -> list[int]:
    """Sides per axis as F.pad spells them: the last axis first."""
    return [side for pad in reversed(list(pads)) for side in pad]


def _layout(spatial: int) -> str:
    return f"channels first with {spatial} spatial axes" if spatial else "channels last"
