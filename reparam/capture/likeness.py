"""When two calls are alike: the same operations on the same tensors, in the same order, whatever the sizes.

The key of a call says all that its code did. Tensors are numbered in the order in which they appear in the call, so
that calls of the same code get the same key, at another size and in another run as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import nn

from reparam.capture.graph import Call, Node, Record, Spelling
from reparam.capture.ops import CASTS, LAYER_ARGUMENTS, LAYERS
from reparam.capture.symbolic import ITEM, SIZE, Probe, Shape, Symbolic, plain
from reparam.capture.tree import field_values


class Likeness:
    """The keys of calls, comparable for all records that were given to the same `Likeness`.

    plain: sizes are the numbers that they were, wherever they came from.
    """

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain
        self._numbers: dict[Hashable, int] = {}
        self._keys: dict[Call, tuple[int, tuple[Node, ...]]] = {}

    def key(self, call: Call) -> int:
        return self._described(call)[0]

    def of_modules(self, record: Record) -> dict[nn.Module, set[int]]:
        """The keys of all calls of each module."""
        keys: dict[nn.Module, set[int]] = {}
        for call in reversed(record.calls):  # inner calls first
            keys.setdefault(call.module, set()).add(self.key(call))
        return keys

    def _described(self, call: Call) -> tuple[int, tuple[Node, ...]]:
        if call not in self._keys:
            description = _Description(call, self)
            key = self._numbers.setdefault(description.content, len(self._numbers))
            self._keys[call] = key, tuple(description.foreign)
        return self._keys[call]

    def inner(self, call: Call) -> tuple[int, tuple[Node, ...]]:
        """The key of an inner call, and the tensors that it read without having been handed them."""
        return self._described(call)


def _in_order(node: Node) -> Spelling:
    """What a node was called with. What a layer reads stands in order, whether code has named it or not."""
    function, args, kwargs = node.spelled
    for name in LAYER_ARGUMENTS[len(args) :] if node.op in LAYERS else ():
        if name not in kwargs:
            break
        args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return function, args, kwargs


def _is_idle_cast(event: Node | Call) -> bool:
    """Whether it is a cast to the dtype and device that the tensor has, at every size: nothing happens."""
    if isinstance(event, Call) or not event.passthrough:
        return False
    return event.op in CASTS and "memory_format" not in event.kwargs  # a format may be right at some sizes alone


class _Description:
    def __init__(self, call: Call, likeness: Likeness) -> None:
        self.call, self.likeness = call, likeness
        self.numbers: dict[Node, int] = {}
        self.foreign: list[Node] = []
        content: list[Hashable] = [call.path, call.changes, call.lent, call.failed]
        content.append(self._tree((call.args, call.kwargs), given=True))
        content += (
            self._call(event) if isinstance(event, Call) else self._node(event)
            for event in call.events
            if not _is_idle_cast(event)
        )
        content.append(self._tree(call.result))
        self.content = tuple(content)

    def _node(self, node: Node) -> Hashable:
        described: Hashable = ("unknown", self._tree(node.inputs))
        if node.function is not None:
            _, args, kwargs = _in_order(node)
            described = (node.op, node.inplace, self._tree(args), self._tree(kwargs))
        if node.op == "contiguous":  # returns its input at some sizes, and a copy at others
            self.numbers.setdefault(node, self.numbers[node.inputs[0]] if node.inputs[0].tensor is None else -1)
        elif not node.passthrough:
            self.numbers.setdefault(node, len(self.numbers))
        return described

    def _call(self, call: Call) -> Hashable:
        key, foreign = self.likeness.inner(call)
        return ("call", key, self._tree((call.args, call.kwargs)), self._tree(foreign), self._tree(call.result))

    def _number(self, node: Node, given: bool) -> Hashable:
        if node.tensor is not None:
            return ("tensor", node.name)
        if node not in self.numbers:
            if not given and (node.call is None or not self._is_inside(node.call)):
                self.foreign.append(node)
            self.numbers[node] = len(self.numbers)
        return (self.numbers[node],)

    def _is_inside(self, call: Call) -> bool:
        return any(outer is self.call for outer in call.stack())

    def _tree(self, tree: Any, given: bool = False) -> Hashable:
        kind = type(tree)
        if kind is Node:
            return self._number(tree, given)
        if issubclass(kind, Symbolic):
            return self._symbolic(tree, given)
        if kind in (tuple, list, Shape):
            return ("list" if kind is list else "tuple", *(self._tree(item, given) for item in tree))
        if isinstance(tree, Mapping):
            return (kind.__name__, *((repr(key), self._tree(item, given)) for key, item in tree.items()))
        if kind is slice:
            return ("slice", *(self._tree(part, given) for part in (tree.start, tree.stop, tree.step)))
        return self._leaf(tree, given)

    def _leaf(self, tree: Any, given: bool) -> Hashable:
        kind = type(tree)
        if kind is Probe:
            return self._tree(tree.value)
        if kind is torch.Size:
            return ("tuple", *map(self._tree, tree))
        if kind in _PLAIN:
            return (kind.__name__, repr(tree))
        if isinstance(tree, (tuple, list)):
            return (kind.__name__, *(self._tree(item, given) for item in tree))
        if dataclasses.is_dataclass(kind):
            return (kind.__name__, self._tree(field_values(tree), given))
        return (kind.__name__, getattr(tree, "__qualname__", ""))

    def _symbolic(self, number: Symbolic, given: bool) -> Hashable:
        if self.likeness.plain:
            return self._tree(plain(number))
        return self._expression(number.expression, given)

    def _expression(self, expression: Any, given: bool) -> Hashable:
        if not isinstance(expression, tuple):
            return repr(expression)
        if expression[0] in (SIZE, ITEM):
            name, node, *dim = expression
            return (name, self._number(node, given), *dim)
        return (expression[0], *(self._expression(part, given) for part in expression[1:]))


_PLAIN = (
    bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format, type(...),
)  # fmt: skip
