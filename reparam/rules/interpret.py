"""The walk: every recorded tensor as a value, instead of numbers.

A node is either an *anchor* (its operation has no rule, or is refused) or an `AffineConv`, or something that will
become one, of an earlier tensor. Which earlier tensor is a choice: of every tensor that all paths to the node pass
through, its dominators. So the walk keeps the tree of dominators, whose roots are the anchors, and answers for any
pair what the one is of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from reparam.algebra.affine import AffineConv, Anchor, Constant, Number
from reparam.algebra.kernels import float64_copy
from reparam.algebra.lazy import Lazy, Uncached
from reparam.algebra.views import View, viewed
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.errors import Refusal
from reparam.rules import RULES, Value

# How many dominators back a convolution may start. Composing more operations than this that are each worth keeping does
# not happen in networks; without a limit a purely linear network would take quadratic time.
REACH = 12

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Interpretation:
    """What every recorded node is.

    above: for every node that is not an anchor, the nearest tensor that all paths to it pass through.
    base: for every such node, the farthest dominator of which it is known to be one value.
    refusals: why a node is not a value of anything, or of nothing farther than its base.
    fixed: the nodes whose recorded sizes are the only ones.
    sized, cropped, first: what has been found on ways back from nodes (see `way_back`), of which most have a part in
        common.

    `opaque` nodes are values of nothing; `stops` are, but nothing behind them is a value of what is before them.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        opaque: Collection[Node],
        fixed_size: Collection[Node] = (),
        barriers: Collection[Node] = (),
    ) -> None:
        self.fixed_size = fixed_size
        self.barriers = barriers
        self.dominator: dict[Node, Node] = {}
        self.base: dict[Node, Node] = {}
        self.anchor: dict[Node, Node] = {}
        self.refusals: dict[Node, Refusal] = {}
        self.sized: dict[Node, Node | None] = {}
        self.cropped: dict[Node, Node | None] = {}
        self.first: dict[Node, Node | None] = {}
        self._depth: dict[Node, int] = {}
        self._values: dict[Node, dict[Node, Value]] = {}
        for node in nodes:
            if not node.constant and node not in opaque and self._ruled(node):
                self._place(node)

    def value(self, base: Node, node: Node) -> Value:
        """`node` as a value of `base`, one of its dominators; None where it is none."""
        known = self._values.setdefault(base, {})
        if node not in known:
            for inner in between(base, [node]):
                if inner not in known:
                    known[inner] = self._quietly(inner, known)
        return known[node]

    def _quietly(self, node: Node, known: Mapping[Node, Value]) -> Value:
        try:
            return self._step(node, known)
        except Refusal:
            return None

    def _step(self, node: Node, known: Mapping[Node, Value]) -> Value:
        """`step`; what joins tensors behind rearranged pixels is put behind the tensor that all of them come from."""
        views = [operand for operand in node.operands if isinstance(known.get(operand), View)]
        nearest = self._meet(node.operands) if len(node.operands) > 1 and views else None
        view = None if nearest is None else known.get(nearest)
        joined = self.value(nearest, node) if nearest is not None and isinstance(view, View) else None
        return apply_rule(node, known, self.fixed_size) if joined is None else view.then(joined)  # type: ignore[union-attr]

    def _ruled(self, node: Node) -> bool:
        """Whether there is a rule for it, and every operand is a feature map or waits to become one."""
        if node.function is None or not node.operands or node.op not in RULES:
            return False
        return all(operand in self.dominator or _is_map(operand) for operand in node.operands)

    def _place(self, node: Node) -> None:
        """Give the node its place below the nearest common dominator of its operands, if it is a value of that."""
        roots = {self._known(self.anchor, operand) for operand in node.operands}
        if len(roots) > 1:
            self._settles(node, node)
            self.refusals.setdefault(node, Refusal("its inputs start from different tensors"))
            return
        nearest = self._meet(node.operands)
        farthest = max((self._known(self.base, operand) for operand in node.operands), key=self._depth_of)
        for base in self._candidates(farthest, nearest):
            if self._settles(node, base):
                self.dominator[node], self.base[node], self.anchor[node] = nearest, base, roots.pop()
                self._depth[node] = self._depth_of(nearest) + 1
                return

    def _known(self, places: Mapping[Node, Node], operand: Node) -> Node:
        """The place of an operand for what reads it: itself, where nothing is known of it or folding stops at it."""
        return operand if operand in self.barriers else places.get(operand, operand)

    def _candidates(self, farthest: Node, nearest: Node) -> list[Node]:
        """The dominators from `farthest` (if it is one) to `nearest`, which are at most `REACH` and the farthest."""
        chain = [nearest]
        while self._depth_of(chain[-1]) > self._depth_of(farthest):
            chain.append(self.dominator[chain[-1]])
        return chain[::-1] if len(chain) <= REACH else [chain[-1], *chain[REACH - 1 :: -1]]

    def _settles(self, node: Node, base: Node) -> bool:
        """Whether the node is a value of `base`; the first refusal is kept."""
        known = self._values.setdefault(base, {})
        if base is not node:
            for operand in node.operands:
                if operand is not base:
                    self.value(base, operand)
        try:
            value = self._step(node, known)
        except Refusal as refusal:
            self.refusals.setdefault(node, refusal)
            return False
        if value is not None and base is not node:
            known[node] = value
        return value is not None

    def dominates(self, base: Node, node: Node) -> bool:
        """Whether every path to `node` passes through `base` (a node dominates itself)."""
        while self._depth_of(node) > self._depth_of(base):
            node = self.dominator[node]
        return node is base

    def _depth_of(self, node: Node) -> int:
        return self._depth.get(node, 0)

    def _meet(self, operands: tuple[Node, ...]) -> Node:
        """The nearest common dominator."""
        first, *others = operands
        for other in others:
            while first is not other:
                if self._depth_of(first) >= self._depth_of(other):
                    first = self.dominator[first]
                else:
                    other = self.dominator[other]
        return first


