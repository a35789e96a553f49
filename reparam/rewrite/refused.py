"""What cannot be edited, collected while a plan is lowered: the constraints that the next plan respects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from reparam.capture.graph import Call, Node, calls_around, common_call
from reparam.errors import Refusal
from reparam.plan.fold import Fusion
from reparam.plan.plan import Constraints

OUTSIDE = "it runs outside the model's forward"
SIZE_READ = "the code reads the size of a tensor that folding resizes or removes"


class RefusalAt(Refusal):
    """A refusal of one operation. The operations around it may still be edited."""

    def __init__(self, node: Node, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.node = node


class Refused:
    """Collects refusals. `known_barriers`: the tensors through which the plan leads no fold already."""

    def __init__(self, known_barriers: Collection[Node]) -> None:
        self._known_barriers = known_barriers
        self._opaque: dict[Node, Refusal] = {}
        self._barriers: dict[Node, Refusal] = {}
        self._unfusable: set[Node] = set()

    @property
    def constraints(self) -> Constraints:
        return Constraints(self._opaque, self._barriers, frozenset(self._unfusable))

    def refuse_operations(self, nodes: Iterable[Node], refusal: Refusal) -> None:
        """No fold may replace these operations."""
        self._opaque.update((node, refusal) for node in nodes)

    def refuse_fold(
        self, refusal: Refusal, nodes: Sequence[Node], steps: Sequence[Node], call: Call | None = None
    ) -> None:
        """The operations `nodes` cannot be replaced together; `steps` are the steps of their fold.

        A `RefusalAt` refuses its own operation. Otherwise the operations that stay are those in the forward of `call`
        (by default the call around all nodes). If it has none of its own, no fold may lead through the tensors that it
        hands from one inner call to another, and what is inside these calls may still fold.
        """
        if isinstance(refusal, RefusalAt):
            self._opaque.setdefault(refusal.node, refusal)
            return
        around = call or common_call(nodes)
        own = [node for node in nodes if node.call is around]
        handed = [] if own else [n for n in _handed_between_calls(nodes, around) if n not in self._known_barriers]
        self._barriers.update((node, refusal) for node in handed)
        for node in [] if handed else steps[:1] or own or nodes[-1:]:
            self._opaque.setdefault(node, refusal)

    def refuse_fusions(self, fusions: Iterable[Fusion]) -> bool:
        """The folds of these fusions may not be fused; returns whether there are any."""
        sinks = {sink for fusion in fusions for sink in fusion.sinks}
        self._unfusable |= sinks
        return bool(sinks)


def _handed_between_calls(nodes: Sequence[Node], around: Call | None) -> list[Node]:
    """The tensors that pass from one call made by `around` to another."""
    inner = {node: [call for call in calls_around(node, around) if call is not around][-1:] for node in nodes}
    handed = {operand for node in nodes for operand in node.operands if inner.get(operand, inner[node]) != inner[node]}
    return [node for node in nodes if node in handed]
