"""The walk: one pass over the recorded nodes that finds out what each of them is.

The rule of a node's operation is applied to the values of its operands. What it gives is a value of an earlier tensor:
an `AffineConv`, or what may still become one (`PendingBorder`, `Stack`, `View`). A node without a rule, or refused by
its rule, is an *anchor*: values start from it.

A node can be a value of any tensor that all paths to it pass through: of its *dominators*. Which of them to start a
convolution from is the plan's choice. So the walk keeps the tree of dominators, whose roots are the anchors, and
`Interpretation.value(base, node)` answers for any pair what the node is of the base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from reparam.algebra.affine import AffineConv, Anchor, Constant, Number
from reparam.algebra.kernels import float64_copy
from reparam.algebra.lazy import Lazy, Uncached
from reparam.algebra.views import View, as_views
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.errors import Refusal
from reparam.rules import RULES, Value

# How many dominators back a convolution may start. Networks do not compose more operations than this of which each is
# worth keeping; without a limit a purely linear network would take quadratic time.
REACH = 12

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Interpretation:
    """What every recorded node is.

    dominator: of every node that is not an anchor, the nearest tensor that all paths to it pass through.
    anchor: of every such node, the anchor that it starts from.
    base: of every such node, the farthest dominator (at most `REACH` back, or the farthest that its operands reach) of
        which it is a value.
    refusals: why a node is an anchor although it has a rule, or why its base is not farther away.
    fixed_size: the nodes whose recorded sizes are the only ones.
    barriers: nodes that are values themselves, but that no value passes: their readers start from them.

    Of the arguments, `opaque` are nodes that are values of nothing.
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
        self._depth: dict[Node, int] = {}  # in the tree of dominators
        self._values: dict[Node, dict[Node, Value]] = {}  # by base and node
        self._origins: dict[Callable[[Interpretation, Node], bool], dict[Node, Node | None]] = {}
        for node in nodes:
            if not node.constant and node not in opaque and self._has_rule(node):
                self._place_in_tree(node)

    def value(self, base: Node, node: Node) -> Value:
        """`node` as a value of `base`, one of its dominators; None where it is none."""
        values = self._values.setdefault(base, {})
        if node not in values:
            for inner in between(base, [node]):
                if inner not in values:
                    values[inner] = self._value_or_none(inner, values)
        return values[node]

    def dominates(self, base: Node, node: Node) -> bool:
        """Whether every path to `node` passes through `base` (a node dominates itself)."""
        while self._depth_of(node) > self._depth_of(base):
            node = self.dominator[node]
        return node is base

    def origin(self, node: Node, ends: Callable[[Interpretation, Node], bool]) -> Node | None:
        """The first node for which `ends` holds, going back from `node` through operands of its shape.

        The results are cached by `ends`: otherwise each of a thousand residual blocks would go back to the first.
        """
        origins = self._origins.setdefault(ends, {})
        path: list[Node] = []
        here: Node | None = node
        while here is not None and here not in origins and not ends(self, here):
            path.append(here)
            here = next((operand for operand in here.operands if operand.shape == here.shape), None)
        end = None if here is None else origins.get(here, here)
        origins.update(dict.fromkeys(path, end))
        return end

    def _value_or_none(self, node: Node, values: Mapping[Node, Value]) -> Value:
        try:
            return self._apply(node, values)
        except Refusal:
            return None

    def _apply(self, node: Node, values: Mapping[Node, Value]) -> Value:
        """`apply_rule`; tensors whose pixels were rearranged are joined where all of them start from one such tensor.

        The join is then a value of that tensor, and stands behind its `View`.
        """
        views = [operand for operand in node.operands if isinstance(values.get(operand), View)]
        nearest = self._common_dominator(node.operands) if len(node.operands) > 1 and views else None
        view = None if nearest is None else values.get(nearest)
        joined = self.value(nearest, node) if nearest is not None and isinstance(view, View) else None
        return apply_rule(node, values, self.fixed_size) if joined is None else view.then(joined)  # type: ignore[union-attr]

    def _has_rule(self, node: Node) -> bool:
        """Whether there is a rule for it, and every operand is a feature map or may become one."""
        if node.function is None or not node.operands or node.op not in RULES:
            return False
        return all(operand in self.dominator or _is_feature_map(operand) for operand in node.operands)

    def _place_in_tree(self, node: Node) -> None:
        """Put the node below the nearest common dominator of its operands, if it is a value of that."""
        anchors = {self._start(self.anchor, operand) for operand in node.operands}
        if len(anchors) > 1:
            self._is_value_of(node, node)
            self.refusals.setdefault(node, Refusal("its inputs start from different tensors"))
            return
        nearest = self._common_dominator(node.operands)
        farthest = max((self._start(self.base, operand) for operand in node.operands), key=self._depth_of)
        for base in self._candidate_bases(farthest, nearest):
            if self._is_value_of(node, base):
                self.dominator[node], self.base[node], self.anchor[node] = nearest, base, anchors.pop()
                self._depth[node] = self._depth_of(nearest) + 1
                return

    def _start(self, starts: Mapping[Node, Node], operand: Node) -> Node:
        """Where a reader of `operand` starts: at the operand itself, if it is an anchor or a barrier."""
        return operand if operand in self.barriers else starts.get(operand, operand)

    def _candidate_bases(self, farthest: Node, nearest: Node) -> list[Node]:
        """The dominators from `farthest` to `nearest`: the `REACH` nearest of them, and the farthest."""
        chain = [nearest]
        while self._depth_of(chain[-1]) > self._depth_of(farthest):
            chain.append(self.dominator[chain[-1]])
        return chain[::-1] if len(chain) <= REACH else [chain[-1], *chain[REACH - 1 :: -1]]

    def _is_value_of(self, node: Node, base: Node) -> bool:
        """Whether the node is a value of `base`; its first refusal is kept."""
        values = self._values.setdefault(base, {})
        if base is not node:
            for operand in node.operands:
                if operand is not base:
                    self.value(base, operand)
        try:
            value = self._apply(node, values)
        except Refusal as refusal:
            self.refusals.setdefault(node, refusal)
            return False
        if value is not None and base is not node:
            values[node] = value
        return value is not None

    def _depth_of(self, node: Node) -> int:
        return self._depth.get(node, 0)

    def _common_dominator(self, operands: tuple[Node, ...]) -> Node:
        """The nearest one."""
        first, *others = operands
        for other in others:
            while first is not other:
                if self._depth_of(first) >= self._depth_of(other):
                    first = self.dominator[first]
                else:
                    other = self.dominator[other]
        return first


