"""Plan and lower in turn, until a plan is found that can be written back.

A plan does not know what code allows. Lowering finds that out and answers with constraints, which the next plan
respects. Each round adds a constraint on a finite graph and none is ever removed, so the rounds end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import nn

from reparam.algebra.lazy import cache_scope
from reparam.capture.graph import Node, Record
from reparam.plan.cost import Cost
from reparam.plan.fold import Fold, Fusion
from reparam.plan.horizontal import fused
from reparam.plan.plan import Constraints, Plan, plan
from reparam.rewrite.edits import Edits
from reparam.rewrite.lowering import lower
from reparam.rewrite.proofs import Proofs, undecided

NO_FUSION_PAYS = "no fusion of convolutions pays"
FUSED = "the plan with fused convolutions can be written back"
IN_THE_WAY = "the edit of a fusion is in the way of another fold"


@dataclass(frozen=True, eq=False)
class Settled:
    """A plan that can be written back, and its edits.

    choices: the folds and then the fusions, in the order in which they were chosen (see `only` of `settle`).
    rounds: the number of plans that were lowered; why: what ended the rounds.
    """

    plan: Plan
    edits: Edits
    choices: Sequence[Fold | Fusion]
    rounds: int
    why: str


def settle(
    record: Record,
    cost_model: Cost,
    pinned: Collection[nn.Module],
    fixed_size: Collection[Node] = (),
    only: int | None = None,
    constraints: Constraints | None = None,
) -> Settled:
    """The cheapest plan by `cost_model` that can be written back, and its edits.

    Requires a record of the model as it is. Leaves model and record as they are. Raises nothing: what cannot be folded
    is among the refusals of the plan.

    pinned: modules that keep their place and identity. fixed_size: nodes whose recorded sizes are the only ones.
    only: at most so many of the choices, the first ones, if given. constraints: what every plan has to respect.
    """
    known = undecided(record) | (constraints or Constraints())
    rounds = _Rounds(record, Proofs(record), cost_model, pinned, fixed_size, only, known)
    while not rounds.why:
        rounds.next()
    return rounds.settled()


@dataclass(eq=False)
class _Rounds:
    """First plans without fusions until one can be written back, the basis; then fusions on top of it."""

    record: Record
    proofs: Proofs
    cost_model: Cost
    pinned: Collection[nn.Module]
    fixed_size: Collection[Node]
    only: int | None
    constraints: Constraints
    basis: tuple[Plan, Edits] | None = None
    best: tuple[Plan, Edits] | None = None
    count: int = 0
    why: str = ""

    def next(self) -> None:
        """Lower one more plan, and learn from it."""
        with cache_scope():
            candidate = self._candidate()
            if candidate is None:
                self.why = NO_FUSION_PAYS
                return
            self.count += 1
            edits = lower(self.record, candidate, self.proofs, self.pinned, self.constraints.barriers)
        if self.basis is None:
            self.constraints |= edits.constraints
            if not edits.constraints:
                self.basis = self.best = candidate, edits
        elif not edits.constraints:
            self.best, self.why = (candidate, edits), FUSED
        elif edits.constraints.unfusable:
            self.constraints |= Constraints(unfusable=edits.constraints.unfusable)
        else:
            self.why = IN_THE_WAY

    def _candidate(self) -> Plan | None:
        """The next plan to try; None where none is left."""
        if self.basis is None:
            return plan(self.record, self.cost_model, self.constraints, fixed_size=self.fixed_size, only=self.only)
        basis, _ = self.basis
        fusions_left = None if self.only is None else max(0, self.only - len(basis.folds))
        return fused(self.record, basis, self.cost_model, self.constraints.unfusable, fusions_left)

    def settled(self) -> Settled:
        assert self.basis is not None
        assert self.best is not None
        best, edits = self.best
        choices: list[Fold | Fusion] = [*self.basis[0].folds]
        choices += dict.fromkeys(fusion for fold in best.folds for fusion in fold.shared)
        with_refusals = replace(best, refusals={**best.refusals, **self.constraints.refusals})
        return Settled(with_refusals, edits, choices, self.count, self.why)
