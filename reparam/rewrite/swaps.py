"""The smallest edit of one fold: modules are swapped where they stand, and the forward around them is rewritten where
that is not possible.

Calls of the same code fold alike or not at all: each edit is made once for a group of parts, one for every call.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from torch.nn.utils.parametrize import ParametrizationList

from reparam.capture.graph import Call, Node, common_call, has_user_code
from reparam.errors import Refusal
from reparam.rewrite.call_graph import takes_size
from reparam.rewrite.chains import READ_ELSEWHERE, Part
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Piece, Swap
from reparam.rewrite.refused import OUTSIDE


class SwapStage:
    """Chooses the edit of each group of the `parts`."""

    def __init__(self, parts: Iterable[Part], context: Context) -> None:
        self._context = context
        self._outcomes: Mapping[Call, Hashable] = {
            call: outcome for part in parts for call, outcome in self._outcomes_of(part)
        }

    def edit(self, group: Sequence[Part]) -> tuple[list[Swap], list[Piece]]:
        """Swaps for whole modules, and pieces of code for the rest. Raises Refusal where neither is possible."""
        return self._chain_edit(group) or self._joint_edit(group)

    def _chain_edit(self, group: Sequence[Part]) -> tuple[list[Swap], list[Piece]] | None:
        """An edit for each operation where it stands; None where they cannot be edited one by one."""
        part = group[0]
        if not part.chain or not part.keeps_read_sizes():
            return None
        swaps: list[Swap] = []
        pieces: list[Piece] = []
        for call, nodes in part.runs():
            value = part.fold.value if part.carrier in nodes else None
            given_more = len(call.args) > 1 or call.kwargs
            if given_more and not has_user_code(call.module) and not part.fold.takes_output_size(nodes, value):
                raise Refusal("it is given an output size at every call", "output_padding in its place would fold")
            if self._is_whole_call(call, nodes, part):
                if not self._has_one_outcome(call) or not self._context.only_removed_read(call.module):
                    return None  # the module has to stay as well
                swaps.append(Swap(call.module, part.planned, value))
            else:
                self._require_not_pinned(call, nodes)
                self._context.require_every_call(call, len(group))
                pieces.append(Piece(call, nodes, nodes[0].operands[0], nodes[-1], part, value))
        return swaps, pieces

    def _joint_edit(self, group: Sequence[Part]) -> tuple[list[Swap], list[Piece]]:
        """One edit for all operations, in the smallest call around them."""
        part = group[0]
        fold = part.fold
        if fold.steps:
            raise Refusal(READ_ELSEWHERE)
        call = common_call(fold.nodes)
        if call is None:
            raise Refusal(OUTSIDE)
        self._require_not_pinned(call, fold.nodes)
        self._context.require_every_call(call, len(group))
        value = None if fold.value.identity else fold.value
        if not self._is_whole_call(call, fold.nodes, part):
            return [], [Piece(call, fold.nodes, fold.base, fold.sink, part, value)]
        if not self._context.only_removed_read(call.module):
            raise Refusal(f"other code reads the parameters of {call.path}", "code that reads its own would fold")
        return [Swap(call.module, part.planned, value)], []

    def _is_whole_call(self, call: Call, nodes: Sequence[Node], part: Part) -> bool:
        """Whether the operations are all that the call does, so that its module can be swapped."""
        if call.module in self._context.pinned or any(map(self._is_other_code, call.events)):
            return False
        if has_user_code(call.module) and (len(call.args) != 1 or call.kwargs):
            return False  # a layer of torch takes one tensor
        operations, part_nodes = (event for event in call.events if isinstance(event, Node)), set(nodes)
        is_all = all(node.constant or node.passthrough or node in part_nodes for node in operations)
        if not is_all or call.result is not nodes[-1]:
            return False
        if not has_user_code(call.module):
            return True
        if call.changes or self._context.proofs.checks(call) or not self._context.proofs.alike(call.module):
            return False
        return not any(takes_size(node) for node in nodes if node not in part.planned.reshapes)

    def _require_not_pinned(self, call: Call, nodes: Sequence[Node]) -> None:
        """Raise Refusal if the operations compute the whole result of a pinned module, whose code they are."""
        self._context.require_not_pinned(call, nodes)
        is_result = call.result is nodes[-1] and not any(map(self._is_other_code, call.events))
        if is_result and call.module in self._context.pinned:  # its weight is computed once (see `computed.py`)
            raise Refusal(f"{call.path} is pinned by a hook or `keep=`", "without it this would fold")

    def _is_other_code(self, event: Node | Call) -> bool:
        """Whether it is a call of a module that has to stay; what computes a parametrized weight need not."""
        if isinstance(event, Node):
            return False
        return not isinstance(event.module, ParametrizationList) or event.module in self._context.pinned

    def _has_one_outcome(self, call: Call) -> bool:
        """Whether every call of the module becomes the same."""
        calls = self._context.calls(call.module)
        return all(other in self._outcomes and self._outcomes[other] == self._outcomes[call] for other in calls)

    def _outcomes_of(self, part: Part) -> Iterable[tuple[Call, Hashable]]:
        """What a chain makes of each call that it passes through: None for nothing, else a key of its convolution."""
        if part.chain:
            key = self._context.code_key(part.planned.nodes)
            for call, nodes in part.runs():
                yield call, (key if part.carrier in nodes else None)