def apply_rule(node: Node, values: Mapping[Node, Value], fixed_size: Collection[Node] = ()) -> Value:
    """The value of a node from those of its operands; an operand without a value is an anchor.

    None where an operand is known to be no value. Raises Refusal where the rule refuses.
    """
    if any(values.get(operand, node) is None for operand in node.operands):
        return None
    rule = RULES[node.op]
    view = next((values[operand] for operand in node.operands if isinstance(values.get(operand), View)), None)
    if view is None:
        value = as_views(
            rule(*_to_values(node.args, values, fixed_size), **_to_values(node.kwargs, values, fixed_size))
        )
    elif len(node.operands) > 1:
        raise Refusal("it joins tensors whose pixels were rearranged", "joining them before that would fold")
    else:
        start = {node.operands[0]: view.as_anchor()}
        try:
            value = view.then(
                rule(*_to_values(node.args, start, fixed_size), **_to_values(node.kwargs, start, fixed_size))
            )
        except Refusal:
            view.require_readable()  # if this raises, it is the better reason
            raise
    if node.inplace and isinstance(node.args[0], Node) and node.args[0] not in values:
        raise Refusal("it overwrites its input, which others may read", "the same operation out of place would fold")
    sources = {operand.dtype for operand in node.operands if operand.dtype is not None}
    if node.dtype is not None and sources and sources != {node.dtype}:
        raise Refusal(f"it changes the dtype to {node.dtype}", "one dtype throughout (no autocast, no cast) would fold")
    return value


def apply_rule_to_view(node: Node, view: View) -> object:
    """What the rule of a node makes of the rearranged tensor that it reads; None where it refuses."""
    start = {node.operands[0]: view.as_anchor()}
    try:
        return RULES[node.op](*_to_values(node.args, start, ()), **_to_values(node.kwargs, start, ()))
    except Refusal:
        return None


def anchor_value(node: Node, fixed_size: Collection[Node] = ()) -> AffineConv:
    """An anchor as its readers see it: with channels on dimension 1 if it has the rank of a feature map."""
    rank = len(node.shape)
    return AffineConv.of(Anchor(node, node.shape, node in fixed_size), rank - 2 if 3 <= rank <= 5 else 0)


def between(base: Node, sinks: Collection[Node]) -> list[Node]:
    """Every node on a path from `base` to one of `sinks`, these included, in an order in which they can run."""
    ordered: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(sink, False) for sink in reversed(list(sinks))]
    while stack:
        node, operands_done = stack.pop()
        if operands_done:
            ordered[node] = None
        elif node is not base and node not in ordered:
            stack.append((node, True))
            stack += [(operand, False) for operand in node.operands]
    return list(ordered)


def _is_feature_map(node: Node) -> bool:
    return node.dtype in _FLOATING and len(node.shape) >= 2


def _to_values(argument: Any, values: Mapping[Node, Value], fixed_size: Collection[Node]) -> Any:
    """An argument of a call, with a value in the place of every node."""
    if isinstance(argument, Node):
        if argument.constant:
            return Constant(argument.shape, _constant_number(argument))
        if argument in values:
            return values[argument]
        return anchor_value(argument, fixed_size) if _is_feature_map(argument) else None
    if isinstance(argument, (tuple, list)):
        return type(argument)(_to_values(item, values, fixed_size) for item in argument)
    if isinstance(argument, dict):
        return {key: _to_values(item, values, fixed_size) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_to_values(part, values, fixed_size) for part in (argument.start, argument.stop, argument.step)))
    return argument


def _constant_number(constant: Node) -> Number:
    """A constant in float64; a parameter or buffer is copied, so that laws may write into it."""
    tensor = constant.tensor
    if tensor is None or not tensor.is_floating_point():
        return Lazy(lambda: evaluate(constant, {}))
    return Uncached(lambda: float64_copy(tensor))
