"""What runs: the operations that the user's code launches, and those that a fold would launch.

Each one is a `Work`: the numbers that it reads, writes and holds, and its multiply-adds, the same on every device. A
`Cost` gives it a price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS
from reparam.algebra.layer_form import layer_form, pads_as_same
from reparam.capture.graph import Node
from reparam.capture.ops import (
    CONVOLUTIONS,
    FREE,
    LAYERS,
    MATRIX_PRODUCTS,
    POOLS,
    PRODUCTS,
    TRANSPOSED_CONVOLUTIONS,
    facts,
)
from reparam.plan.cost import sample
from reparam.plan.cost.sample import Sample

_LARGE = 25  # taps


@dataclass(frozen=True)
class Work:
    """One launched operation.

    kind: "view" (nothing moves), "pool", "moved" (no product with a matrix), or the class of a convolution:
        "pointwise" (also linear layers and products), "dense", "large" (a window of 25 pixels or more), "grouped" or
        "depthwise".
    read, written: elements of activations; weights: elements of the kernel; macs: multiply-adds.
    inner: input channels per group.
    stored: the numbers that the model holds for this operation alone.
    sample: makes a call that can be timed; None for work that is not timed.
    """

    kind: str
    read: int = 0
    written: int = 0
    weights: int = 0
    macs: int = 0
    inner: int = 1
    stored: int = 0
    sample: Callable[[], Sample] | None = field(default=None, compare=False, repr=False)


VIEW = Work("view")


def _conv_class(inner: int, taps: int, groups: int) -> str:
    if groups > 1:
        return "depthwise" if inner == 1 else "grouped"
    return "pointwise" if taps == 1 else "large" if taps >= _LARGE else "dense"


def of_fold(value: AffineConv) -> Iterator[Work]:
    """The plain convolution that computes a value, with the paddings and sums beside it; nothing for the anchor."""
    if value.identity:
        return
    output, shape = value.shape(), value.anchor.shape
    written, read = math.prod(output), math.prod(shape)
    paddings, value = layer_form(value)
    if paddings:
        yield VIEW  # the time that Python takes to call the sequence of them and the layer
    if pads_as_same(value):  # torch makes the padded copy, as in the user's own call
        yield Work("moved", read, read)
    paddings += [(mode, value.sides(mode)) for mode in value.modes if mode != ZEROS]
    for mode, sides in paddings:  # a separate operation, as in the user's code
        pad = partial(sample.of_pad, shape, sides, mode)
        axes = zip(shape[2:], sides[-2::-2], sides[::-2], strict=True)
        shape = (*shape[:2], *(size + lo + hi for size, lo, hi in axes))
        yield Work("moved", read, math.prod(shape), sample=pad)
        read = math.prod(shape)
    yield _layer_work(value, shape, read, written)
    if value.bias_per_pixel:
        pixels = written // value.out_channels // shape[0]
        add = partial(sample.of_sum, output)
        yield Work("moved", 2 * written, written, stored=value.out_channels * pixels, sample=add)


def of_map(value: AffineConv, read: int, written: int) -> Work:
    """A map of channels behind operations that change the number of pixels; `read` and `written` are elements."""
    batch = value.anchor.shape[0]
    pixels = max(1, read // (value.in_channels * batch))
    ones = [1] * (len(value.axes) - 1)
    shape = (batch, value.in_channels, pixels, *ones) if value.axes else (batch, pixels, value.in_channels)
    return _layer_work(value, shape, read, written)


def _layer_work(value: AffineConv, shape: tuple[int, ...], read: int, written: int) -> Work:
    groups = value.groups if value.axes else 1  # a linear layer has none
    inner = value.in_channels // groups
    weights = value.out_channels * inner * value.taps
    # A transposed convolution applies its weights at every input pixel.
    macs = weights * read // value.in_channels if value.is_transposed else weights * written // value.out_channels
    stored = weights + (value.out_channels if value.bias is not None and not value.bias_per_pixel else 0)
    call = partial(sample.of_fold, value, shape)
    return Work(_conv_class(inner, value.taps, groups), read, written, weights, macs, inner, stored, call)


def of_node(node: Node) -> Iterator[Work]:
    """An operation as the user's code runs it, and the operations that compute its constants at every call."""
    yield from _constants(node)
    name = node.op
    stored = _stored(node)
    if name in FREE:
        yield Work("view", stored=stored, sample=partial(sample.of_node, node))
        return
    read, written = sum(math.prod(operand.shape) for operand in node.operands), math.prod(node.shape)
    kind, weights, inner = _multiplication(node, name)
    if name in CONVOLUTIONS:
        yield from _same_padding(node, read)
    macs = macs_of(node) if weights else _macs_without_weights(node, name)
    yield Work(kind, read, written, weights, macs, inner, stored, partial(sample.of_node, node))


