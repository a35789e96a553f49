"""The values of recorded tensors, worked out in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reparam.capture.float64 import Float64, as_float64
from reparam.capture.graph import Node
from reparam.capture.tree import mapped


def evaluate(node: Node, memo: dict[Node, Any]) -> Any:
    """The value of a node in float64, on the CPU; `memo` holds what is known already and keeps what is worked out.

    Constants need nothing; any other node needs the value of its anchor in `memo`. Raises KeyError without.
    """
    waiting = [node]  # no function that calls itself: a sum of a thousand constants goes a thousand steps back
    while waiting:
        each = waiting[-1]
        unknown = [] if _known(each, memo) else [operand for operand in each.inputs if not _known(operand, memo)]
        if unknown and each.function is not None:
            waiting += unknown
            continue
        waiting.pop()
        if not _known(each, memo):
            memo[each] = _computed(each, memo)
    return _value(node, memo)


def _known(node: Node, memo: dict[Node, Any]) -> bool:
    return node in memo or node.tensor is not None


def _value(node: Node, memo: dict[Node, Any]) -> Any:
    """What is known of a node; the tensors of the model are not kept, as they may be large."""
    if node in memo or node.tensor is None:
        return memo[node]
    return as_float64(node.tensor.detach().cpu())


def _computed(node: Node, memo: dict[Node, Any]) -> Any:
    """What the function of a node makes of values that are known."""
    if node.function is None:
        raise KeyError(f"the value of {node} is not known")
    args, kwargs = _evaluated(node.args, memo), _evaluated(node.kwargs, memo)
    with torch.no_grad(), Float64():
        if node.inplace:
            args = (args[0].clone(), *args[1:])
        result = node.function(*args, **kwargs)
    return mapped(args[0] if node.inplace else result, _on_cpu)


def _evaluated(item: Any, memo: dict[Node, Any]) -> Any:
    # No function inside another: one that calls itself is held by itself, and would hold all that was worked out.
    if isinstance(item, Node):
        return _value(item, memo)
    if isinstance(item, (tuple, list)):
        return type(item)(_evaluated(each, memo) for each in item)
    if isinstance(item, dict):
        return {key: _evaluated(entry, memo) for key, entry in item.items()}
    if isinstance(item, slice):
        return slice(*(_evaluated(part, memo) for part in (item.start, item.stop, item.step)))
    return item


def _on_cpu(leaf: Any) -> Any:
    """Code may name a device of its own; the algebra is done on one."""
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf
