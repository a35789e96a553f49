"""What an operation costs: a roofline with a price per launched operation. Units: microseconds.

`max(multiply-adds / rate, bytes / bandwidth) + launch`. The rates are those of a desktop CPU core pair running float32
through oneDNN, rounded; plans depend on their ratios only. Depthwise kernels reach a fraction of the rate of
dense ones because they reuse each loaded value a few times only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.affine import AffineConv
from reparam.axis import ZEROS
from reparam.capture import Node
from reparam.rules import operation

_VIEWS = frozenset(
    "view reshape chunk split split_with_sizes tensor_split getitem transpose swapaxes swapdims permute movedim "
    "moveaxis t T mT flatten unflatten unsqueeze squeeze expand detach contiguous narrow select unbind data dropout "
    "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "affine_part".split()  # a norm scales as it writes: for nothing
)
_PRODUCTS = ("matmul", "linalg_matmul", "mm", "bmm", "addmm", "baddbmm", "inner", "einsum", "tensordot")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", *_TRANSPOSED, "linear")
KERNELS = (*_CONVOLUTIONS, *_PRODUCTS)


@dataclass(frozen=True)
class Device:
    """Rates of a device: multiply-adds per microsecond (dense, depthwise), bytes per microsecond, microseconds."""

    dense: float = 40_000.0
    depthwise: float = 8_000.0
    bandwidth: float = 10_000.0
    launch: float = 6.0
    view: float = 1.0


CPU = Device()
_BYTES = 4


def convolution(
    device: Device, read: int, written: int, weights: int, groups: int, channels: int, pixels: float | None = None
) -> float:
    """A convolution that reads and writes so many elements; its weights are applied at every pixel that it writes.

    pixels: where that differs, as in a transposed one, which applies them at every pixel that it reads.
    """
    macs = weights * (written / channels if pixels is None else pixels)
    rate = device.depthwise if groups > 1 and weights // channels * groups <= 32 * groups else device.dense
    return max(macs / rate, (read + written + weights) * _BYTES / device.bandwidth) + device.launch


def of_fold(device: Device, value: AffineConv) -> float:
    """The plain convolution that a value would be emitted as; nothing for the anchor itself."""
    if value.identity:
        return 0.0
    written, read, shape = math.prod(value.shape()), math.prod(value.anchor.shape), value.anchor.shape
    frames, value = value.deployable()
    groups = value.groups if value.axes else 1  # a linear layer has none
    weights = value.out_channels * (value.in_channels // groups) * value.taps
    frames += [(mode, value.sides(mode)) for mode in value.modes if mode != ZEROS]
    padding = 0.0
    for _, pads in frames:  # an operation of its own, as it is where the user's code pads
        sides = zip(shape[2:], pads[-2::-2], pads[::-2], strict=True)
        shape = (*shape[:2], *(size + lo + hi for size, lo, hi in sides))
        padding += (read + math.prod(shape)) * _BYTES / device.bandwidth + device.launch
        read = math.prod(shape)
    mapped = 3 * written * _BYTES / device.bandwidth + device.launch if value.mapped else 0.0
    pixels = read / value.in_channels if value.stretched else None
    return padding + mapped + convolution(device, read, written, weights, groups, value.out_channels, pixels)


def of_map(device: Device, value: AffineConv, read: int, written: int) -> float:
    """A map of channels where it stands: behind operations that change the number of pixels."""
    groups = value.groups if value.axes else 1
    weights = value.out_channels * (value.in_channels // groups)
    return convolution(device, read, written, weights, groups, value.out_channels)


def of_node(device: Device, node: Node) -> float:
    """An operation as the user's code runs it, with what it takes to compute its constants again at every call."""
    name = operation(node.function) if node.function is not None else ""
    constants = sum(_constant(device, operand) for operand in node.inputs if operand.constant)
    if name in _VIEWS:
        return device.view + constants
    read, written = sum(math.prod(operand.shape) for operand in node.operands), math.prod(node.shape)
    if name in _CONVOLUTIONS and len(node.inputs) > 1 and len(node.inputs[1].shape) > 1:
        kernel = node.inputs[1].shape
        if name in _TRANSPOSED:
            channels = node.shape[-len(kernel[1:])]
            groups, pixels = channels // kernel[1], math.prod(node.inputs[0].shape) / kernel[0]
            return convolution(device, read, written, math.prod(kernel), groups, channels, pixels) + constants
        own = convolution(device, read, written, math.prod(kernel), _groups(node, kernel), kernel[0])
        return own + _unevenly_padded(device, node, read) + constants
    if (matrix := product_channels(node)) is not None:
        return convolution(device, read, written, math.prod(matrix), 1, matrix[-1]) + constants
    return (read + written) * _BYTES / device.bandwidth + device.launch + constants


