"""The proof that code leads through a fold for every input: its operations run one after another, with none between.

Code whose control flow depends on no number always does. All other code has to be proven, by its trace or by a rewrite.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from reparam.capture.graph import Call, calls_around, common_call, has_user_code
from reparam.errors import Refusal
from reparam.plan.fold import Fold
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Rewrite
from reparam.rewrite.proofs import contains
from reparam.rewrite.refused import OUTSIDE


def require_proven_path(fold: Fold, rewrites: Collection[Rewrite], context: Context) -> None:
    """Raise Refusal unless code leads through the fold for every input, or is written anew from a trace that does."""
    around, unproven = _unproven_code(fold, context)
    traces = (rewrite.trace for rewrite in rewrites)
    if unproven and not any(trace.call is around and unproven <= {*trace.opened} for trace in traces):
        context.proofs.require(around, unproven)


def needs_argument_check(fold: Fold, context: Context) -> bool:
    """Whether code leads through the fold only for containers of a certain length, which a new forward can check."""
    around, unproven = _unproven_code(fold, context)
    if not unproven or not contains(around) or context.proofs.holds(around, unproven):
        return False
    try:
        context.proofs.shaped(around, unproven | {around.module})
    except Refusal:
        return False
    return True


def _unproven_code(fold: Fold, context: Context) -> tuple[Call, frozenset[nn.Module]]:
    """The call around a fold, and the modules inside whose code leads through it and may take other ways."""
    around = common_call(fold.path)
    if around is None:
        raise Refusal(OUTSIDE)
    calls = {call for node in fold.path for call in calls_around(node, around) if has_user_code(call.module)}
    for passing in context.passing_calls({*fold.path} - {fold.sink}, around):
        calls.update(outer for outer in passing.stack(around) if has_user_code(outer.module))
    unproven = {outer for call in calls if context.proofs.looks(call) for outer in call.stack() if outer in calls}
    return around, frozenset(call.module for call in unproven)
