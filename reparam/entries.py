"""What a trace is to show of a call, in order: what the record holds, one entry for each step of the code."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import nn

from reparam.arguments import unproven
from reparam.capture.graph import CAUGHT, GRADIENTS, LENT, MISSING, SET, SETS, Call, Node, entry, nodes_in
from reparam.capture.norms import affine_part


def entries(call: Call, opened: Collection[nn.Module]) -> Iterator[Node | Call]:
    """The operations of the call and of opened inner calls, and all other calls.

    Raises Refusal where the code does what no trace shows.
    """
    if GRADIENTS in call.looked:
        remedy = "a forward that does the same whether or not gradients are recorded, and does not ask, would fold"
        raise unproven(call, f"it has {GRADIENTS}, and may do something else where they are", remedy)
    unseen = [each for each in (CAUGHT, MISSING, SETS, SET) if each in call.looked]
    unseen += [LENT for each in (call, *call.events) if _lent(each)]
    if unseen:
        raise unproven(call, f"it {unseen[0]}")
    for event in call.events:
        if isinstance(event, Call):
            if event.module in opened:
                yield from entries(event, opened)
            elif any(not node.constant for node in nodes_in((event.args, event.kwargs))):
                yield event
        elif not event.constant and event.function not in _PARTS:
            yield event


_PARTS = (entry, affine_part, None)  # no step of their own: entries of a tuple, scales of a norm, unknown tensors


def _lent(event: Node | Call) -> bool:
    return isinstance(event, Call) and LENT in event.looked


def parts(node: Node) -> Any:
    """The result of an operation: the node, its affine part, or the entries of the tuple that it returned."""
    if node.affine_part is not None:
        return node.affine_part
    if node.same:
        return node.operands[0]
    if node.dtype is not None:
        return node
    found = {reader.args[1]: reader for reader in node.readers if reader.function is entry}
    return [found.get(i) for i in range(max(found, default=-1) + 1)]


def foreign(node: Node) -> bool:
    """Whether it comes from nowhere in the record: out of a cache, for one."""
    return node.function is None and node.call is not None and not node.inputs


def varying(trees: Any) -> list[Node]:
    """The nodes in described trees that depend on the model's input, each once."""
    return distinct(node for tree in trees if tree is not None for node in nodes_in(tree) if not node.constant)


def distinct(nodes: Iterable[Node]) -> list[Node]:
    return list(dict.fromkeys(nodes))
