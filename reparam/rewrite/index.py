"""An index of the steps of a call's graph, kept up to date while that is edited.

A forward may hold a thousand pieces: searching all of it for each of them would take quadratic time.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Collection, Sequence

from torch import fx

from reparam.capture.graph import Node, tuple_item
from reparam.rewrite.call_graph import CallGraph


class StepIndex:
    """The steps that compute or hand on each node, in order, and the names that are free in the module."""

    def __init__(self, code: CallGraph) -> None:
        self.code = code
        self._order: dict[fx.Node, float] = {}  # whole numbers; between them, steps that are added
        self._by_operation: dict[Node, list[fx.Node]] = defaultdict(list)
        self._by_tensor: dict[Node, list[fx.Node]] = defaultdict(list)
        self._nodes_at: dict[fx.Node, list[Node]] = defaultdict(list)
        for position, step in enumerate(code.graph.nodes):
            self._order[step] = position
            node = _operation_of(code, step)
            if node is not None:
                self._by_operation[node].append(step)
        for step, value in code.tree.items():
            if isinstance(value, Node):
                self._by_tensor[value].append(step)
        for node, step in code.at.items():
            self._nodes_at[step].append(node)
        module = code.module
        self._used_names = {*module._modules, *vars(module), *module._parameters, *module._buffers, *dir(type(module))}
        self._count: dict[str, int] = defaultdict(int)

    def steps_of(self, nodes: Collection[Node]) -> list[fx.Node]:
        """The steps that compute the nodes and nothing else (see `computes_only`), in order."""
        steps = (step for n in nodes for step in self._by_operation.get(n, ()) if computes_only(self.code, step, nodes))
        return sorted(steps, key=self._order.__getitem__)

    def add_call(self, name: str, start: fx.Node, nodes: Collection[Node]) -> fx.Node:
        """Add a call of a module on `start` that stands for the nodes, and return it.

        It goes in front of the first step that computes one of them, but behind `start`: code may hand the base on
        between them.
        """
        first, graph = self.steps_of(nodes)[0], self.code.graph
        behind = self._order[start] > self._order[first]
        with graph.inserting_after(start) if behind else graph.inserting_before(first):
            call = graph.call_module(name, (start,))
        self._order[call] = math.floor(self._order[start]) + 0.5 if behind else self._order[first] - 0.5
        return call

    def add_items(self, result: fx.Node, widths: Sequence[int], dim: int) -> list[fx.Node]:
        """Add, behind a step, its split along a dimension; returns the parts."""
        graph = self.code.graph
        with graph.inserting_before(result.next):
            split = graph.call_method("split", (result, list(widths), dim))
            items = [graph.call_function(operator.getitem, (split, i)) for i in range(len(widths))]
        self._order.update(dict.fromkeys(items, self._order[result]))
        return items

    def read_as(self, base: Node, nodes: Collection[Node]) -> fx.Node:
        """The step from which the nodes read a tensor: perhaps one that handed it on as it was (`contiguous`)."""
        read = {operand for step in self.steps_of(nodes) for operand in step.all_input_nodes}
        steps = [step for step in self._by_tensor.get(base, ()) if self.code.tree.get(step) is base and step in read]
        return steps[0] if len(steps) == 1 else self.code.at[base]

    def set_node(self, step: fx.Node, node: Node) -> None:
        """From now on the step computes this node."""
        self.code.tree[step] = node
        self._by_tensor[node].append(step)

    def replace(self, before: fx.Node, after: fx.Node) -> None:
        """One step takes the place of another for everything that reads it."""
        before.replace_all_uses_with(after)
        nodes = self._nodes_at.pop(before, [])
        self.code.at.update(dict.fromkeys(nodes, after))
        self._nodes_at[after] += nodes

    def free_name(self, name: str) -> str:
        """A name for a new module, which is used from now on."""
        free = name
        while free in self._used_names:
            self._count[name] += 1
            free = f"{name}_{self._count[name]}"
        self._used_names.add(free)
        return free


def computes_only(code: CallGraph, step: fx.Node, nodes: Collection[Node]) -> bool:
    """Whether a step computes nothing but these operations, or hands on the result of one."""
    inner = _operations_inside(code, step)
    if inner:
        return all(node in nodes for node in inner)
    node = _operation_of(code, step)
    return node is not None and node in nodes and code.at.get(node) is not None and step.op != "placeholder"


def _operations_inside(code: CallGraph, step: fx.Node) -> list[Node]:
    """The operations of the call that a step makes."""
    return [node for node in code.inner[step].nodes() if not node.constant] if step in code.inner else []


def _operation_of(code: CallGraph, step: fx.Node) -> Node | None:
    """The operation that a step computes or hands on; the first one of a call."""
    inner = _operations_inside(code, step)
    if inner:
        return inner[0]
    value = code.tree.get(step)
    if isinstance(value, list):  # the items of a tuple
        value = next((i.inputs[0] for i in value if isinstance(i, Node) and i.function is tuple_item), None)
    return value if isinstance(value, Node) else None
