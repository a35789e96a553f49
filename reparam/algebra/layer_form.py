"""From a value to the layers that compute it: those of torch allow fewer paddings than an `AffineConv`."""

from __future__ import annotations

from dataclasses import replace

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.kernels import embedded, finest_groups, flat_pads
from reparam.algebra.lazy import Lazy

Padding = tuple[str, list[int]]  # a mode, and how much at each side in the order of F.pad (negative: crop)


def layer_form(value: AffineConv) -> tuple[list[Padding], AffineConv]:
    """The paddings and crops to do first, one after another, and a value that one layer can compute.

    nn.Conv pads in one mode and equally at both ends, or as "same" says. Other paddings stand in front of it: a kernel
    that is widened by taps of zero does more multiply-adds, which take longer than a padding. nn.ConvTranspose pads
    with zeros only, and no padding before it can replace them. The result takes every size that the value takes.
    """
    paddings: list[Padding] = []
    rest = replace(value, axes=tuple(map(Axis.balanced, value.axes)))
    uneven_copies = any(axis.copies_pixels and axis.lo != axis.hi for axis in value.axes)
    if len(value.modes) > 1 or uneven_copies or value.is_transposed:
        paddings = [(mode, value.sides(mode)) for mode in sorted(value.modes - {ZEROS})]
        axes = tuple(axis.without_padding() if axis.copies_pixels else axis for axis in rest.axes)
        rest = replace(rest, axes=axes, identity=False, mean=False)
    wide = widened(rest)
    if wide.taps == rest.taps or value.is_transposed:
        return paddings, wide
    if pads_as_same(rest):
        return paddings, rest
    sides = flat_pads([(0, 0) if axis.copies_pixels else (axis.lo, axis.hi) for axis in rest.axes])
    # F.pad crops first. Where one end of an axis is cropped and the other padded, it would take other sizes.
    if any(axis.lo * axis.hi < 0 for axis in rest.axes):
        paddings += [(ZEROS, [max(side, 0) for side in sides]), (ZEROS, [min(side, 0) for side in sides])]
    else:
        paddings += [(ZEROS, sides)]
    axes = tuple(axis if axis.copies_pixels else replace(axis, lo=0, hi=0) for axis in rest.axes)
    return paddings, replace(rest, axes=axes, identity=False, mean=False)


def pads_as_same(value: AffineConv) -> bool:
    """Whether `padding="same"` is the padding of a value, one more at the end of an axis."""
    return all(axis.is_same and not axis.copies_pixels for axis in value.axes) and any(
        axis.lo != axis.hi for axis in value.axes
    )


def finest(value: AffineConv) -> AffineConv:
    """The same with as many groups as the layer will have. This computes the kernel."""
    if value.identity or not value.axes:
        return value
    groups, kernel = finest_groups(value.kernel(), value.groups)
    return replace(value, groups=groups, kernel=Lazy.of(kernel))


def widened(value: AffineConv) -> AffineConv:
    """The same map with zero padding as a layer has it: nn.Conv equally at both ends, or as in nn.ConvTranspose."""
    widen = Axis.widened_transposed if value.is_transposed else Axis.widened
    axes = tuple(widen(axis.balanced()) for axis in value.axes)
    if axes == value.axes:
        return value
    kernel = Lazy(lambda: embedded(value.kernel(), value.axes, axes))
    return replace(value, axes=axes, kernel=kernel, identity=False, mean=False)
