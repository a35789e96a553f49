"""What is known of code for every input: the graphs of its calls, and whether all witnesses ran it alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from reparam.capture.graph import Call, Node, Record, nodes_in
from reparam.capture.likeness import Likeness
from reparam.capture.symbolic import BOTH_WAYS, Decision
from reparam.errors import Refusal
from reparam.plan.plan import Constraints
from reparam.rewrite.call_graph import CallGraph, flags_of, takes_flags, unproven, written_out
from reparam.rules import RULES

_REMEDY = "a forward that does the same at every size would fold"
_UNDECIDED_REMEDY = "code that does not ask would fold"

K = TypeVar("K")


class Proofs:
    """The graphs of a record's calls, each made once, however often it is planned. `calls` are those of each module."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.calls: dict[nn.Module, list[Call]] = defaultdict(list)
        for call in record.calls:
            self.calls[call.module].append(call)
        self._decisions: dict[Call | None, list[Decision]] = defaultdict(list)
        for decision in record.decisions:
            self._decisions[decision.call].append(decision)
        self._instructed: dict[Call, bool] = {}
        self._graphs: dict[tuple[Call, frozenset[nn.Module]], CallGraph | Refusal] = {}
        self._guards: dict[Call, CallGraph | Refusal] = {}
        self._inside: dict[Call, Mapping[nn.Module, list[Call]]] = {}
        likeness = Likeness()
        self._keys = likeness.of_modules(record)
        self._others = [likeness.of_modules(witness) for witness in record.witnesses]
        self.unlike = [w for w, keys in zip(record.witnesses, self._others, strict=True) if keys != self._keys]
        self._likeness = likeness

    def alike(self, module: nn.Module) -> bool:
        """Whether every call of a module in a witness did what one of the recorded calls did."""
        own = self._keys.get(module, set())
        return all(keys.get(module, set()) <= own for keys in self._others)

    def instructed(self, call: Call) -> bool:
        """Whether whoever calls the model may hand a call something else than tensors: a flag, another number of them.

        What the code that makes the call hands it by itself, the witnesses have seen.
        """
        if call not in self._instructed:
            parent = call.parent
            settled = not self.record.flags if parent is None else not self.instructed(parent)
            self._instructed[call] = not settled and takes_flags(call)
        return self._instructed[call]

    def checks(self, call: Call) -> bool:
        """Whether the code of a call checks what no input has been seen to be otherwise."""
        return any(decision.checked for decision in self._decisions.get(call, ()))

    def same(self, call: Call, other: Call) -> bool:
        """Whether two calls did the same, perhaps in two runs."""
        return self._likeness.key(call) == self._likeness.key(other)

    def code(self, call: Call, opened: frozenset[nn.Module]) -> CallGraph:
        """The graph of a call, with the code of `opened` modules written out. Raises Refusal."""
        return _kept(self._graphs, (call, opened), lambda: self._made(call, opened))

    def _made(self, call: Call, opened: frozenset[nn.Module]) -> CallGraph:
        self._require_program(call, opened)
        return CallGraph(call, opened, self._decisions)

    def guard(self, call: Call) -> CallGraph:
        """The forward of a call's module with a check of its flags in front. Raises Refusal where they vary.

        A tensor that was there in some runs and not in others needs no check: witnesses have shown both.
        """
        return _kept(self._guards, call, lambda: self._made_guard(call))

    def _made_guard(self, call: Call) -> CallGraph:
        calls = [other for record in (self.record, *self.record.witnesses) for other in record.calls]
        values = [flags_of(other) for other in calls if other.module is call.module]
        varied = {name for name, value in flags_of(call).items() if any(other[name] != value for other in values)}
        if any(other[name] not in (None, Node) for other in values for name in varied):
            raise unproven(call, "it is called with several flags", "a forward that takes tensors alone would fold")
        return CallGraph(call, {call.module}, self._decisions, unchecked=varied)

    def _require_program(self, call: Call, opened: frozenset[nn.Module]) -> None:
        """Raise Refusal unless what the call did is all that its code does."""
        if not self.alike(call.module):
            raise unproven(call, self.difference(call), _REMEDY)
        if len(self._keys[call.module]) > 1:
            raise unproven(call, "it is called in several ways, and does not do the same in all of them")
        for inner in written_out(call, opened):
            if inner.module in self.record.hooked:
                raise unproven(
                    call,
                    f"a hook changes or watches what {inner.path or 'it'} is called with",
                    "without it this would fold",
                )
            if inner.changes:
                what = f"{inner.path or 'it'} changes attributes, or lists that it is handed"
                raise unproven(call, what, "a forward that keeps nothing would fold")
            if any(isinstance(event, Call) and event.lent for event in [inner, *inner.events]):
                raise unproven(call, "it is called with other tensors in place of its parameters or buffers")

    def calls_inside(self, call: Call) -> Mapping[nn.Module, list[Call]]:
        """The calls inside a call, by module, in order; without those that failed before they did anything."""
        if call not in self._inside:
            calls = self._inside[call] = defaultdict(list)
            pending: list[Call] = [call]
            while pending:
                inner = [event for event in pending.pop().events if isinstance(event, Call)]
                for each in inner:
                    if not (each.failed and not any(True for _ in each.nodes())):
                        calls[each.module].append(each)
                pending += reversed(inner)
        return self._inside[call]

    def difference(self, call: Call) -> str:
        """Why a call does something else for another input."""
        turned = [decision for decision in self.record.decisions if decision.settled == BOTH_WAYS]
        inside = (decision for decision in turned if decision.call is not None and call in decision.call.stack())
        decided = next(inside, next(iter(turned), None))
        return "it does something else in another run" + (f", by {decided}" if decided is not None else "")


def _kept(known: dict[K, CallGraph | Refusal], key: K, make: Callable[[], CallGraph]) -> CallGraph:
    """What `make` returns or refuses, which is made once."""
    if key not in known:
        try:
            known[key] = make()
        except Refusal as refusal:
            known[key] = refusal
    found = known[key]
    if isinstance(found, Refusal):
        raise found
    return found


def undecided(record: Record) -> Constraints:
    """What the decisions allow that nothing has settled: no fold of what runs later, as it may go by them.

    Nor does a fold lead through tensors that are in the hands of code that still runs then.
    """
    opaque: dict[Node, Refusal] = {}
    barriers: dict[Node, Refusal] = {}
    for decision in record.decisions:
        if decision.settled:
            continue
        refusal = Refusal(f"no run has shown what happens where this is otherwise: {decision}", _UNDECIDED_REMEDY)
        for call in decision.call.stack() if decision.call is not None else ():
            for event in call.events:
                nodes = nodes_in(event.result) if isinstance(event, Call) else [event]
                barriers.update((node, refusal) for node in nodes if node not in barriers)
            barriers.update((node, refusal) for node in nodes_in((call.args, call.kwargs)) if node not in barriers)
        if not opaque:
            behind = record.nodes[decision.position :]
            opaque = dict.fromkeys((node for node in behind if node.op in RULES and not node.constant), refusal)
    return Constraints(opaque, barriers)


def readers_elsewhere(record: Record, proofs: Proofs) -> Mapping[int, list[Node]]:
    """The nodes that read each tensor of the model, by the tensor's id; also those of witnesses that ran otherwise."""
    readers = record.readers()
    for witness in proofs.unlike:
        for key, nodes in witness.readers().items():
            for node in nodes:
                if node.call is None or not proofs.alike(node.call.module):
                    readers[key].append(node)
    return readers
