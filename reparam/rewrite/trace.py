"""The proof that code may be rewritten: its symbolic trace, matched with what the record saw.

A record is true for one run. A symbolic trace of one module's forward holds for every input, because a proxy has no
size and no value that Python could decide on. Where the two show the same operations on the same tensors in the same
order, what was concluded from the record holds for the code, and the trace is the text in which it can be edited.
Only what is edited is traced: every inner module that is not concerned stays one call.

Record and trace are matched step by step while the trace is made, so a proxy knows which recorded tensor it stands
for. It tells its rank, and a parameter its value, as neither depends on the input; it never tells a size.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from reparam.capture.bytecode import line_of
from reparam.capture.graph import CAUGHT, GRADIENTS, LENT, MISSING, SET, SETS, Call, Node, nodes_in, tuple_item
from reparam.capture.norms import affine_part
from reparam.capture.ops import (
    ASKING_METHODS,
    CHECKS,
    CONVOLUTIONS,
    INPLACE_OPERATORS,
    SHAPED_AS,
    TENSOR_ATTRIBUTES,
    op_name,
)
from reparam.capture.snapshot import AttributeSnapshot
from reparam.capture.tree import leaves
from reparam.errors import Refusal, first_line
from reparam.rewrite.proxy import NOTHING, Missing, StepProxy, StepTracer, in_place
from reparam.rewrite.signature import arguments, unproven
from reparam.rewrite.size_functions import Scope, symbolic
from reparam.rewrite.trace_cache import Watch, contents

_WRITES = ("setitem", *INPLACE_OPERATORS)  # by Python's own operators
_BRANCHES = 6  # in one forward: they are as many doublings


class Trace:
    """The traced forward of one call; `tree[n]` is what fx node n was in the record, `at[node]` the way back.

    literals: tensors written out in the code, under the names of attributes that the graph reads them from.

    settled: what the forward is handed besides tensors is always the same; it is traced with that, and checks it.
    shaped: so it is traced with as many tensors as there were in lists, tuples and dicts, and checks that.
    exchanged: where other functions stand in for `int`, `len` or `float`; more are added as the trace needs them.
    twin: the trace of a call of another module that holds the same (see `twins`): its graph is taken, not made anew.
    ways: where branches on sizes lead, one by one; longer if there are more. Without, no branch is followed.

    Raises Refusal where the forward cannot be traced or is not what ran.
    """

    def __init__(
        self,
        call: Call,
        opened: Collection[nn.Module],
        *,
        settled: bool = False,
        shaped: bool = False,
        ways: list[bool] | None = None,
        exchanged: frozenset[Scope] = frozenset(),
        twin: Trace | None = None,
    ) -> None:
        self.settled, self.shaped = settled, shaped
        self.ways, self._turns = ways, 0
        self.call = call
        self.module = call.module
        self.opened = opened
        self.given = arguments(call)
        self.tree: dict[fx.Node, Any] = {}
        self.at: dict[Node, fx.Node] = {}
        self.inner: dict[fx.Node, Call] = {}
        self.lengths: dict[fx.Node, int] = {}
        self.literals: dict[str, torch.Tensor] = {}
        self.exchanged = exchanged
        self._entries = list(entries(call, opened))
        self._left: Iterator[Node | Call] = iter(())
        self.watch = Watch()
        self.graph = self._followed() if twin is None else self._repeated(twin)

    def _followed(self) -> fx.Graph:
        while True:
            for each in (self.tree, self.at, self.inner, self.lengths, self.literals):
                each.clear()
            self._turns = 0
            self._left = iter(self._entries)
            try:
                return _traced(self)
            except Missing as found:
                self.exchanged |= found.scopes

    def _repeated(self, twin: Trace) -> fx.Graph:
        """The steps of a twin, matched with what was recorded here; proxies would have told the code the same of it."""
        graph, steps = fx.Graph(), dict[fx.Node, fx.Node]()
        self._left = iter(self._entries)
        for step in twin.graph.nodes:
            steps[step] = graph.node_copy(step, steps.__getitem__)
            self.match(steps[step])
            if self._told(steps[step]) != twin._told(step):
                raise self._other("depends on the number of dimensions")
        return graph

    def _told(self, node: fx.Node) -> tuple[int | None, int | None, bool]:
        return self.rank(node), self.lengths.get(node), bool(node.all_input_nodes) and self.overwrites(node)

    @cached_property
    def contents(self) -> Any:
        return contents(self.module, self.opened)

    def turn(self) -> bool | None:
        """Where the next branch leads; None where it is not followed."""
        if self.ways is None or self._turns == _BRANCHES:
            return None
        self.ways += [True] if self._turns == len(self.ways) else []
        self._turns += 1
        return self.ways[self._turns - 1]

    @property
    def doubtful(self) -> bool:
        """Whether it computes with weights alone, and an argument was None: code may ask for that unseen."""
        computing = ("call_function", "call_method", "call_module")
        absent = not self.settled and any(value is None for value in self.given.values())
        return absent and any(self.tree.get(n, n) is None and n.op in computing for n in self.graph.nodes)

    def sized(self, node: Node) -> bool:
        """Whether the operation takes an argument that depends on the size of the input.

        The groups of a convolution do not, however they are computed: they are its channels over those of its kernel.
        """
        step = self.at[node]
        groups = _groups(step) if node.op in CONVOLUTIONS else None
        return any(argument not in self.tree for argument in step.all_input_nodes if argument is not groups)

    def overwrites(self, node: fx.Node) -> bool:
        """Whether a step gives its first argument a new value, and returns it (or nothing)."""
        called = getattr(node.target, "__name__", str(node.target))
        by_name = (called.endswith("_") and not called.endswith("__")) or called in _WRITES
        if node.op == "call_module" or not (by_name or node.kwargs.get("inplace") is True):
            return False
        before, after = self.tree.get(node.all_input_nodes[0], NOTHING), self.tree.get(node)
        if isinstance(before, Node) and isinstance(after, Node):
            return (
                after.inplace
                and after.args[0] is before
                and "out" not in after.kwargs
                and after.storage == before.storage
            )
        return before is None  # computed from constants

    def rank(self, node: fx.Node) -> int | None:
        """The number of dimensions of the tensor that a step computes, where it is one that was recorded."""
        seen = self.tree.get(node)
        return len(seen.shape) if isinstance(seen, Node) else None

    def match(self, node: fx.Node) -> None:
        """The next step of the trace, which has to be the next one of the record."""
        if node.op == "placeholder":
            self._is(node, self.given.get(str(node.target).lstrip("*")))
        elif node.op == "get_attr":
            self.tree[node] = None
        elif node.op == "output":
            if varying(map(self.tree.get, node.all_input_nodes)) != distinct(nodes_in(self.call.result)):
                raise self._other("returns other tensors")
            if (left := next(self._left, None)) is not None:
                raise self._other(f"does not reach {_name(left)}")
        else:
            self._step(node)

    def _step(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes[:1] if op_name(node.target) in SHAPED_AS else node.all_input_nodes
        length = self._length(node)
        if length is not None:
            self.lengths[node] = length
        operands = varying(map(self.tree.get, inputs))
        if not operands:
            if not self.settled and any(map(self._absent, inputs)):
                raise self._other(f"calls {op_name(node.target)} on an argument that was None")
            if all(argument in self.tree for argument in inputs):
                self.tree[node] = None  # computed from constants alone
            return
        source = self.tree.get(inputs[0])
        if isinstance(node.target, type) and node.target is not list:  # a dataclass or named tuple of tensors
            self.tree[node] = list(map(self.tree.get, inputs))
        elif node.target is operator.getitem and not isinstance(source, Node):
            self._is(node, source[node.args[1]])  # type: ignore[index]
        elif node.target is getattr and not isinstance(source, Node):
            self._is(node, getattr(source, str(node.args[1]), None))
        elif not self._looks(node):
            self._consume(node, operands, next(self._left, None))

    def _absent(self, node: fx.Node) -> bool:
        """Whether it is an argument that was None: a proxy is none, whatever the code asks."""
        return node.op == "placeholder" and self.given.get(str(node.target).lstrip("*"), NOTHING) is None

    def _length(self, node: fx.Node) -> int | None:
        """The number of entries of a step that is the shape of a tensor, or a part of one."""
        if len(node.args) == 1 and node.op == "call_method" and node.target == "size":
            return self.rank(node.args[0])  # type: ignore[arg-type]
        if node.target is getattr and node.args[1] == "shape":
            return self.rank(node.args[0])  # type: ignore[arg-type]
        if node.target is operator.getitem and isinstance(node.args[1], slice):
            whole = self.lengths.get(node.all_input_nodes[0])
            return None if whole is None else len(range(whole)[node.args[1]])
        return None

    def _looks(self, node: fx.Node) -> bool:
        """Whether it asks something about a tensor (a size, a dtype) instead of computing one."""
        name = op_name(node.target)
        if node.op == "call_function" and node.target is getattr:
            return node.args[1] not in TENSOR_ATTRIBUTES
        return name in CHECKS or node.target in (len, list) or (node.op == "call_method" and name in ASKING_METHODS)

    def _consume(self, node: fx.Node, operands: list[Node], seen: Node | Call | None) -> None:
        if isinstance(seen, Call):
            same = node.op == "call_module" and self.module.get_submodule(str(node.target)) is seen.module
            given, result = distinct(nodes_in((seen.args, seen.kwargs))), seen.result
            given = [operand for operand in given if not operand.constant]
            self.inner[node] = seen
        elif seen is not None:
            name = node.args[1] if node.target is getattr else op_name(node.target)
            recorded = seen.op
            same = node.op != "call_module" and (recorded in (name, f"r{name}") or name in SHAPED_AS)
            given, result = distinct(seen.operands), parts(seen)
            if any(argument not in self.tree for argument in node.all_input_nodes):
                given = [operand for operand in given if not foreign(operand)]
        else:
            raise self._other(f"goes on with {node.format_node()}")
        if not same or given != operands:
            raise self._other(f"calls {op_name(node.target)} where {_name(seen)} ran")
        if other := _literals((node.args, node.kwargs)) - _literals((seen.args, seen.kwargs)):
            raise self._other(f"hands {_name(seen)} {min(other)}, which it was not handed")
        self._is(node, result)
        if isinstance(seen, Node):
            self.at[seen] = node

    def _is(self, node: fx.Node, tree: Any) -> None:
        if not varying([tree]):
            return
        self.tree[node] = tree
        if isinstance(tree, Node):
            self.at.setdefault(tree, node)

    def _other(self, what: str) -> Refusal:
        return unproven(self.call, f"traced for every input it {what}")


def _groups(step: fx.Node) -> Any:
    """The last argument of a functional convolution."""
    return step.kwargs.get("groups", step.args[6] if len(step.args) > 6 else None)


def _literals(tree: Any) -> set[float]:
    """The numbers among arguments."""
    found = set[float]()
    fx.node.map_aggregate(tree, lambda leaf: found.add(leaf) if isinstance(leaf, (int, float)) else None)
    return found


def _name(seen: Node | Call) -> str:
    return f"{seen.path} ({type(seen.module).__name__})" if isinstance(seen, Call) else seen.name


for _operator in (f"__{name}__" for name in INPLACE_OPERATORS):
    setattr(StepProxy, _operator, in_place(_operator, getattr(operator, _operator)))


def _traced(steps: Trace) -> fx.Graph:
    """The graph of the module's forward. What tracing leaves behind in the modules' attributes is undone."""
    module, opened = steps.module, steps.opened
    before = [AttributeSnapshot(each) for each in {module: None, **dict.fromkeys(opened)}]
    tracer = StepTracer(steps)
    try:
        with torch.no_grad(), symbolic([module, *opened], steps.exchanged), steps.watch:
            graph = tracer.trace(module)
        if tracer.missing:  # code has gone on without
            raise Missing(tracer.missing)
        if tracer.caught:
            raise steps._other(CAUGHT)
        _in_order(module, graph)
        if any(not _same_items(now, then) for now, then in tracer.containers):
            raise steps._other("changes a list or dict that it was handed")
        for held in before:
            _require_nothing_kept(steps, held)
        return graph
    except Exception as error:  # a user's forward may raise anything on a proxy
        if tracer.missing:
            raise Missing(tracer.missing) from None
        if isinstance(error, Refusal):
            raise
        line = line_of(module, opened, error)
        raise Refusal(
            f"the forward of {type(module).__name__} cannot be rewritten: tracing it for every input stops {line}"
            f"({type(error).__name__}: {first_line(error)})",
            "a forward without branches on sizes or values would fold",
        ) from None
    finally:
        for held in before:
            held.restore()


def _in_order(module: nn.Module, graph: fx.Graph) -> None:
    """Put `*args` where it stands: fx prints it behind the arguments that go by keyword alone."""
    kinds = {name: each.kind for name, each in inspect.signature(module.forward).parameters.items()}
    given = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    by_keyword = next((node for name, node in given.items() if kinds.get(name) is inspect.Parameter.KEYWORD_ONLY), None)
    rest = next((node for name, node in given.items() if name.startswith("*") and name[1] != "*"), None)
    if by_keyword is not None and rest is not None:
        by_keyword.prepend(rest)


def _same_items(now: Any, then: Any) -> bool:
    if isinstance(now, dict):
        now, then = ([*each, *each.values()] for each in (now, then))
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))


def _require_nothing_kept(steps: Trace, before: AttributeSnapshot) -> None:
    """Refuse a forward that keeps on its module what it computes from the input: the trace does not show that."""
    for name, value in before.stored_since():
        if name.startswith("_tensor_constant") and before.module is steps.module and name not in before.values:
            steps.literals[name] = value
        else:
            kept = [leaf.node for _, leaf in leaves(value) if isinstance(leaf, fx.Proxy)]
            if any(node not in steps.tree or steps.tree[node] is not None for node in kept):
                raise steps._other(f"keeps a tensor on its module (self.{name})")


def entries(call: Call, opened: Collection[nn.Module]) -> Iterator[Node | Call]:
    """The operations of the call and of opened inner calls, and all other calls.

    Raises Refusal where the code does what no trace shows.
    """
    if GRADIENTS in call.control_flow:
        remedy = "a forward that does the same whether or not gradients are recorded, and does not ask, would fold"
        raise unproven(call, f"it {GRADIENTS}, and may compute something else where they are", remedy)
    unseen = [each for each in (CAUGHT, MISSING, SETS, SET) if each in call.control_flow]
    unseen += [LENT for each in (call, *call.events) if _lent(each)]
    if unseen:
        raise unproven(call, f"it {unseen[0]}")
    for event in call.events:
        if isinstance(event, Call):
            if event.module in opened:
                yield from entries(event, opened)
            elif any(not node.constant for node in nodes_in((event.args, event.kwargs))):
                yield event
        elif not event.constant and event.function not in _PARTS:
            yield event


_PARTS = (tuple_item, affine_part, None)  # no step of their own: entries of a tuple, scales of a norm, unknown tensors


def _lent(event: Node | Call) -> bool:
    return isinstance(event, Call) and LENT in event.control_flow


def parts(node: Node) -> Any:
    """The result of an operation: the node, its affine part, or the entries of the tuple that it returned."""
    if node.affine_part is not None:
        return node.affine_part
    if node.passthrough:
        return node.operands[0]
    if node.dtype is not None:
        return node
    found = {reader.args[1]: reader for reader in node.readers if reader.function is tuple_item}
    return [found.get(i) for i in range(max(found, default=-1) + 1)]


def foreign(node: Node) -> bool:
    """Whether it comes from nowhere in the record: out of a cache, for one."""
    return node.function is None and node.call is not None and not node.inputs


def varying(trees: Any) -> list[Node]:
    """The nodes in described trees that depend on the model's input, each once."""
    return distinct(node for tree in trees if tree is not None for node in nodes_in(tree) if not node.constant)


def distinct(nodes: Iterable[Node]) -> list[Node]:
    return list(dict.fromkeys(nodes))
