"""What stands where in the code of a forward while it is edited, looked up and not searched for.

A single forward may hold a thousand pieces: to walk through all of it for each of them would take quadratic time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from torch import fx

from reparam.capture.graph import Node, tuple_item
from reparam.rewrite.trace import Trace


class Places:
    """The steps of a trace by what they stand for, what stands at each, and the names that its module has left."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._order: dict[fx.Node, int] = {}
        self._standing: dict[Node, list[fx.Node]] = defaultdict(list)
        self._seen: dict[Node, list[fx.Node]] = defaultdict(list)
        self._held: dict[fx.Node, list[Node]] = defaultdict(list)
        for position, step in enumerate(trace.graph.nodes):
            self._order[step] = position
            node = _first_of(trace, step)
            if node is not None:
                self._standing[node].append(step)
        for step, seen in trace.tree.items():
            if isinstance(seen, Node):
                self._seen[seen].append(step)
        for node, place in trace.at.items():
            self._held[place].append(node)
        module = trace.module
        self._taken = {*module._modules, *vars(module), *module._parameters, *module._buffers, *dir(type(module))}
        self._count: dict[str, int] = defaultdict(int)

    def standing(self, nodes: Collection[Node]) -> list[fx.Node]:
        """The steps that stand for any of the nodes (see `stands_for`), in their order."""
        steps = (step for node in nodes for step in self._standing.get(node, ()) if stands_for(self.trace, step, nodes))
        return sorted(steps, key=self._order.__getitem__)

    def read(self, base: Node, nodes: Collection[Node]) -> fx.Node:
        """A tensor as the nodes read it: behind what has changed nothing in this run (`contiguous`)."""
        inputs = {each for step in self.standing(nodes) for each in step.all_input_nodes}
        read = [step for step in self._seen.get(base, ()) if self.trace.tree.get(step) is base and step in inputs]
        return read[0] if len(read) == 1 else self.trace.at[base]

    def shows(self, step: fx.Node, node: Node) -> None:
        """From now on the step computes this node."""
        self.trace.tree[step] = node
        self._seen[node].append(step)

    def moved(self, before: fx.Node, after: fx.Node) -> None:
        """Whatever stood at one step stands at the other, and all that read the one read the other."""
        before.replace_all_uses_with(after)
        nodes = self._held.pop(before, [])
        self.trace.at.update(dict.fromkeys(nodes, after))
        self._held[after] += nodes

    def free_name(self, name: str) -> str:
        """A name for a new module, taken from now on."""
        free = name
        while free in self._taken:
            self._count[name] += 1
            free = f"{name}_{self._count[name]}"
        self._taken.add(free)
        return free


def stands_for(trace: Trace, step: fx.Node, nodes: Collection[Node]) -> bool:
    """Whether a step of the trace is one of these operations, an inner call of nothing but these, or hands them on."""
    own = _inside(trace, step)
    if own:
        return all(node in nodes for node in own)
    seen = _first_of(trace, step)
    return seen is not None and seen in nodes and trace.at.get(seen) is not None and step.op != "placeholder"


def _inside(trace: Trace, step: fx.Node) -> list[Node]:
    return [node for node in trace.inner[step].nodes() if not node.constant] if step in trace.inner else []


def _first_of(trace: Trace, step: fx.Node) -> Node | None:
    """The operation that a step is or hands on; of an inner call, one of those in it."""
    own = _inside(trace, step)
    if own:
        return own[0]
    seen = trace.tree.get(step)
    if isinstance(seen, list):  # the parts of a tuple
        seen = next((part.inputs[0] for part in seen if isinstance(part, Node) and part.function is tuple_item), None)
    return seen if isinstance(seen, Node) else None


def prefixes(paths: Collection[str]) -> set[str]:
    """The paths and those of all modules around them."""
    return {path[:end] for path in paths for end in _ends(path)}


def _ends(path: str) -> list[int]:
    return [*(i for i, letter in enumerate(path) if letter == "."), len(path)]


def named(path: str, used: Collection[str], around: Collection[str]) -> bool:
    """Whether something that is used, `around` being its prefixes, is that module, in it or around it."""
    return path in around or not prefixes([path]).isdisjoint(used)
