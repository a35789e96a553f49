"""What runs: the operations that the user's code launches, and those that a fold would.

Each is a `Work`, whatever the device: how many numbers it reads, writes and holds, and how many multiply-adds it does.
What that costs is for a `Cost` to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

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
class Work:
    """One operation as it is launched.

    kind: "view" where nothing is moved, "moved" where no weights are multiplied with, else the class of a convolution:
        "depthwise" or "dense".
    read, written: elements of activations; weights: of the kernel; macs: multiply-adds.
    stored: the numbers that the model holds for this operation alone.
    """

    kind: str
    read: int = 0
    written: int = 0
    weights: int = 0
    macs: int = 0
    stored: int = 0


VIEW = Work("view")


def convolution(read: int, written: int, weights: int, groups: int, channels: int, stored: int, macs: int) -> Work:
    """A convolution with so many weights, that reads and writes so many elements."""
    kind = "depthwise" if groups > 1 and weights // channels <= 32 else "dense"
    return Work(kind, read, written, weights, macs, stored)


def of_fold(value: AffineConv) -> Iterator[Work]:
    """The plain convolution that a value would be emitted as, and what has to pad or add beside it.

    Nothing for the anchor itself.
    """
    if value.identity:
        return
    written, read, shape = math.prod(value.shape()), math.prod(value.anchor.shape), value.anchor.shape
    frames, value = value.deployable()
    frames += [(mode, value.sides(mode)) for mode in value.modes if mode != ZEROS]
    for _, pads in frames:  # an operation of its own, as it is where the user's code pads
        sides = zip(shape[2:], pads[-2::-2], pads[::-2], strict=True)
        shape = (*shape[:2], *(size + lo + hi for size, lo, hi in sides))
        yield Work("moved", read, math.prod(shape))
        read = math.prod(shape)
    yield _emitted(value, read, written)
    if value.mapped:
        pixels = written // value.out_channels // shape[0]
        yield Work("moved", 2 * written, written, stored=value.out_channels * pixels)


def of_map(value: AffineConv, read: int, written: int) -> Work:
    """A map of channels where it stands: behind operations that change the number of pixels."""
    return _emitted(value, read, written)


def _emitted(value: AffineConv, read: int, written: int) -> Work:
    groups = value.groups if value.axes else 1  # a linear layer has none
    weights = value.out_channels * (value.in_channels // groups) * value.taps
    # A transposed one applies its weights at every pixel that it reads.
    macs = weights * read // value.in_channels if value.stretched else weights * written // value.out_channels
    bias = value.out_channels if value.bias is not None and not value.mapped else 0
    return convolution(read, written, weights, groups, value.out_channels, weights + bias, macs)


def of_node(node: Node) -> Iterator[Work]:
    """An operation as the user's code runs it, and those that compute its constants again at every call."""
    for operand in node.inputs:
        if operand.constant:
            yield from _constant(operand)
    name = operation(node.function) if node.function is not None else ""
    stored = _held(node)
    if name in _VIEWS:
        yield Work("view", stored=stored)
        return
    read, written = sum(math.prod(operand.shape) for operand in node.operands), math.prod(node.shape)
    if name in _CONVOLUTIONS and len(node.inputs) > 1 and len(node.inputs[1].shape) > 1:
        kernel, macs = node.inputs[1].shape, macs_of(node)
        if name in _TRANSPOSED:
            channels = node.shape[-len(kernel[1:])]
            yield convolution(read, written, math.prod(kernel), channels // kernel[1], channels, stored, macs)
            return
        yield from _unevenly_padded(node, read)
        yield convolution(read, written, math.prod(kernel), _groups(node, kernel), kernel[0], stored, macs)
    elif (matrix := product_channels(node)) is not None:
        yield convolution(read, written, math.prod(matrix), 1, matrix[-1], stored, macs_of(node))
    else:
        yield Work("moved", read, written, stored=stored)


def _held(node: Node) -> int:
    """The numbers of the tensors that nothing but this operation reads."""
    return sum(leaf.numel() for leaf in {id(leaf): leaf for leaf in _alone(node)}.values())


def _alone(node: Node) -> Iterator[Tensor]:
    waiting, within = list(node.inputs), {node}
    while waiting:
        each = waiting.pop()
        if each.constant and within.issuperset(each.readers):
            within.add(each)
            waiting += each.inputs
            if each.tensor is not None:
                yield each.tensor


def product_channels(node: Node) -> tuple[int, int] | None:
    """The (in, out) channels of a product with a constant matrix, whichever way round; None for any other node."""
    name = operation(node.function) if node.function is not None else ""
    shapes = [each.shape for each in node.inputs if each.constant and len(each.shape) > 1]
    if name not in _PRODUCTS or not shapes or not node.operands:
        return None
    first, second = shapes[-1][-2:]
    read, written = math.prod(node.operands[-1].shape), math.prod(node.shape)
    return next((io for io in ((first, second), (second, first)) if written * io[0] == read * io[1]), None)


def _unevenly_padded(node: Node, read: int) -> Iterator[Work]:
    """What torch launches for padding="same" where it takes one pixel more at the end: a padded copy."""
    padding = node.kwargs.get("padding", node.args[4] if len(node.args) > 4 else 0)
    dilation = node.kwargs.get("dilation", node.args[5] if len(node.args) > 5 else 1)
    taps = node.inputs[1].shape[2:]
    steps = dilation if isinstance(dilation, (tuple, list)) else [dilation]
    uneven = any(
        step * (k - 1) % 2 for step, k in zip([*steps] * (len(taps) if len(steps) == 1 else 1), taps, strict=True)
    )
    if padding == "same" and uneven:
        yield Work("moved", read, read)


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


def _constant(node: Node) -> Iterator[Work]:
    """What computes a constant; nothing for a tensor that the model holds."""
    if node.tensor is not None:
        return
    for operand in node.inputs:
        yield from _constant(operand)
    view = node.function is not None and operation(node.function) in _VIEWS
    yield VIEW if view else Work("moved", sum(math.prod(each.shape) for each in node.inputs), math.prod(node.shape))
