"""A value in one line, for tables and refusals."""

from __future__ import annotations

from collections.abc import Iterable

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.layer_form import layer_form, pads_as_same

_CLASS = {0: "Linear", 1: "Conv1d", 2: "Conv2d", 3: "Conv3d"}


def describe(value: AffineConv) -> str:
    """The layers that compute a value: class, channels, kernel, stride, padding, such as `Conv2d 64->64 3x3 s1 p1`.

    "nothing" for the anchor itself.
    """
    if value.identity:
        return "nothing"
    paddings, value = layer_form(value)
    name = _CLASS[len(value.axes)].replace("Conv", "ConvTranspose" if value.is_transposed else "Conv")
    text = f"{name} {value.in_channels}->{value.out_channels}"
    if value.axes:
        strides, pads = zip(*[_stride_and_padding(value, axis) for axis in value.axes], strict=True)
        fields = [("", "x".join(str(axis.taps) for axis in value.axes)), ("s", _short(strides))]
        fields.append(("p", "same" if pads_as_same(value) else _short(pads)))
        if value.is_transposed and any(axis.hi > axis.lo for axis in value.axes):
            fields.append(("o", _short(axis.hi - axis.lo for axis in value.axes)))
        if any(axis.dilation > 1 for axis in value.axes):
            fields.append(("d", _short(axis.dilation for axis in value.axes)))
        text += "".join(f" {key}{number}" for key, number in fields) + (f" g{value.groups}" if value.groups > 1 else "")
        text += "".join(f" {mode}" for mode in value.modes if mode != ZEROS)
        text += " + map of biases" if value.bias_per_pixel else ""
    return " + ".join([*(f"pad {sides}" + (f" {mode}" if mode != ZEROS else "") for mode, sides in paddings), text])


def _stride_and_padding(value: AffineConv, axis: Axis) -> tuple[int, int]:
    """What the layer of torch calls by these names."""
    return (axis.input_dilation, axis.transposed_padding) if value.is_transposed else (axis.stride, axis.lo)


def _short(numbers: Iterable[int]) -> str:
    """One number where all are equal, such as `1` or `2x1`."""
    values = list(numbers)
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
