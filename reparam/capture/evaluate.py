"""The values of recorded tensors, computed again in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reparam.capture.float64 import Float64, as_float64
from reparam.capture.graph import Node
from reparam.capture.tree import mapped


def evaluate(node: Node, memo: dict[Node, Any]) -> Any:
    """The value of a node in float64, on the CPU.

    memo: values that are known; those that are computed on the way are added. A constant needs none of them, any other
    node the value of its anchor. Raises KeyError where that is missing.
    """
    pending = [node]  # a stack, not recursion: a sum of a thousand constants is a thousand operations deep
    while pending:
        current = pending[-1]
        unknown = [] if _is_known(current, memo) else [node for node in current.inputs if not _is_known(node, memo)]
        if unknown and current.function is not None:
            pending += unknown
            continue
        pending.pop()
        if not _is_known(current, memo):
            memo[current] = _computed(current, memo)
    return _value(node, memo)


def _is_known(node: Node, memo: dict[Node, Any]) -> bool:
    return node in memo or node.tensor is not None


def _value(node: Node, memo: dict[Node, Any]) -> Any:
    """The value of a node that is known. Tensors of the model are not added to `memo`, as they may be large."""
    if node in memo or node.tensor is None:
        return memo[node]
    return as_float64(node.tensor.detach().cpu())


def _computed(node: Node, memo: dict[Node, Any]) -> Any:
    """The value that the function of a node computes from known ones."""
    if node.function is None:
        raise KeyError(f"the value of {node} is not known")
    args, kwargs = _with_values(node.args, memo), _with_values(node.kwargs, memo)
    with torch.no_grad(), Float64():
        if node.inplace:
            args = (args[0].clone(), *args[1:])
        result = node.function(*args, **kwargs)
    return mapped(args[0] if node.inplace else result, _on_cpu)


def _with_values(item: Any, memo: dict[Node, Any]) -> Any:
    """An argument with values in place of nodes."""
    # At module level: a nested function that calls itself is a cycle, and would keep all values alive.
    if isinstance(item, Node):
        return _value(item, memo)
    if isinstance(item, (tuple, list)):
        return type(item)(_with_values(part, memo) for part in item)
    if isinstance(item, dict):
        return {key: _with_values(part, memo) for key, part in item.items()}
    if isinstance(item, slice):
        return slice(*(_with_values(part, memo) for part in (item.start, item.stop, item.step)))
    return item


def _on_cpu(leaf: Any) -> Any:
    """The algebra is computed on the CPU, whatever device the user's code names."""
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf
