"""Plan and lower in turn, until a plan is found that can be written back.

A plan does not know what code allows. Lowering finds that out and answers with constraints; the next plan respects
them. Each round adds at least one constraint on a finite graph and none is ever lifted, so the rounds end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from reparam.algebra.lazy import cache_scope
from reparam.capture.graph import Node, Record
from reparam.plan.cost import Cost
from reparam.plan.fold import Fold, Fusion
from reparam.plan.horizontal import fused
from reparam.plan.plan import Constraints, Plan, plan
from reparam.rewrite.edits import Edits
from reparam.rewrite.lowering import lower
from reparam.rewrite.proofs import Proofs

NO_FUSION_PAYS = "no fusion of convolutions pays"
FUSED = "the plan with fused convolutions can be written back"
IN_THE_WAY = "the edit of a fusion is in the way of another fold"


@dataclass(frozen=True, eq=False)
class Settled:
    """A plan that can be written back, and its edits.

    choices: what was chosen one by one, so that the first so many can be chosen again (see `only`).
    rounds: how many plans were lowered; why: what ended the rounds.
    """

    plan: Plan
    edits: Edits
    choices: Sequence[Fold | Fusion]
    rounds: int
    why: str


def settle(
    record: Record, judge: Cost, pinned: Collection[nn.Module], fixed: Collection[Node] = (), only: int | None = None
) -> Settled:
    """The cheapest plan by `judge` that can be written back; fusions come on top of a plan that already can.

    Requires a record of an unchanged model. Leaves both as they are. Raises nothing: what cannot be folded is among the
    refusals of the plan.

    pinned: modules that keep their place and identity. fixed: nodes whose recorded sizes are the only ones.
    only: so many of the folds, in order, and then of the fusions, if given.
    """
    rounds = _Rounds(record, Proofs(record), judge, pinned, fixed, only)
    while not rounds.why:
        rounds.next()
    return rounds.settled()


@dataclass(eq=False)
class _Rounds:
    record: Record
    proofs: Proofs
    judge: Cost
    pinned: Collection[nn.Module]
    fixed: Collection[Node]
    only: int | None
    constraints: Constraints = field(default_factory=Constraints)
    basis: tuple[Plan, Edits] | None = None  # what can be written back without fusions
    best: tuple[Plan, Edits] | None = None
    count: int = 0
    why: str = ""

    def next(self) -> None:
        """Lower one more plan, and learn from it."""
        with cache_scope():
            planned = self._planned()
            if planned is None:
                self.why = NO_FUSION_PAYS
                return
            self.count += 1
            edits = lower(self.record, planned, self.proofs, self.pinned, self.constraints.barriers)
        if self.basis is None:
            self.constraints |= edits.constraints
            if not edits.constraints:
                self.basis = self.best = planned, edits
        elif not edits.constraints:
            self.best, self.why = (planned, edits), FUSED
        elif edits.constraints.unfusable:
            self.constraints |= Constraints(unfusable=edits.constraints.unfusable)
        else:
            self.why = IN_THE_WAY

    def _planned(self) -> Plan | None:
        """The next plan to try; None where there is nothing left to try."""
        if self.basis is None:
            return plan(self.record, self.judge, self.constraints, fixed_size=self.fixed, only=self.only)
        folds = self.basis[0].folds
        left = None if self.only is None else max(0, self.only - len(folds))
        return fused(self.record, self.basis[0], self.judge, self.constraints.unfusable, left)

    def settled(self) -> Settled:
        assert self.basis is not None
        assert self.best is not None
        planned, edits = self.best
        choices: list[Fold | Fusion] = [*self.basis[0].folds]
        choices += dict.fromkeys(fusion for fold in planned.folds for fusion in fold.shared)
        told = replace(planned, refusals={**planned.refusals, **self.constraints.refusals})
        return Settled(told, edits, choices, self.count, self.why)
