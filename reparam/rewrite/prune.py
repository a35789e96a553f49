"""Dead weight removed, as far as that is proven: the attribute stays and is None, as torch spells an absent bias.

Calls whose result nobody needs are taken out of code that can be traced for every input. Then the model runs without
the weight, and has to do what it did before, step by step. What it would miss stays, and so does what code could need
for another input: every forward around it has to be traced, unless it never looks at sizes or numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from reparam.capture.graph import Call, Node, Record, has_user_code
from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.capture.rerun import _told
from reparam.errors import ModelError, Refusal
from reparam.plan.liveness import Dead, alive, boundary, is_dead_call
from reparam.rewrite.apply import swept, written
from reparam.rewrite.proofs import Proofs
from reparam.rewrite.trace import Trace

REMOVED = "removed"
_REGISTRIES = ("_parameters", "_buffers", "_modules")


class Pruner:
    """Where a model holds its dead weight; `prune` removes it later, when the model has been edited."""

    def __init__(self, model: nn.Module, dead: Sequence[Dead]) -> None:
        self.dead = dead
        self.places: dict[int, list[tuple[nn.Module, str, str]]] = defaultdict(list)
        for module in model.modules():
            for registry in _REGISTRIES:
                for name, held in vars(module).get(registry, {}).items():
                    self.places[id(held)].append((module, registry, name))

    def prune(self, model: nn.Module, inputs: Inputs, pinned: Collection[nn.Module]) -> dict[Dead, str]:
        """Remove what can be removed; what became of each: `REMOVED`, or why it stays."""
        now = record(model, inputs)
        now.barriers.update(boundary(now, pinned))
        watched = {*pinned, *now.hooked}
        fates = {each: "kept: a hook or `keep` watches it" for each in self.dead if each.modules() & watched}
        live = alive(now)
        for call, computed in _computing(now, [each for each in self.dead if each not in fates], live).items():
            try:
                _without(call, now, live)
            except Refusal as refusal:
                fates.update(dict.fromkeys(computed, f"kept: {refusal.reason}"))
        now = record(model, inputs)
        proofs = Proofs(now)
        for each in self.dead:
            if reason := self._needed(each, now, proofs):
                fates.setdefault(each, f"kept: {reason}")
        free = [each for each in self.dead if each not in fates]
        removed = self._removed(free, model, inputs, _told(now))
        return {each: fates.get(each, REMOVED if each in removed else "kept: code asks for it") for each in self.dead}

    def _needed(self, each: Dead, now: Record, proofs: Proofs) -> str:
        """Why code may need it, for this input or another; empty if it is proven that none does."""
        readers, modules = now.readers(), each.modules()
        if any(id(tensor) in readers for tensor in each.tensors) or any(call.module in modules for call in now.calls):
            return "the code that computes it could not be taken apart"
        around, waiting = set[nn.Module](), [module for module, _, _ in self.places[id(each.member)]]
        while waiting:
            module = waiting.pop()
            if module not in around:
                around.add(module)
                waiting += [parent for parent, _, _ in self.places[id(module)]]
        return next((doubt for call in now.calls if call.module in around and (doubt := _doubt(call, proofs))), "")

    def _removed(self, dead: Sequence[Dead], model: nn.Module, inputs: Inputs, before: list[Any]) -> set[Dead]:
        """All of it, if the model does the same without; else what can be removed of either half."""
        if not dead:
            return set()
        self._put(dead, absent=True)
        with suppress(ModelError):
            if _told(record(model, inputs)) == before:
                return set(dead)
        self._put(dead, absent=False)
        if len(dead) == 1:
            return set()
        half = len(dead) // 2
        first = self._removed(dead[:half], model, inputs, before)
        return first | self._removed(dead[half:], model, inputs, before)

    def _put(self, dead: Iterable[Dead], absent: bool) -> None:
        for each in dead:
            for module, registry, name in self.places[id(each.member)]:
                vars(module)[registry][name] = None if absent else each.member


def _doubt(call: Call, proofs: Proofs) -> str:
    """Why it may take another way for another input; empty if it looks at none, or can be traced."""
    if proofs.looks(call):
        try:
            proofs.trace(call, frozenset({call.module}))
        except Refusal as refusal:
            return f"another input may need it: {refusal.reason}"
    return ""


def _computing(now: Record, dead: Iterable[Dead], live: Collection[Node]) -> dict[Call, list[Dead]]:
    """The calls whose own code computes something dead, with what that is."""
    found: dict[Call, list[Dead]] = defaultdict(list)
    readers = now.readers()
    for each in dead:
        modules = each.modules()
        calls = [call for call in now.calls if call.module in modules]
        calls += [node.call for tensor in each.tensors for node in readers.get(id(tensor), ()) if node.call]
        outer = [next((around for around in call.stack() if not is_dead_call(around, live)), None) for call in calls]
        for call in dict.fromkeys(outer):
            if call is not None:
                found[call].append(each)
    return found


def _without(call: Call, now: Record, live: Collection[Node]) -> None:
    """Take what is dead out of the code of one call."""
    path = call.path or "the model itself"
    calls = sum(other.module is call.module for other in now.calls)
    if calls > 1:
        raise Refusal(f"{path}, which computes it, is called {calls} times")
    if not has_user_code(call.module):
        raise Refusal(f"{path}, which computes it, is a layer of torch")
    trace = Trace(call, {call.module})
    swept(trace, set(), set(now.nodes) - set(live))
    written(trace)
