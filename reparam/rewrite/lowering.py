"""Lowering: the smallest edits that carry a plan.

    parts      chains.py    each fold as it is edited: whole, or one part for each stretch between its steps
    norms      unscale.py   a norm whose scale and shift a fold takes loses its weight and bias
    fusions    fusions.py   the pieces of code that one wide convolution replaces
    swaps      swaps.py     a module that does nothing but operations of one fold is exchanged; else a piece of code
    rewrites   forwards.py  the smallest module around the pieces gets a new forward, from a code of it
    proofs     paths.py     code that is not rewritten leads through the fold for every input

All edits are prepared before the first is made (see `apply`). What cannot be edited is collected in `refused.py`, and
planned anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable

from torch import nn

from reparam.capture.graph import Node, Record
from reparam.errors import Refusal
from reparam.plan.plan import Plan
from reparam.rewrite.call_graph import CallGraph
from reparam.rewrite.chains import Part, parts_of
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Edits, Swap
from reparam.rewrite.forwards import rewrites_of
from reparam.rewrite.fusions import fused_pieces
from reparam.rewrite.paths import require_proven_path
from reparam.rewrite.proofs import Proofs
from reparam.rewrite.refused import Refused
from reparam.rewrite.swaps import SwapStage
from reparam.rewrite.unscale import unscale


def lower(
    record: Record,
    plan: Plan,
    proofs: Proofs,
    pinned: Collection[nn.Module] = (),
    barriers: Collection[Node] = (),
) -> Edits:
    """The edits that carry a plan, and the constraints that the next plan has to respect if some cannot be made.

    Requires a plan of this record and the proofs of this record. Leaves model, record and plan as they are. Raises
    nothing: what cannot be edited is among the constraints, with its reason.

    pinned: the modules that keep their place and identity, besides those with hooks.
    barriers: the tensors through which the plan leads no fold already.
    """
    removed = plan.removed - {step for fold in plan.folds for step in fold.steps}
    gone = removed - {fold.sink for fold in plan.folds}
    context = Context(record, proofs, {*pinned, *record.hooked}, removed, gone)
    refused = Refused(barriers)
    parts = parts_of(plan.folds, context, refused)
    unscaled, pieces = unscale(plan.folds, context, refused)
    fused = fused_pieces(parts, context, refused)
    pieces += fused

    groups: dict[Hashable, list[Part]] = defaultdict(list)
    separate = [part for part in parts if not part.fold.shared]
    for part in separate:
        groups[context.code_key(part.planned.nodes), context.code_key(part.fold.nodes)].append(part)
    stage = SwapStage(separate, context)
    swaps: list[Swap] = []
    for group in groups.values():
        try:
            group_swaps, group_pieces = stage.edit(group)
            swaps += group_swaps
            pieces += group_pieces
        except Refusal as refusal:
            for part in group:
                refused.refuse_fold(refusal, part.fold.nodes, part.planned.steps)

    rewrites = rewrites_of(pieces, swaps, context, refused)
    guards: dict[nn.Module, CallGraph] = {}
    for group in groups.values():
        try:
            proven = require_proven_path(group[0].planned, rewrites, context)
            guards.update((guard.module, guard) for guard in proven)
        except Refusal as refusal:
            for part in group:
                refused.refuse_fold(refusal, part.planned.nodes, part.planned.steps)
    for piece in fused:
        try:
            guards.update((guard.module, guard) for guard in require_proven_path(piece.fold, rewrites, context))
        except Refusal:
            refused.refuse_fusions(piece.fold.shared)
    return Edits(swaps, unscaled, rewrites, [*guards.values()], removed, context.pinned, refused.constraints)
