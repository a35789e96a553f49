"""Memory layout: the order of a tensor's dimensions in memory.

No value depends on it, but `view` does: it raises where the layout does not fit. A fold must not change the layout of a
tensor that code takes a view of.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from reparam.capture.graph import Node, Record
from reparam.capture.ops import (
    CONTIGUOUS,
    CONVOLUTIONS,
    LAYERS,
    NEEDING_STRIDES,
    PERHAPS_VIEWS,
    TRANSPOSED_CONVOLUTIONS,
)

CHANGES_LAYOUT = (
    "code takes a view of it, which needs its present memory layout; a folded layer may give it another one",
    "`reshape` in the place of `view` would fold",
)

_WINDOWED = CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS


def layout_sensitive(record: Record) -> set[Node]:
    """The nodes whose memory layout has to stay: code takes a view of them, or of a tensor computed from them."""
    pending = [
        node
        for node in record.nodes
        if node.op in NEEDING_STRIDES or (node.op in PERHAPS_VIEWS and record.writes.get(node.storage))
    ]
    sensitive: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in sensitive:
            sensitive.add(node)
            pending += [] if node.op in CONTIGUOUS else node.operands
    return sensitive


def may_change_layout(
    base: Node, nodes: Sequence[Node], steps: Collection[Node], place: Sequence[Node], channels: int
) -> bool:
    """Whether a fold may change the layout of the last of `nodes`, or of a tensor that a view among the steps reads.

    With `steps` the fold is one layer in the `place` of some nodes: its result needs the layout of the last of them,
    and the other nodes that are removed must have kept their layout. `channels`: of the base. A single channel has no
    layout of its own, and a convolution behind steps may then choose another one.
    """
    if steps:
        layers = [node for node in place if node.op in LAYERS]
        removed = [node for node in nodes if node not in steps and node not in place]
        kept = all(_same_layout(operand, node) and _is_dense(operand) for node in removed for operand in node.operands)
        ambiguous = channels == 1 and any(layer.op in _WINDOWED for layer in layers)
        return not kept or ambiguous or (bool(layers) and not _same_layout(place[-1], layers[-1]))
    convolutions = [node for node in nodes if node.op in _WINDOWED]
    if not convolutions:
        return _dimension_order(nodes[-1]) != _order_after_convolution(base)
    read = convolutions[-1].operands[0]
    same_order = _dimension_order(nodes[-1]) == _dimension_order(convolutions[-1])
    return not same_order or _stride_ranks(read) != _stride_ranks(base)


def chooses_layout(node: Node) -> bool:
    """Whether code chooses the layout of the tensor. Its input may have that layout in this run only."""
    return node.op == "contiguous" or (node.op == "clone" and bool(node.kwargs))


def _dimension_order(node: Node) -> tuple[int, ...]:
    """The dimensions from the longest stride to the shortest."""
    return tuple(sorted(range(len(node.strides)), key=lambda dim: -node.strides[dim]))


def _same_layout(one: Node, other: Node) -> bool:
    """Whether both have the same layout for every input. Dimensions of length 1 leave the order open."""
    same_order = _dimension_order(one) == _dimension_order(other)
    return same_order and (1 not in one.shape or _stride_ranks(one) == _stride_ranks(other))


def _stride_ranks(node: Node) -> tuple[int, ...]:
    """The rank of each stride among all strides: a convolution chooses the layout of its result by them.

    Tensors of one dimension order may differ in them where a dimension has length 1.
    """
    return tuple(sorted(set(node.strides)).index(stride) for stride in node.strides)


def _is_dense(node: Node) -> bool:
    """Whether its elements leave no gaps in memory."""
    order = _dimension_order(node)
    steps = [math.prod(node.shape[dim] for dim in order[at + 1 :]) for at in range(len(order))]
    return all(node.strides[dim] == step or node.shape[dim] == 1 for dim, step in zip(order, steps, strict=True))


def _order_after_convolution(node: Node) -> tuple[int, ...]:
    """The dimension order of a convolution's result: channels-last stays, every other layout becomes row-major.

    Empty where it is unknown: a single channel may be taken for the last dimension.
    """
    rank = len(node.strides)
    if node.shape[1:2] == (1,) and node.strides[1] != math.prod(node.shape[2:]):
        return ()
    last = (0, *range(2, rank), 1)
    return last if rank in (4, 5) and _dimension_order(node) == last else tuple(range(rank))
