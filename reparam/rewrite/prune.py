"""Removal of dead weight, as far as it is proven safe. The attribute stays and is None, like a missing bias of torch.

First, calls whose result nobody needs are taken out of code that can be written anew. Then the model runs
without the weight, and has to take the same steps as before. What it would miss stays. So does what a witness has used,
and what a decision that nothing has settled may lead to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from torch import nn

from reparam.capture.graph import Call, Node, Record, has_user_code
from reparam.capture.inputs import Inputs
from reparam.capture.likeness import Likeness
from reparam.capture.runs import record
from reparam.capture.witness import witnessed
from reparam.errors import ModelError, Refusal
from reparam.plan.liveness import Dead, alive, is_dead_call, with_pinned
from reparam.rewrite.proofs import Proofs
from reparam.rewrite.steps import erase_removed, write_forward

REMOVED = "removed"
_REGISTRIES = ("_parameters", "_buffers", "_modules")


class Pruner:
    """Notes where a model holds its dead weight, before it is edited. `prune` removes it from the edited model."""

    def __init__(self, model: nn.Module, dead: Sequence[Dead]) -> None:
        self.dead = dead
        self.holders: dict[int, list[tuple[nn.Module, str, str]]] = defaultdict(list)  # module, registry, name
        for module in model.modules():
            for registry in _REGISTRIES:
                for name, member in vars(module).get(registry, {}).items():
                    self.holders[id(member)].append((module, registry, name))

    def prune(self, model: nn.Module, inputs: Inputs, pinned: Collection[nn.Module]) -> dict[Dead, str]:
        """Remove what can be removed. Returns the fate of each: `REMOVED`, or why it stays.

        Requires the edited model. Leaves it with the same results. Raises ModelError if the model does not run.
        """
        before = with_pinned(witnessed(model, inputs), pinned)
        proofs = Proofs(before)
        all_pinned = {*pinned, *before.hooked}
        fates = {dead: "kept: it is pinned by a hook or `keep=`" for dead in self.dead if dead.modules() & all_pinned}
        live = alive(before)
        unpinned = [dead for dead in self.dead if dead not in fates]
        for call, computed in _calls_computing(unpinned, before, live).items():
            try:
                _erase_dead_operations(call, before, live, proofs)
            except Refusal as refusal:
                fates.update(dict.fromkeys(computed, f"kept: {refusal.reason}"))
        now = witnessed(model, inputs)
        for dead in self.dead:
            if reason := self._why_needed(dead, now):
                fates.setdefault(dead, f"kept: {reason}")
        removable = [dead for dead in self.dead if dead not in fates]
        removed = self._remove(removable, model, inputs, now)
        return {dead: fates.get(dead, REMOVED if dead in removed else "kept: code asks for it") for dead in self.dead}

    def _why_needed(self, dead: Dead, now: Record) -> str:
        """Why code may need it, for this input or another; empty if no code does."""
        readers, modules = now.readers(), dead.modules()
        if any(id(tensor) in readers for tensor in dead.tensors) or any(call.module in modules for call in now.calls):
            return "the code that computes it could not be taken apart"
        around, pending = set[nn.Module](), [module for module, _, _ in self.holders[id(dead.member)]]
        while pending:
            module = pending.pop()
            if module not in around:
                around.add(module)
                pending += [parent for parent, _, _ in self.holders[id(module)]]
        for witness in now.witnesses:
            tensors = witness.readers()
            if any(id(tensor) in tensors for tensor in dead.tensors) or any(c.module in modules for c in witness.calls):
                return "another input needs it"
        decided = next((d for d in now.decisions if not d.settled and d.call and d.call.module in around), None)
        return "" if decided is None else f"another input may need it, by {decided}"

    def _remove(self, dead: Sequence[Dead], model: nn.Module, inputs: Inputs, before: Record) -> set[Dead]:
        """Remove all of it if the model does the same without; otherwise what can be removed of either half."""
        if not dead:
            return set()
        self._set_members(dead, present=False)
        with suppress(ModelError):
            if _same_run(record(model, inputs), before):
                return set(dead)
        self._set_members(dead, present=True)
        if len(dead) == 1:
            return set()
        half = len(dead) // 2
        removed = self._remove(dead[:half], model, inputs, before)
        return removed | self._remove(dead[half:], model, inputs, before)

    def _set_members(self, dead: Iterable[Dead], present: bool) -> None:
        for item in dead:
            for module, registry, name in self.holders[id(item.member)]:
                vars(module)[registry][name] = item.member if present else None


def _same_run(now: Record, before: Record) -> bool:
    """Whether two runs have taken the same steps."""
    likeness = Likeness()
    return likeness.key(now.calls[0]) == likeness.key(before.calls[0])


def _calls_computing(dead: Iterable[Dead], now: Record, live: Collection[Node]) -> dict[Call, list[Dead]]:
    """The live calls in whose code something dead is computed, with what that is."""
    dead_by_call: dict[Call, list[Dead]] = defaultdict(list)
    readers = now.readers()
    for item in dead:
        modules = item.modules()
        calls = [call for call in now.calls if call.module in modules]
        calls += [node.call for tensor in item.tensors for node in readers.get(id(tensor), ()) if node.call]
        live_calls = (next((outer for outer in call.stack() if not is_dead_call(outer, live)), None) for call in calls)
        for call in dict.fromkeys(live_calls):
            if call is not None:
                dead_by_call[call].append(item)
    return dead_by_call


def _erase_dead_operations(call: Call, now: Record, live: Collection[Node], proofs: Proofs) -> None:
    """Take the dead operations out of the code of one call. Raises Refusal where that is not possible."""
    path = call.path or "the model itself"
    calls = sum(other.module is call.module for other in now.calls)
    if calls > 1:
        raise Refusal(f"{path}, which computes it, is called {calls} times")
    if not has_user_code(call.module):
        raise Refusal(f"{path}, which computes it, is a layer of torch")
    code = proofs.code(call, frozenset({call.module}))
    erase_removed(code, set(), set(now.nodes) - set(live))
    write_forward(code)
