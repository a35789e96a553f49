"""The walk: every recorded tensor as a value, instead of numbers.

A node is either an *anchor*, or an `AffineConv` (or something that will become one) of one anchor. Constants and rules
decide; where a rule refuses, or there is none, a new anchor starts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from reparam.affine import AffineConv, Anchor, Bordered, Constant, Deferred
from reparam.capture import Node, evaluate
from reparam.errors import Refusal
from reparam.rules import RULES, Stack, Value, operation

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(eq=False)
class Interpretation:
    """What the walk found: the value of every node that is not an anchor, the anchor each belongs to, the refusals."""

    values: dict[Node, Value] = field(default_factory=dict)
    anchors: dict[Node, Node] = field(default_factory=dict)
    refusals: dict[Node, Refusal] = field(default_factory=dict)


def interpret(nodes: Iterable[Node], opaque: Collection[Node]) -> Interpretation:
    """Walk the nodes in the order in which they ran; `opaque` ones are anchors whatever their rule says."""
    found = Interpretation()
    for node in nodes:
        if node.constant or node in opaque:
            continue
        try:
            value = step(node, found.values)
        except Refusal as refusal:
            found.refusals[node] = refusal
            continue
        if value is not None:
            found.values[node] = value
            found.anchors[node] = next(found.anchors.get(operand, operand) for operand in node.operands)
    return found


def step(node: Node, values: Mapping[Node, Value]) -> Value:
    """The value of a node, its operands' given (one without a value is its own anchor); None if it has no rule."""
    rule = RULES.get(operation(node.function)) if node.function is not None else None
    if rule is None or not node.operands:
        return None
    for operand in node.operands:
        if operand not in values and not _is_map(operand):
            return None
    value = rule(*_looked_up(node.args, values), **_looked_up(node.kwargs, values))
    if node.inplace and _anchored(node.args[0], values):
        raise Refusal("it overwrites its input, which others may read", "the same operation out of place would fold")
    sources = {operand.dtype for operand in node.operands if operand.dtype is not None}
    if node.dtype is not None and sources and sources != {node.dtype}:
        raise Refusal(f"it changes the dtype to {node.dtype}", "one dtype throughout (no autocast, no cast) would fold")
    return value


def anchored(node: Node) -> AffineConv:
    """An anchor as the value that its readers see: channels on dimension 1 where it has the rank of a feature map."""
    rank = len(node.shape)
    return AffineConv.of(Anchor(node, node.shape), rank - 2 if 3 <= rank <= 5 else 0)


def _is_map(node: Node) -> bool:
    return node.dtype in _FLOATING and len(node.shape) >= 2


def _anchored(argument: Any, values: Mapping[Node, Value]) -> bool:
    return isinstance(argument, Node) and argument not in values and not argument.constant


def _looked_up(argument: Any, values: Mapping[Node, Value]) -> Any:
    if isinstance(argument, Node):
        if argument.constant:
            return Constant(argument.shape, Deferred(lambda: evaluate(argument, {})))
        return values[argument] if argument in values else anchored(argument)
    if isinstance(argument, (tuple, list)):
        return type(argument)(_looked_up(item, values) for item in argument)
    if isinstance(argument, dict):
        return {key: _looked_up(item, values) for key, item in argument.items()}
    return argument


def waits(value: Value) -> bool:
    """Whether a value is not a tensor that one convolution could compute (parts, a stack, an unfinished border)."""
    return isinstance(value, (Bordered, Stack, tuple, list))
