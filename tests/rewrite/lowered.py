"""A model recorded, planned and lowered, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from reparam.capture.graph import Record
from reparam.capture.inputs import Inputs
from reparam.capture.witness import witnessed
from reparam.plan import cost
from reparam.plan.fold import Fold
from reparam.plan.horizontal import fused
from reparam.plan.plan import Plan, plan
from reparam.rewrite.apply import Emitted, emit
from reparam.rewrite.edits import Edits
from reparam.rewrite.lowering import lower
from reparam.rewrite.proofs import Proofs
from tests.helpers import trained


@dataclass(frozen=True)
class Lowered:
    """A model and what the stages made of it."""

    model: nn.Module
    record: Record
    plan: Plan
    edits: Edits

    def emit(self, look: Callable[[Fold], None] = lambda fold: None, **options: Any) -> Emitted:
        return emit(self.model, self.record, self.edits, self.plan.live, look, **{"exact": True, **options})


def lowered(model: nn.Module, x: Tensor, pinned: Collection[nn.Module] = ()) -> Lowered:
    """The model with drawn numbers, and the edits of its cheapest plan; none of them is made yet."""
    model = trained(model, x, dtype=x.dtype)
    found = witnessed(model, Inputs.of(x))
    basis = plan(found)
    best = fused(found, basis, cost.CPU, ()) or basis
    return Lowered(model, found, best, lower(found, best, Proofs(found), pinned))