def product_channels(node: Node) -> tuple[int, int] | None:
    """The (in, out) channels of a product with a constant matrix, whichever way round; None for any other node."""
    name = operation(node.function) if node.function is not None else ""
    shapes = [each.shape for each in node.inputs if each.constant and len(each.shape) > 1]
    if name not in _PRODUCTS or not shapes or not node.operands:
        return None
    first, second = shapes[-1][-2:]
    read, written = math.prod(node.operands[-1].shape), math.prod(node.shape)
    return next((io for io in ((first, second), (second, first)) if written * io[0] == read * io[1]), None)


def _unevenly_padded(device: Device, node: Node, read: int) -> float:
    """What torch pays for padding="same" where it takes one pixel more at the end: a padded copy."""
    padding = node.kwargs.get("padding", node.args[4] if len(node.args) > 4 else 0)
    dilation = node.kwargs.get("dilation", node.args[5] if len(node.args) > 5 else 1)
    taps = node.inputs[1].shape[2:]
    steps = dilation if isinstance(dilation, (tuple, list)) else [dilation]
    uneven = any(
        step * (k - 1) % 2 for step, k in zip([*steps] * (len(taps) if len(steps) == 1 else 1), taps, strict=True)
    )
    return 2 * read * _BYTES / device.bandwidth + device.launch if padding == "same" and uneven else 0.0


def macs_of(node: Node) -> int:
    """Multiply-adds of a convolution or linear layer (transposed ones counted by their input), else 0."""
    name = operation(node.function) if node.function is not None else ""
    if (matrix := product_channels(node)) is not None:
        return math.prod(node.shape) * matrix[0]
    if name not in _CONVOLUTIONS or len(node.inputs) < 2 or len(node.inputs[1].shape) < 2:
        return 0
    kernel = node.inputs[1].shape
    counted = node.inputs[0].shape if name in _TRANSPOSED else node.shape
    return math.prod(counted) * math.prod(kernel[1:])


def macs_of_fold(value: AffineConv) -> int:
    """The same of a fold."""
    groups = value.groups if value.axes else 1
    if value.identity:
        return 0
    if value.stretched:
        return math.prod(value.anchor.shape) * (value.out_channels // groups) * value.taps
    return math.prod(value.shape()) * (value.in_channels // groups) * value.taps


def _groups(node: Node, kernel: Sequence[int]) -> int:
    channel = 1 if len(kernel) > 2 else -1
    return node.inputs[0].shape[channel] // kernel[1] if len(node.inputs[0].shape) > 1 else 1


def _constant(device: Device, node: Node) -> float:
    """What it takes to compute a constant; nothing for a tensor that the model holds."""
    if node.tensor is not None:
        return 0.0
    elements = math.prod(node.shape) + sum(math.prod(operand.shape) for operand in node.inputs)
    view = node.function is not None and operation(node.function) in _VIEWS
    own = device.view if view else elements * _BYTES / device.bandwidth + device.launch
    return own + sum(_constant(device, operand) for operand in node.inputs)
