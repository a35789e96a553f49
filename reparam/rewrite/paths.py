"""The proof that code leads through a fold in every run: its operations read one another, and nothing else reads them.

Code that did the same in all witnesses does, with the same flags. Other code has to lead through the modules of the
fold in the same way wherever it calls them: the modules can be exchanged then, whatever it does beside.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reparam.capture.graph import Call, Node, Record, calls_around, common_call, has_user_code
from reparam.errors import Refusal
from reparam.plan.fold import Fold
from reparam.rewrite.call_graph import CallGraph, unproven
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Rewrite
from reparam.rewrite.refused import OUTSIDE


def require_proven_path(fold: Fold, rewrites: Collection[Rewrite], context: Context) -> list[CallGraph]:
    """Raise Refusal unless code leads through the fold in every witness, or does not call its modules at all.

    Returns the guards for code that may be handed flags: it leads through the fold with those of the example.
    """
    around = common_call(fold.path)
    if around is None:
        raise Refusal(OUTSIDE)
    written = {module for rewrite in rewrites for module in rewrite.code.opened}
    guards = [
        context.proofs.guard(call) for call in _instructed_code(fold, around, context) if call.module not in written
    ]
    if not context.proofs.alike(around.module):
        for witness in context.proofs.unlike:
            for call in witness.calls:
                if call.module is around.module and not context.proofs.same(call, around):
                    _Comparison(around, call, witness, context).require(fold)
    return guards


def _instructed_code(fold: Fold, around: Call, context: Context) -> list[Call]:
    """The calls whose code leads through the fold and may be handed flags."""
    calls = {call: None for node in fold.path for call in calls_around(node, around) if has_user_code(call.module)}
    return [call for call in calls if context.proofs.instructed(call) and len(call.events) > 1]


class _Comparison:
    """A recorded call and one of the same module in a witness, which did something else."""

    def __init__(self, call: Call, other: Call, witness: Record, context: Context) -> None:
        self.call, self.other, self.witness, self.context = call, other, witness, context
        self.inner, self.other_inner = context.proofs.calls_inside(call), context.proofs.calls_inside(other)

    def require(self, fold: Fold) -> None:
        """Raise Refusal unless the witness runs all operations of the fold in the same way, or none of them."""
        images = {node: self._image(node) for node in fold.path}
        if all(image is None for image in images.values()):
            return
        outputs = set(self.witness.outputs)
        for node, image in [*images.items()]:
            if image is None or len(image.operands) != len(node.operands):
                raise self._other()
            for operand, other in zip(node.operands, image.operands, strict=True):
                if images.setdefault(operand, other) is not other:
                    raise self._other()
            if node in self.context.gone and (image in outputs or not all(map(self._is_removed, image.readers))):
                raise self._other()

    def _image(self, node: Node) -> Node | None:
        """The operation that is this one in the other call; None where its module is not called there."""
        if node.call is self.call or node.call is None:
            raise self._other()
        calls, others = self.inner[node.call.module], self.other_inner[node.call.module]
        if not others:
            return None
        if len(calls) != len(others):
            raise self._other()
        return self._counterpart(node, calls, others)

    def _counterpart(self, node: Node, calls: Sequence[Call], others: Sequence[Call]) -> Node:
        index = next(i for i, call in enumerate(calls) if call is node.call)
        if not self.context.proofs.same(calls[index], others[index]):
            raise self._other()
        place = next(i for i, event in enumerate(calls[index].events) if event is node)
        counterpart = others[index].events[place]
        assert isinstance(counterpart, Node)
        return counterpart

    def _is_removed(self, reader: Node) -> bool:
        """Whether an operation of the witness is one that the plan takes away."""
        if reader.call is None or not any(call is reader.call for call in self.other_inner[reader.call.module]):
            return False
        calls, others = self.inner[reader.call.module], self.other_inner[reader.call.module]
        return len(calls) == len(others) and self._counterpart(reader, others, calls) in self.context.removed

    def _other(self) -> Refusal:
        return unproven(self.call, self.context.proofs.difference(self.call))