def _multiplication(node: Node, name: str) -> tuple[str, int, int]:
    """The kind, the number of weights, and the input channels per group."""
    if name in LAYERS and len(node.inputs) > 1 and len(node.inputs[1].shape) > 1:
        kernel, taps = node.inputs[1].shape, math.prod(node.inputs[1].shape[2:])
        groups = (
            node.shape[-len(kernel[1:])] // kernel[1] if name in TRANSPOSED_CONVOLUTIONS else _group_count(node, kernel)
        )
        inner = kernel[0] // groups if name in TRANSPOSED_CONVOLUTIONS else kernel[1]
        return _conv_class(inner, taps, groups), math.prod(kernel), inner
    if (matrix := product_channels(node)) is not None:
        return "pointwise", math.prod(matrix), matrix[0]
    if name in POOLS:
        return "pool", 0, 1
    return ("pointwise" if _macs_without_weights(node, name) else "moved"), 0, 1


def _macs_without_weights(node: Node, name: str) -> int:
    """Multiply-adds of a product of two activations, or additions of a pool; else 0."""
    if name in POOLS:
        window = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else 1)
        rank = facts(name).spatial
        taps = math.prod(window) if isinstance(window, (tuple, list)) else int(window) ** rank
        return math.prod(node.shape) * taps
    if name == "scaled_dot_product_attention" and len(node.operands) > 2:
        return 2 * math.prod(node.operands[0].shape) * node.operands[1].shape[-2]
    product = name in MATRIX_PRODUCTS and len(node.operands) == 2
    return math.prod(node.shape) * node.operands[0].shape[-1] if product else 0


def _stored(node: Node) -> int:
    """The numbers in the tensors that only this operation reads."""
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in _exclusive_tensors(node)}.values())


def _exclusive_tensors(node: Node) -> Iterator[Tensor]:
    pending, readers = list(node.inputs), {node}
    while pending:
        constant = pending.pop()
        if constant.constant and readers.issuperset(constant.readers):
            readers.add(constant)
            pending += constant.inputs
            if constant.tensor is not None:
                yield constant.tensor


def product_channels(node: Node) -> tuple[int, int] | None:
    """The (in, out) channels of a product with a constant matrix, on either side; None for any other node."""
    name = node.op
    shapes = [operand.shape for operand in node.inputs if operand.constant and len(operand.shape) > 1]
    if name not in PRODUCTS or not shapes or not node.operands:
        return None
    first, second = shapes[-1][-2:]
    read, written = math.prod(node.operands[-1].shape), math.prod(node.shape)
    return next((io for io in ((first, second), (second, first)) if written * io[0] == read * io[1]), None)


def _same_padding(node: Node, read: int) -> Iterator[Work]:
    """The padded copy that torch makes for padding="same" where one pixel more is needed at the end."""
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
    """Multiply-adds of a convolution (a transposed one by its input), linear layer or constant product, else 0."""
    name = node.op
    if (matrix := product_channels(node)) is not None:
        return math.prod(node.shape) * matrix[0]
    if name not in LAYERS or len(node.inputs) < 2 or len(node.inputs[1].shape) < 2:
        return 0
    kernel = node.inputs[1].shape
    counted = node.inputs[0].shape if name in TRANSPOSED_CONVOLUTIONS else node.shape
    return math.prod(counted) * math.prod(kernel[1:])


def macs_of_fold(value: AffineConv) -> int:
    """Multiply-adds of the layer that computes `value`, with the taps that it has in `layer_form`; 0 for the anchor."""
    return sum(work.macs for work in of_fold(value))


def _group_count(node: Node, kernel: Sequence[int]) -> int:
    channel = 1 if len(kernel) > 2 else -1
    return node.inputs[0].shape[channel] // kernel[1] if len(node.inputs[0].shape) > 1 else 1


def _constants(node: Node) -> Iterator[Work]:
    """The operations that compute the constants of a node, each once. Tensors that the model holds take none."""
    pending, visited = list(node.inputs), set[Node]()
    while pending:
        constant = pending.pop()
        if not constant.constant or constant.tensor is not None or constant in visited:
            continue
        visited.add(constant)
        pending += constant.inputs
        view = constant.op in FREE
        read = sum(math.prod(operand.shape) for operand in constant.inputs)
        yield VIEW if view else Work("moved", read, math.prod(constant.shape))
