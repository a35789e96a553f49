"""Folds that are edited operation by operation: chains, and stretches between operations that go on being computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from reparam.capture.graph import Call, Node
from reparam.capture.norms import affine_part
from reparam.capture.ops import KERNELS
from reparam.errors import Refusal
from reparam.plan.fold import Fold, ViewedFold
from reparam.rules.interpret import anchor_value

MEASURED = "code asks for the size of what it reads, which would have another size or be gone"
ELSEWHERE = "what comes behind the pixels' rearrangement is also read elsewhere"


def behind_norm(fold: Fold) -> Fold:
    """The fold without the affine part of a normalisation, which is no step of its own: it starts from that step."""
    half, *rest = fold.nodes
    return replace(fold, base=half, nodes=tuple(rest)) if half.function is affine_part else fold


def is_chain(fold: Fold, inside: Mapping[Node, list[Fold]], removed: Collection[Node]) -> bool:
    """Whether each operation reads the one before, and whoever else reads that is folded from the same base as well.

    No tensor on the way is what another fold computes: its place is taken.
    """
    before = fold.base
    for node in fold.nodes:
        if node.operands != (before,) or node.call is None:
            return False
        if before is not fold.base and not _given_up(before, fold, inside, removed):
            return False
        before = node
    return True


def _given_up(node: Node, fold: Fold, inside: Mapping[Node, list[Fold]], removed: Collection[Node]) -> bool:
    """Whether nobody needs the tensor on the way of a fold any more: another may stand where it stood."""
    gone = node in removed or node in fold.steps
    taken = any(other.sink is node for other in inside[node])
    return gone and not taken and all(_only_from(fold.base, inside[reader]) for reader in node.readers)


def _only_from(base: Node, folds: Collection[Fold]) -> bool:
    return bool(folds) and all(fold.base is base for fold in folds)


def carriers(fold: Fold) -> list[Node | None]:
    """The one operation of a chain whose place the convolution takes (None: there is nothing to compute), if any can.

    It stands behind what other folds share with this one: the first that has a kernel, or its place among steps.
    """
    if fold.value.identity:
        return [None]
    shared = max((i for i, node in enumerate(fold.nodes[:-1]) if len(set(node.readers)) > 1), default=-1)
    own = [node for node in fold.nodes[shared + 1 :] if node not in fold.steps]
    kernels = [node for node in own if node.op in KERNELS]
    candidates = [node for node in own if node is fold.place] if fold.steps else [*kernels, *own]
    return [*candidates[:1]]


def keeps_sizes(fold: Fold, at: int) -> bool:
    """Whether tensors on the way whose size is asked for are as large as what stands there: base, from `at` on sink."""
    return all(_as_large(fold, node, fold.base if i < at else fold.sink) for i, node in enumerate(fold.nodes[:-1]))


def _as_large(fold: Fold, node: Node, end: Node) -> bool:
    """Whether code that asks for the size of a node may be told that of an end of the fold."""
    return not node.size_read or (fold.sizes.get(node) is not None and fold.sizes[node] == fold.sizes[end])


def parted(fold: ViewedFold, inside: Mapping[Node, list[Fold]], removed: Collection[Node]) -> list[Fold]:
    """A fold with steps as one for each stretch between them: one holds the value, the others compute nothing.

    `inside` are the folds that a node is part of. Raises Refusal where a tensor between the parts has to stay what it
    was. Parts do not know how large what is inside them is: code must not ask for it.
    """
    found = fold.stretches()
    at = next(i for i, (_, nodes) in enumerate(found) if fold.place in nodes)
    ends = [node for node in fold.nodes[:-1] if node in fold.steps or any(node is nodes[-1] for _, nodes in found)]
    carried = fold.nodes.index(found[at][1][-1])
    for node in fold.nodes[:-1]:
        behind = fold.nodes.index(node) >= carried
        if node not in ends:
            if node.size_read:
                raise Refusal(MEASURED)
        elif not _given_up(node, fold, inside, removed) or (behind and _shared(node, fold, inside)):
            raise Refusal(ELSEWHERE)
        elif not _as_large(fold, node, fold.sink if behind else fold.base):
            raise Refusal(MEASURED)
    values = [fold.value if i == at else anchor_value(start) for i, (start, _) in enumerate(found)]
    return [Fold(start, nodes[-1], value, nodes) for (start, nodes), value in zip(found, values, strict=True)]


def _shared(node: Node, fold: Fold, inside: Mapping[Node, list[Fold]]) -> bool:
    """Whether other folds read the tensor as well."""
    return any(other is not fold for reader in node.readers for other in inside[reader])


def runs(fold: Fold) -> list[tuple[Call, tuple[Node, ...]]]:
    """The chain without its steps, cut there and where it passes from the code of one call to that of another."""
    runs: list[tuple[Call, tuple[Node, ...]]] = []
    before: Node | None = None
    for node in fold.nodes:
        assert node.call is not None
        if node not in fold.steps:
            if before is not None and before.call is node.call:
                runs[-1] = (node.call, (*runs[-1][1], node))
            else:
                runs.append((node.call, (node,)))
        before = None if node in fold.steps else node
    return runs
