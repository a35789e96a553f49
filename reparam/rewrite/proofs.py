"""What is proven about the code of calls: that it does the same for every input, or is handed the same in every call.

Proofs lean on one another: whether what a forward is handed is always the same is seen in the code that calls it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from torch import nn

from reparam.capture.graph import GIVEN, Call, Node, Record, nodes_in
from reparam.errors import Refusal
from reparam.rewrite.signature import arguments, asking, bare, form, instructed, unproven
from reparam.rewrite.size_functions import Scope
from reparam.rewrite.trace import Trace
from reparam.rewrite.trace_cache import contents

_Key = tuple[Call, frozenset[nn.Module]]


class Proofs:
    """The traces of a record's calls, each made once, however often it is planned. `calls` are those of each module."""

    def __init__(self, record: Record) -> None:
        self.calls: dict[nn.Module, list[Call]] = defaultdict(list)
        for call in record.calls:
            self.calls[call.module].append(call)
        self._traces: dict[_Key, Trace | Refusal] = {}
        self._shaped: dict[_Key, Trace | Refusal] = {}
        self._settled: dict[nn.Module, bool] = {}
        self._told: dict[Call, bool] = {}
        self._followed: dict[_Key, bool] = {}
        self._twins: dict[type[nn.Module], list[Trace]] = defaultdict(list)

    def trace(self, call: Call, opened: frozenset[nn.Module]) -> Trace:
        """The trace of a call for every input, the code of `opened` modules written out. Raises Refusal."""
        if (call, opened) not in self._traces:
            self._traces[call, opened] = self._trace(call, opened)
        return _found(self._traces[call, opened])

    def shaped(self, call: Call, opened: frozenset[nn.Module]) -> Trace:
        """The same for every input with as many tensors in the containers among its arguments, which it checks.

        It proves nothing about the code as it is, only about what is written in its place. Raises Refusal.
        """
        if (call, opened) not in self._shaped:
            try:
                self._shaped[call, opened] = Trace(call, opened, settled=self.settled(call), shaped=True)
            except Refusal as refusal:
                self._shaped[call, opened] = refusal
        return _found(self._shaped[call, opened])

    def require(self, call: Call, opened: frozenset[nn.Module]) -> None:
        """Raise Refusal unless the code of a call and of the `opened` modules does the same for every input.

        What no trace shows for every input at once may do the same along every way through its branches.
        """
        traces = (more for (each, more), found in self._traces.items() if each is call and isinstance(found, Trace))
        if any(opened <= more for more in traces):
            return
        try:
            self.trace(call, opened)
        except Refusal:
            if (asking(call) and self._varies(call)) or not self._follows(call, opened):
                raise

    def _follows(self, call: Call, opened: frozenset[nn.Module]) -> bool:
        """Whether every way through its branches on sizes is what ran."""
        if (call, opened) not in self._followed:
            try:
                follow(call, opened)
                self._followed[call, opened] = True
            except Refusal:
                self._followed[call, opened] = False
        return self._followed[call, opened]

    def holds(self, call: Call, opened: frozenset[nn.Module]) -> bool:
        """Whether `require` raises nothing."""
        try:
            self.require(call, opened)
        except Refusal:
            return False
        return True

    def looks(self, call: Call) -> bool:
        """Whether its code knows a number that the input may decide on, or was handed what depends on one."""
        if call.control_flow - {GIVEN}:
            return True
        return self._informed(call) and (GIVEN in call.control_flow or instructed(call))

    def _informed(self, call: Call) -> bool:
        """Whether the code that makes the call may tell it anything that depends on the input."""
        if call not in self._told:
            around = call.parent
            outside = around is not None and (self._informed(around) or self.looks(around))
            self._told[call] = (GIVEN in call.control_flow or outside) and not self.settled(call)
        return self._told[call]

    def settled(self, call: Call) -> bool:
        """Whether its arguments, tensors apart, are the same in every call of its module, whatever the input."""
        module = call.module
        if module not in self._settled:
            self._settled[module] = False  # until it is known, should calls go in circles
            forms = [form(each) for each in self.calls[module]]
            same = all(each == forms[0] for each in forms[1:])
            plain = bare(forms[0]) and not any(map(asking, self.calls[module]))
            self._settled[module] = same and (plain or all(map(self._written_out, self.calls[module])))
        return self._settled[module]

    def _varies(self, call: Call) -> bool:
        """Whether the code that makes the call may hand it something else, tensors apart, for another input."""
        return call.parent is not None and not self.settled(call)

    def _written_out(self, call: Call) -> bool:
        """Whether the code that makes the call does so, tensors apart, in the same way whatever its input."""
        parent = call.parent
        if parent is None:
            return False  # whoever calls the model may do so otherwise
        if not self.looks(parent) and self.settled(parent):
            return True
        try:
            trace = self.trace(parent, frozenset({parent.module}))
        except Refusal:
            return False
        step = next(step for step, seen in trace.inner.items() if seen is call)
        return all(isinstance(trace.tree.get(argument), Node) for argument in step.all_input_nodes)

    def _trace(self, call: Call, opened: frozenset[nn.Module]) -> Trace | Refusal:
        """The trace for every input; if there is none, that for every input with the same literals beside it."""
        try:
            trace = self._made(call, opened)
            if (trace.doubtful or asking(call)) and self._varies(call):
                missing = "it asks for a tensor that may be missing for another input"
                computed = "weights are worked out in its code, perhaps otherwise where an argument is given"
                return unproven(call, computed if trace.doubtful else missing)
            if not trace.doubtful:
                return trace
        except Refusal as refusal:
            if bare(form(call)) or not self.settled(call):
                return refusal
        try:
            return Trace(call, opened, settled=True)
        except Refusal as refusal:
            return refusal

    def _made(self, call: Call, opened: frozenset[nn.Module]) -> Trace:
        """The trace of code as it is; where it has been traced in a module that holds the same, taken from there."""
        twins = self._twins[type(call.module)]
        held = contents(call.module, opened) if twins else None
        twin = next((each for each in twins if each.contents == held), None)
        try:
            if twin is not None:
                return Trace(call, opened, twin=twin)
        except Refusal:  # something else ran here: the trace of this very code will say why
            pass
        trace = Trace(call, opened)
        if not trace.watch.looked and not trace.literals:
            twins.append(trace)
        return trace


def _found(trace: Trace | Refusal) -> Trace:
    if isinstance(trace, Refusal):
        raise trace
    return trace


def contains(call: Call) -> bool:
    """Whether its forward is handed containers of tensors."""
    try:
        return any(not isinstance(each, Node) and nodes_in(each) for each in arguments(call).values())
    except Refusal:
        return False


def follow(call: Call, opened: Collection[nn.Module]) -> None:
    """Trace the forward of a call along every way through its branches on sizes; each has to be what ran.

    Such code (a padding whose width depends on the size) cannot be rewritten, but what it calls can be exchanged.

    Raises Refusal where a way is another one, or there are too many.
    """
    ways: list[bool] = []
    exchanged = frozenset[Scope]()
    while True:
        exchanged = Trace(call, opened, ways=ways, exchanged=exchanged).exchanged
        while ways and not ways[-1]:
            ways.pop()
        if not ways:
            return
        ways[-1] = False
