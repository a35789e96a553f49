"""The order in which tensors lie in memory. No value depends on it, but whether code may take a `view` of one does."""

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

ORDER = (
    "code takes a view of it, which needs the order in memory that it has now; a layer may give it another",
    "write `reshape` for `view`",
)

_WINDOWED = CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS


def relied_on(record: Record) -> set[Node]:
    """Every node that code takes a view of, or computes such a tensor from: it has to stay in its order of memory."""
    waiting = [
        node
        for node in record.nodes
        if node.op in NEEDING_STRIDES or (node.op in PERHAPS_VIEWS and record.writes.get(node.storage))
    ]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [] if node.op in CONTIGUOUS else node.operands
    return seen


def reordered(base: Node, nodes: Sequence[Node], steps: Collection[Node], place: Sequence[Node], channels: int) -> bool:
    """Whether the last of the nodes, or what a view among the steps sees, may lie in another order after a fold.

    What stands behind `steps` is computed at its `place` by one layer, whose result has to lie as the last of `place`
    did; all else that is removed must have kept the order. `channels`: of the base; a single one may lie in any order,
    and a convolution that reads it behind steps takes one for another.
    """
    if steps:
        layers = [node for node in place if node.op in LAYERS]
        gone = [node for node in nodes if node not in steps and node not in place]
        kept = all(_alike(each, node) and _dense(each) for node in gone for each in node.operands)
        single = channels == 1 and any(each.op in _WINDOWED for each in layers)
        return not kept or single or (bool(layers) and not _alike(place[-1], layers[-1]))
    convolutions = [node for node in nodes if node.op in _WINDOWED]
    if not convolutions:
        return _order(nodes[-1]) != _convolved(base)
    read = convolutions[-1].operands[0]
    return _order(nodes[-1]) != _order(convolutions[-1]) or _pattern(read) != _pattern(base)


def asked_for(node: Node) -> bool:
    """Whether code puts the tensor in an order of its choice. What it read may have been in that only in this run."""
    return node.op == "contiguous" or (node.op == "clone" and bool(node.kwargs))


def _order(node: Node) -> tuple[int, ...]:
    """The dimensions from the one with the longest stride to that with the shortest."""
    return tuple(sorted(range(len(node.strides)), key=lambda dim: -node.strides[dim]))


def _alike(one: Node, other: Node) -> bool:
    """Whether both lie in one order for every input: where dimensions have length 1, any order could be that."""
    return _order(one) == _order(other) and (1 not in one.shape or _pattern(one) == _pattern(other))


def _pattern(node: Node) -> tuple[int, ...]:
    """Which strides are longer than which, or equal: by that a convolution tells in which order its input lies.

    Where a dimension has length 1, tensors of one order may differ in that.
    """
    return tuple(sorted(set(node.strides)).index(stride) for stride in node.strides)


def _dense(node: Node) -> bool:
    """Whether nothing else lies between its elements."""
    order = _order(node)
    steps = [math.prod(node.shape[dim] for dim in order[at + 1 :]) for at in range(len(order))]
    return all(node.strides[dim] == step or node.shape[dim] == 1 for dim, step in zip(order, steps, strict=True))


def _convolved(node: Node) -> tuple[int, ...]:
    """The order of what a convolution makes of the node: channels last stay last, all else is put in order.

    None at all where that cannot be told: a single channel may be taken for the last dimension.
    """
    rank = len(node.strides)
    if node.shape[1:2] == (1,) and node.strides[1] != math.prod(node.shape[2:]):
        return ()
    last = (0, *range(2, rank), 1)
    return last if rank in (4, 5) and _order(node) == last else tuple(range(rank))
