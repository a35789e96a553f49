"""Conditions that a fold has to meet at every input size and that its value does not show.

A record knows one size. These checks look at the operations instead: whether they fix the number of channels, and
whether a crop may leave an empty image.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

from reparam.capture.graph import Node
from reparam.capture.ops import (
    ARITHMETIC,
    CHANNEL_MULTIPLYING,
    CHANNEL_SELECTING,
    CONTRACTING,
    CROPPING,
    INDEXING,
    KERNELS,
    POOLS,
    REARRANGING,
)
from reparam.rules.interpret import Interpretation


def fixes_channels(base: Node, nodes: Sequence[Node], known: bool, steps: Collection[Node] = ()) -> bool:
    """Whether an operation that reads all channels of `base` accepts no other number of them.

    Such an operation holds one number per channel. `known`: the channel dimension is as long for every input. Otherwise
    it may hold pixels: a scaling repeats a single one, and a constant index selects from any number of them.
    `steps` rearrange pixels and keep all channels.
    """
    whole = {base}
    for node in nodes:
        if node in steps and whole.intersection(node.operands):
            whole.add(node)
        elif whole.intersection(node.operands) and node.op not in CONTRACTING:
            kernel = node.op in KERNELS
            if kernel or any(operand.constant and max(operand.shape, default=1) > 1 for operand in node.inputs):
                if known or (node.op not in ARITHMETIC and node.op not in INDEXING):
                    return True
                continue
            multiplies = node.op in CHANNEL_MULTIPLYING or node.op in REARRANGING
            same_channels = node.dtype is not None and node.shape[1:2] == base.shape[1:2]
            if (multiplies and whole.issuperset(node.operands)) or (same_channels and not may_slice_channels(node)):
                whole.add(node)
    return False


def makes_contiguous(node: Node) -> bool:
    """Whether the operation may copy a tensor into row-major order."""
    return node.op == "contiguous"


def _sets_extent(_: Interpretation, node: Node) -> bool:
    """Whether the operation decides how many pixels its result has."""
    return node.op in KERNELS or node.op in CROPPING


def may_be_empty(walk: Interpretation, base: Node) -> bool:
    """Whether `base` is a crop that is empty at some sizes."""
    node = walk.origin(base, _sets_extent)
    if node is None:
        return False
    if node.op != "getitem":
        before = node.operands[0].shape
        return node.op not in KERNELS and any(map(operator.lt, node.shape[2:], before[2:]))
    entries = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    pixels = entries[entries.index(Ellipsis) + 1 :] if Ellipsis in entries else entries[2:]
    return any(isinstance(entry, slice) and (entry.start, entry.stop) != (None, None) for entry in pixels)


def accept_empty(base: Node, nodes: Sequence[Node]) -> bool:
    """Whether the operations accept an empty image: they pad it before a layer reads it. A layer accepts none."""
    empty = {base}
    for node in nodes:
        if empty.intersection(node.operands):
            if node.op in KERNELS or node.op in POOLS:
                return False
            empty |= {node} if node.shape[2:] == base.shape[2:] else set()
    return True


def may_slice_channels(node: Node) -> bool:
    """Whether the operation may take a part of dimension 1, also where that part is the whole in this run."""
    if node.op != "getitem" or len(node.args) < 2:
        return node.op in CHANNEL_SELECTING
    entries = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if Ellipsis in entries:
        return entries[0] is not Ellipsis or len(entries) > len(node.shape) - 1
    return len(entries) > 1 and entries[1] != slice(None)
