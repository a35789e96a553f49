"""What a conversion hands to its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from reparam.capture.graph import Node, Record
from reparam.compare.border import Border
from reparam.compare.verification import Verification
from reparam.plan.cost import Cost
from reparam.plan.fold import Fold
from reparam.plan.liveness import Dead
from reparam.plan.plan import Plan
from reparam.report.quantisation import Weights
from reparam.rewrite.settle import Settled


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was recorded, planned, done and checked.

    original, folded: the model before and after; inputs: the shapes of the example inputs.
    cost: the cost model that the plan was chosen by.
    names: the module that holds each fold now; a fold of which nothing is left has none.
    groups: how many groups the layer of each fold has.
    weights: the ranges of the kernels of each fold; errors: its float64 error, where it was checked.
    borders: the folds refused at a border, by the node that was refused; border_errors: what each would be wrong by,
        where that was measured.
    dead: the dead weight of the original, and what has become of it.
    verification: of the whole model; None where it was not compared.
    """

    record: Record
    settled: Settled
    original: nn.Module
    folded: nn.Module
    inputs: str
    cost: Cost
    names: Mapping[Fold, str]
    groups: Mapping[Fold, int]
    weights: Mapping[Fold, Weights | None]
    errors: Mapping[Fold, float]
    borders: Mapping[Node, Border]
    border_errors: Mapping[Node, float]
    dead: Mapping[Dead, str]
    verification: Verification | None = None

    def emitted(self, fold: Fold) -> Fold:
        """The fold with the groups that its layer has: a shuffle may leave more than the laws know of."""
        groups = self.groups.get(fold, fold.value.groups)
        if fold.shared or groups == fold.value.groups or not fold.value.axes:
            return fold
        return replace(fold, value=replace(fold.value, groups=groups))

    @property
    def plan(self) -> Plan:
        return self.settled.plan
