"""Which tensors have as many pixels for every batch, where all images are of one size.

That images are as large as the example says nothing of a tensor whose pixels are the images of a batch: a permutation
moves them there, a reshape joins them with pixels. So the model runs once more, with another batch, and what has as
many entries then, apart from those of dimension 0, has one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from reparam.capture.graph import Node, Record, nodes_in
from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.errors import ModelError


def of_one_size(model: nn.Module, inputs: Inputs, recorded: Record) -> frozenset[Node]:
    """The nodes of `recorded`, a record of the model on `inputs`, whose sizes no batch changes.

    None behind a tensor whose sizes it does change: a stride rounds, and may hide that at one batch. All of them where
    the model takes no other batch, none where it does something else then.
    """
    other = next(_other_batches(model, inputs), None)
    if other is None:
        return frozenset(recorded.nodes)
    if [node.function for node in other.nodes] != [node.function for node in recorded.nodes]:
        return frozenset()
    found: set[Node] = set()
    for node, twin in zip(recorded.nodes, other.nodes, strict=True):
        if node.shape[1:] == twin.shape[1:] and len(node.shape) == len(twin.shape) and found.issuperset(node.operands):
            found.add(node)
    return frozenset(found)


def _other_batches(model: nn.Module, inputs: Inputs) -> Iterator[Record]:
    """Records of more images: one or two, or twice or three times as many, as some models take multiples alone."""
    images = next((shape[0] for shape in inputs.shapes() if len(shape) > 1), 0)
    for more in dict.fromkeys((1, 2, images, 2 * images)):
        try:
            yield from (record(model, larger) for larger in inputs.resized(batch=more, size=()).values())
        except ModelError:
            continue


def run_key(now: Record) -> list[Any]:
    """What a run did, in a form that is equal for runs that did the same."""
    order = {node: i for i, node in enumerate(now.nodes)}

    def told(tree: Any) -> Any:
        if isinstance(tree, Node):
            return order.get(tree, tree.name)
        if isinstance(tree, tuple | list):
            return [told(item) for item in tree]
        if isinstance(tree, Mapping):
            return {key: told(item) for key, item in tree.items()}
        if isinstance(tree, slice):
            return [told(tree.start), told(tree.stop), told(tree.step)]
        known = isinstance(tree, bool | int | float | str | None)
        return tree if known else [type(tree).__name__, *map(order.get, nodes_in(tree))]

    steps = [(node.name, node.call and node.call.path, told(node.args), told(node.kwargs)) for node in now.nodes]
    calls = [(call.path, told(call.args), told(call.kwargs), told(call.result)) for call in now.calls]
    return [steps, calls, told(now.outputs)]
