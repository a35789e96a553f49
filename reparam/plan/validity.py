"""TODO."""

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


def _fixes_channels(base: Node, nodes: Sequence[Node], counted: bool, steps: Collection[Node] = ()) -> bool:
    """Whether what reads the whole base holds a number per channel: then it has as many channels at every input.

    Not `counted`: what is read as channels may be pixels, one of which a scaling makes as many as it holds numbers, and
    any number of which a constant may pick some of.
    What rearranges pixels (`steps`) leaves the channels whole.
    """
    whole = {base}
    for node in nodes:
        if node in steps and whole.intersection(node.operands):
            whole.add(node)
        elif whole.intersection(node.operands) and node.op not in CONTRACTING:
            kernel = node.op in KERNELS
            if kernel or any(operand.constant and max(operand.shape, default=1) > 1 for operand in node.inputs):
                if counted or (node.op not in ARITHMETIC and node.op not in INDEXING):
                    return True
                continue
            kept = (node.op in CHANNEL_MULTIPLYING or node.op in REARRANGING) and whole.issuperset(node.operands)
            if kept or (node.dtype is not None and node.shape[1:2] == base.shape[1:2] and not _picks(node)):
                whole.add(node)
    return False


def _copies(node: Node) -> bool:
    return node.op == "contiguous"


def _cuts(_: Interpretation, node: Node) -> bool:
    return node.op in KERNELS or node.op in CROPPING


def _vanishes(walk: Interpretation, base: Node) -> bool:
    """Whether it is a part of an image, of which nothing is left at some sizes."""
    node = walk.origin(base, _cuts)
    if node is None:
        return False
    if node.op != "getitem":
        before = node.operands[0].shape
        return node.op not in KERNELS and any(map(operator.lt, node.shape[2:], before[2:]))
    entries = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    pixels = entries[entries.index(Ellipsis) + 1 :] if Ellipsis in entries else entries[2:]
    return any(isinstance(entry, slice) and (entry.start, entry.stop) != (None, None) for entry in pixels)


def _takes_nothing(base: Node, nodes: Sequence[Node]) -> bool:
    """Whether the nodes take an empty image, which no layer takes: they pad it before any layer reads it."""
    empty = {base}
    for node in nodes:
        if empty.intersection(node.operands):
            if node.op in KERNELS or node.op in POOLS:
                return False
            empty |= {node} if node.shape[2:] == base.shape[2:] else set()
    return True


def _picks(node: Node) -> bool:
    """Whether it may be a part of dimension 1, be it one that happens to be the whole."""
    if node.op != "getitem" or len(node.args) < 2:
        return node.op in CHANNEL_SELECTING
    entries = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if Ellipsis in entries:
        return entries[0] is not Ellipsis or len(entries) > len(node.shape) - 1
    return len(entries) > 1 and entries[1] != slice(None)
