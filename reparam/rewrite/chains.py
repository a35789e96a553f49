"""Parts: a fold as it is edited, whole or as one part for each stretch between its steps.

A part is a chain if its operations can be edited one by one: each reads the one before, and nobody needs the tensors
between them. One operation of a chain, its carrier, becomes the convolution; the others then do nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from reparam.capture.graph import Call, Node
from reparam.capture.norms import affine_part
from reparam.capture.ops import KERNELS
from reparam.errors import Refusal
from reparam.plan.fold import Fold, ViewedFold
from reparam.rewrite.context import Context
from reparam.rewrite.refused import SIZE_READ, Refused
from reparam.rules.interpret import anchor_value

READ_ELSEWHERE = "a tensor behind the rearranged pixels is also read outside the fold"


@dataclass(frozen=True, eq=False)
class Part:
    """A fold as it is edited.

    planned: the fold of the plan. fold: the same without the affine part of a norm, or one stretch of it.
    chain: whether its operations can be edited one by one.
    carrier: the operation of the chain that becomes the convolution; None where the fold computes nothing.
    """

    fold: Fold
    planned: Fold
    chain: bool = False
    carrier: Node | None = None

    def runs(self) -> list[tuple[Call, tuple[Node, ...]]]:
        """The operations of a chain, without steps, grouped where neighbours stand in the code of one call."""
        runs: list[tuple[Call, tuple[Node, ...]]] = []
        before: Node | None = None
        for node in self.fold.nodes:
            assert node.call is not None
            if node not in self.fold.steps:
                if before is not None and before.call is node.call:
                    runs[-1] = (node.call, (*runs[-1][1], node))
                else:
                    runs.append((node.call, (node,)))
            before = None if node in self.fold.steps else node
        return runs

    def keeps_read_sizes(self) -> bool:
        """Whether code that reads the size of a tensor of the chain still finds it.

        Each of these tensors becomes the base, or behind the carrier the sink.
        """
        nodes = self.fold.nodes
        index = len(nodes) if self.carrier is None else nodes.index(self.carrier)
        ends = ((node, self.fold.base if i < index else self.fold.sink) for i, node in enumerate(nodes[:-1]))
        return all(_size_is_kept(self.fold, node, end) for node, end in ends)


def parts_of(folds: Iterable[Fold], context: Context, refused: Refused) -> list[Part]:
    """The parts of the folds of a plan. Folds that cannot be divided as they have to be are refused."""
    planned = {_behind_norm(fold): fold for fold in folds}
    division = _Division(planned, context.removed)
    parts: list[Part] = []
    for fold, planned_fold in planned.items():
        try:
            for node in planned_fold.reshapes:
                context.require_proven_sizes(node, planned_fold.extents)
            parts += (division.part(divided, planned_fold) for divided in division.divided(fold))
        except Refusal as refusal:
            refused.refuse_fold(refusal, planned_fold.nodes, planned_fold.steps)
    return parts


def _behind_norm(fold: Fold) -> Fold:
    """The fold without the affine part of a norm, which is no operation of its own: it starts behind that."""
    first, *rest = fold.nodes
    return replace(fold, base=first, nodes=tuple(rest)) if first.function is affine_part else fold


class _Division:
    """How folds are divided into parts; `folds` are all of a plan, `removed` the operations that it takes away."""

    def __init__(self, folds: Iterable[Fold], removed: Collection[Node]) -> None:
        self.removed = removed
        self.folds_of: Mapping[Node, list[Fold]] = defaultdict(list)
        for fold in folds:
            for node in fold.nodes:
                self.folds_of[node].append(fold)

    def divided(self, fold: Fold) -> list[Fold]:
        """The fold, or one for each stretch between its steps. Raises Refusal where it has to be divided and cannot."""
        return self._stretches(fold) if isinstance(fold, ViewedFold) and not self._is_chain(fold) else [fold]

    def part(self, fold: Fold, planned: Fold) -> Part:
        if fold.shared or not self._is_chain(fold):
            return Part(fold, planned)
        if fold.value.identity:
            return Part(fold, planned, chain=True)
        carrier = _carrier(fold)
        return Part(fold, planned, carrier is not None, carrier)

    def _is_chain(self, fold: Fold) -> bool:
        """Whether each operation reads the one before, and only folds of the same base read the tensors between.

        None of these tensors may be the result of another fold.
        """
        before = fold.base
        for node in fold.nodes:
            if node.operands != (before,) or node.call is None:
                return False
            if before is not fold.base and not self._is_replaceable(before, fold):
                return False
            before = node
        return True

    def _stretches(self, fold: ViewedFold) -> list[Fold]:
        """A fold for each stretch between the steps: one has the value, the others compute nothing.

        Raises Refusal where a tensor between them has to stay as it was. Code may not read the size of a tensor inside
        a stretch, because a part does not know it.
        """
        stretches = fold.stretches()
        position = next(i for i, stretch in enumerate(stretches) if fold.place in stretch.nodes)
        ends = {*fold.steps, *(stretch.nodes[-1] for stretch in stretches)}
        last_replaced = fold.nodes.index(stretches[position].nodes[-1])
        for i, node in enumerate(fold.nodes[:-1]):
            behind = i >= last_replaced
            if node not in ends:
                if node.size_read:
                    raise Refusal(SIZE_READ)
            elif not self._is_replaceable(node, fold) or (behind and self._is_shared(node, fold)):
                raise Refusal(READ_ELSEWHERE)
            elif not _size_is_kept(fold, node, fold.sink if behind else fold.base):
                raise Refusal(SIZE_READ)
        return [
            Fold(base, nodes[-1], fold.value if i == position else anchor_value(base), nodes)
            for i, (base, nodes) in enumerate(stretches)
        ]

    def _is_replaceable(self, node: Node, fold: Fold) -> bool:
        """Whether another tensor may take the place of one inside a fold: only folds of the same base read it."""
        unneeded = node in self.removed or node in fold.steps
        is_sink = any(other.sink is node for other in self.folds_of[node])
        return unneeded and not is_sink and all(self._only_folds_of(fold.base, reader) for reader in node.readers)

    def _only_folds_of(self, base: Node, node: Node) -> bool:
        folds = self.folds_of[node]
        return bool(folds) and all(fold.base is base for fold in folds)

    def _is_shared(self, node: Node, fold: Fold) -> bool:
        """Whether other folds read the tensor as well."""
        return any(other is not fold for reader in node.readers for other in self.folds_of[reader])


def _carrier(fold: Fold) -> Node | None:
    """The operation of a chain that becomes the convolution: the first with a kernel, or its place among steps.

    It has to stand behind the operations that other folds share with this one; None where there is none.
    """
    shared = max((i for i, node in enumerate(fold.nodes[:-1]) if len(set(node.readers)) > 1), default=-1)
    own = [node for node in fold.nodes[shared + 1 :] if node not in fold.steps]
    if fold.steps:
        return fold.place if fold.place in own else None
    return next((node for node in own if node.op in KERNELS), own[0] if own else None)


def _size_is_kept(fold: Fold, node: Node, end: Node) -> bool:
    """Whether code may be given the size of an end of the fold in the place of a node's."""
    return not node.size_read or (fold.sizes.get(node) is not None and fold.sizes[node] == fold.sizes[end])