def apply_rule(node: Node, values: Mapping[Node, Value], fixed: Collection[Node] = ()) -> Value:
    """The value of a node from those of its operands; an operand that has none is an anchor (of one size if `fixed`).

    None where an operand is known to be no value; raises Refusal where the rule refuses.
    """
    if any(values.get(operand, node) is None for operand in node.operands):
        return None
    rule = RULES[node.op]
    view = next((values[operand] for operand in node.operands if isinstance(values.get(operand), View)), None)
    if view is None:
        value = viewed(rule(*_looked_up(node.args, values, fixed), **_looked_up(node.kwargs, values, fixed)))
    elif len(node.operands) > 1:
        raise Refusal("it joins tensors whose pixels were rearranged", "joining them before that would fold")
    else:
        seen = {node.operands[0]: view.as_anchor()}
        try:
            value = view.then(rule(*_looked_up(node.args, seen, fixed), **_looked_up(node.kwargs, seen, fixed)))
        except Refusal:
            view.require_readable()  # else that is the reason
            raise
    if node.inplace and isinstance(node.args[0], Node) and node.args[0] not in values:
        raise Refusal("it overwrites its input, which others may read", "the same operation out of place would fold")
    sources = {operand.dtype for operand in node.operands if operand.dtype is not None}
    if node.dtype is not None and sources and sources != {node.dtype}:
        raise Refusal(f"it changes the dtype to {node.dtype}", "one dtype throughout (no autocast, no cast) would fold")
    return value


def way_back(node: Node, ends: Callable[[Node], bool], known: dict[Node, Node | None]) -> Node | None:
    """The first one that `ends` the way back from a node through operands of its shape; None where there is none.

    `known` are those of other nodes: else each of a thousand residual blocks would go back to the first.
    """
    way: list[Node] = []
    here: Node | None = node
    while here is not None and here not in known and not ends(here):
        way.append(here)
        here = next((operand for operand in here.operands if operand.shape == here.shape), None)
    end = None if here is None else known.get(here, here)
    known.update(dict.fromkeys(way, end))
    return end


def anchor_value(node: Node, fixed: Collection[Node] = ()) -> AffineConv:
    """An anchor as the value that its readers see: channels on dimension 1 where it has the rank of a feature map."""
    rank = len(node.shape)
    return AffineConv.of(Anchor(node, node.shape, node in fixed), rank - 2 if 3 <= rank <= 5 else 0)


def apply_rule_to_view(node: Node, before: View) -> object:
    """What the rule of a node makes of the rearranged tensor that it reads; None where it is refused."""
    seen = {node.operands[0]: before.as_anchor()}
    try:
        return RULES[node.op](*_looked_up(node.args, seen, ()), **_looked_up(node.kwargs, seen, ()))
    except Refusal:
        return None


def between(base: Node, sinks: Collection[Node]) -> list[Node]:
    """Every node on a path from `base` to one of `sinks`, these included, in an order in which they can run."""
    seen: dict[Node, None] = {}
    waiting: list[tuple[Node, bool]] = [(sink, False) for sink in reversed(list(sinks))]
    while waiting:
        node, done = waiting.pop()
        if done:
            seen[node] = None
        elif node is not base and node not in seen:
            waiting.append((node, True))
            waiting += [(operand, False) for operand in node.operands]
    return list(seen)


def _is_map(node: Node) -> bool:
    return node.dtype in _FLOATING and len(node.shape) >= 2


def _looked_up(argument: Any, values: Mapping[Node, Value], fixed: Collection[Node]) -> Any:
    if isinstance(argument, Node):
        if argument.constant:
            return Constant(argument.shape, _number(argument))
        if argument in values:
            return values[argument]
        return anchor_value(argument, fixed) if _is_map(argument) else None
    if isinstance(argument, (tuple, list)):
        return type(argument)(_looked_up(item, values, fixed) for item in argument)
    if isinstance(argument, dict):
        return {key: _looked_up(item, values, fixed) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_looked_up(part, values, fixed) for part in (argument.start, argument.stop, argument.step)))
    return argument


def _number(constant: Node) -> Number:
    """What a constant is, in float64; of a parameter or buffer that is a copy, which laws may write into."""
    held = constant.tensor
    if held is None or not held.is_floating_point():
        return Lazy(lambda: evaluate(constant, {}))
    return Uncached(lambda: float64_copy(held))
