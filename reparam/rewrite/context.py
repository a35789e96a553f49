"""What the stages of lowering ask about a record and a plan for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from reparam.capture.graph import Call, Node, Record, calls_around, has_user_code, nodes_in, used_only_by
from reparam.errors import Refusal
from reparam.plan.shapes import Extents
from reparam.plan.strides import layout_sensitive
from reparam.rewrite.proofs import Proofs, readers_elsewhere
from reparam.rewrite.refused import RefusalAt
from reparam.rewrite.reshapes import require_proven_sizes


@dataclass(frozen=True, eq=False)
class Context:
    """A record, the proofs about its code, and what a plan does to it.

    pinned: the modules that keep their place and identity.
    removed: the operations that the plan takes away; gone: those of them whose tensors no longer exist.
    """

    record: Record
    proofs: Proofs
    pinned: Set[nn.Module]
    removed: Collection[Node]
    gone: Set[Node]

    @cached_property
    def readers(self) -> Mapping[int, list[Node]]:
        """The operations that read each tensor of the model, by the tensor's id."""
        return readers_elsewhere(self.record, self.proofs)

    @cached_property
    def layout_sensitive(self) -> Set[Node]:
        return layout_sensitive(self.record)

    def calls(self, module: nn.Module) -> Sequence[Call]:
        """The calls of a module, in order."""
        return self.proofs.calls[module]

    def path(self, module: nn.Module) -> str:
        """The name of a module in messages."""
        return self.calls(module)[0].path or "the model itself"

    # --- code that is called several times

    def code_key(self, nodes: Iterable[Node]) -> Hashable:
        """A key that is equal for operations of the same code, in whichever call of its module."""
        return tuple((node.call.path if node.call else "", self._event_index.get(node, -1)) for node in nodes)

    @cached_property
    def _event_index(self) -> Mapping[Node | Call, int]:
        return {event: i for call in self.record.calls for i, event in enumerate(call.events)}

    def require_every_call(self, call: Call, count: int) -> None:
        """Raise Refusal unless the `count` calls that fold alike are all calls of the module, whose code is edited."""
        calls = len(self.calls(call.module))
        if calls != count:
            raise Refusal(
                f"{self.path(call.module)} is called {calls} times, and only {count} of these calls fold alike",
                "separate modules would fold",
            )

    # --- who needs a module, or a tensor

    def require_not_pinned(self, call: Call, nodes: Sequence[Node]) -> None:
        """Raise Refusal if the operations compute the whole result of a pinned module, whose code they are."""
        is_result = call.result is nodes[-1] and not any(isinstance(event, Call) for event in call.events)
        if is_result and call.module in self.pinned:
            raise Refusal(f"{self.path(call.module)} is pinned by a hook or `keep=`", "without it this would fold")

    def only_removed_read(self, module: nn.Module) -> bool:
        """Whether only removed operations read the module's tensors."""
        return only_read_by(self.removed, module, self.readers)

    def read_elsewhere(self, module: nn.Module) -> bool:
        """Whether operations that stay and are not the module's own read its tensors."""
        own = (node for call in self.calls(module) for node in call.nodes())
        return not only_read_by({*self.removed, *own}, module, self.readers)

    def passing_calls(self, nodes: Iterable[Node], place: Call) -> list[Call]:
        """The calls inside `place` that return one of the nodes as it came in."""
        calls = (call for node in nodes for call in self._passed_through[node])
        return [call for call in calls if call is not place and place in call.stack()]

    @cached_property
    def _passed_through(self) -> Mapping[Node, list[Call]]:
        """For each tensor, the calls that return it and have not computed it."""
        calls: dict[Node, list[Call]] = defaultdict(list)
        for call in self.record.calls:
            for node in nodes_in(call.result):
                if has_user_code(call.module) and call not in calls_around(node, call):
                    calls[node].append(call)
        return calls

    # --- sizes

    def require_proven_sizes(self, node: Node, extents: Extents) -> None:
        """Raise RefusalAt unless code gives a reshape the sizes that `extents` requires, for every input."""
        try:
            require_proven_sizes(node, extents)
        except Refusal as refusal:
            raise RefusalAt(node, refusal.reason, refusal.remedy) from None


def only_read_by(nodes: Collection[Node], module: nn.Module, readers: Mapping[int, list[Node]]) -> bool:
    """Whether only these operations read the module's tensors, directly or through constants."""
    tensors = (*module.parameters(), *module.buffers())
    return all(used_only_by(reader, nodes) for tensor in tensors for reader in readers.get(id(tensor), ()))
