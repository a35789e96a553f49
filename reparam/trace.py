"""The proof that code may be rewritten: its symbolic trace, matched with what the record saw.

A record is true for one run. A symbolic trace of one module's forward holds for every input, because a proxy has no
size and no value that Python could decide on. Where the two show the same operations on the same tensors in the same
order, what was concluded from the record holds for the code, and the trace is the text in which it can be edited.
Only what is edited is traced: every inner module that is not concerned stays one call.

Record and trace are matched step by step while the trace is made, so a proxy knows which recorded tensor it stands
for. It tells its rank, and a parameter its value, as neither depends on the input; it never tells a size.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from reparam.arguments import LITERALS, arguments, unproven
from reparam.capture.bytecode import attempted, discarded, line_of, required, unpacked
from reparam.capture.graph import CAUGHT, Call, Node, nodes_in
from reparam.capture.ops import SHAPED_AS
from reparam.capture.snapshot import Attributes
from reparam.capture.tree import leaves
from reparam.entries import distinct, entries, foreign, parts, varying
from reparam.errors import Refusal, first_line
from reparam.rules import operation
from reparam.sizes import IMPORTED, Scope, scope, symbolic
from reparam.twins import Watch, contents

CHECKS = ("_assert", "assert")
_WRITES = ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")  # Python's own
_NOTHING = object()
_BRANCHES = 6  # in one forward: they are as many doublings
_GROUPED = ("conv1d", "conv2d", "conv3d")
_LOOKS = frozenset("size dim ndimension numel nelement is_floating_point stride get_device element_size type".split())


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
            except _Missing as found:
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
        groups = _groups(step) if operation(node.function) in _GROUPED else None  # type: ignore[arg-type]
        return any(argument not in self.tree for argument in step.all_input_nodes if argument is not groups)

    def overwrites(self, node: fx.Node) -> bool:
        """Whether a step gives its first argument a new value, and returns it (or nothing)."""
        called = getattr(node.target, "__name__", str(node.target))
        by_name = (called.endswith("_") and not called.endswith("__")) or called in _WRITES
        if node.op == "call_module" or not (by_name or node.kwargs.get("inplace") is True):
            return False
        before, after = self.tree.get(node.all_input_nodes[0], _NOTHING), self.tree.get(node)
        if isinstance(before, Node) and isinstance(after, Node):
            return (
                after.inplace
                and after.args[0] is before
                and "out" not in after.kwargs
                and after.memory == before.memory
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
        inputs = node.all_input_nodes[:1] if operation(node.target) in SHAPED_AS else node.all_input_nodes
        length = self._length(node)
        if length is not None:
            self.lengths[node] = length
        operands = varying(map(self.tree.get, inputs))
        if not operands:
            if not self.settled and any(map(self._absent, inputs)):
                raise self._other(f"calls {operation(node.target)} on an argument that was None")
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
        return node.op == "placeholder" and self.given.get(str(node.target).lstrip("*"), _NOTHING) is None

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
        name = operation(node.target)
        if node.op == "call_function" and node.target is getattr:
            return node.args[1] not in ("T", "mT", "H", "mH", "data", "real", "imag")
        return name in CHECKS or node.target in (len, list) or (node.op == "call_method" and name in _LOOKS)

    def _consume(self, node: fx.Node, operands: list[Node], seen: Node | Call | None) -> None:
        if isinstance(seen, Call):
            same = node.op == "call_module" and self.module.get_submodule(str(node.target)) is seen.module
            given, result = distinct(nodes_in((seen.args, seen.kwargs))), seen.result
            given = [operand for operand in given if not operand.constant]
            self.inner[node] = seen
        elif seen is not None:
            name = node.args[1] if node.target is getattr else operation(node.target)
            recorded = operation(seen.function)  # type: ignore[arg-type]
            same = node.op != "call_module" and (recorded in (name, f"r{name}") or name in SHAPED_AS)
            given, result = distinct(seen.operands), parts(seen)
            if any(argument not in self.tree for argument in node.all_input_nodes):
                given = [operand for operand in given if not foreign(operand)]
        else:
            raise self._other(f"goes on with {node.format_node()}")
        if not same or given != operands:
            raise self._other(f"calls {operation(node.target)} where {_name(seen)} ran")
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


class _Proxy(fx.Proxy):
    """A proxy that records item assignment, as fx's own does not, and answers what does not depend on the input."""

    tracer: _Tracer

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> Any:
        if name == "ndim" and (rank := self._rank()) is not None:
            return rank
        if name == "shape":
            known = self.tracer.value(self.node)
            if known is not None:
                return known.shape
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _own(self) -> torch.Tensor | None:
        """The parameter or buffer that this is, if it is one."""
        return self.tracer.held(self.node) if self.node.op == "get_attr" else None

    def _rank(self) -> int | None:
        known = self.tracer.value(self.node)
        return known.dim() if known is not None else self.tracer.steps.rank(self.node)

    def dim(self) -> Any:
        rank = self._rank()
        return rank if rank is not None else self.tracer.create_proxy("call_method", "dim", (self,), {})

    def size(self, *args: Any, **kwargs: Any) -> Any:
        known = self.tracer.value(self.node)
        if known is not None:
            return known.size(*args, **kwargs)
        return self.tracer.create_proxy("call_method", "size", (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def __hash__(self) -> int:
        if self.node not in self.tracer.steps.tree:
            raise fx.proxy.TraceError("a number that depends on the size of the input is looked up in a dict or set")
        return id(self)

    def __repr__(self) -> str:
        frame = inspect.currentframe()
        if frame is not None and not discarded(frame.f_back):
            raise fx.proxy.TraceError("the text of a tensor, or of a number that depends on its size, is used")
        return super().__repr__()

    def __len__(self) -> int:
        if (length := self.tracer.steps.lengths.get(self.node)) is None:
            self._missed("len")
            return super().__len__()
        return length

    def __iter__(self) -> Any:
        length = self.tracer.steps.lengths.get(self.node)
        frame = inspect.currentframe()
        if length is None and frame is not None and frame.f_back is not None:
            length = unpacked(frame.f_back)
        return super().__iter__() if length is None else iter([self[i] for i in range(length)])

    def __bool__(self) -> bool:
        if (own := self._own()) is not None:
            return bool(own)
        frame = inspect.currentframe()
        if frame is not None and frame.f_back is not None and (needed := required(frame.f_back)) is not None:
            holds = self if needed else self.tracer.create_proxy("call_function", operator.not_, (self,), {})
            what = f"{type(self.tracer.root).__name__} raises an exception for such an input"
            self.tracer.create_proxy("call_function", torch._assert, (holds, what), {})
            return needed
        way = self.tracer.steps.turn() if self.node not in self.tracer.steps.tree else None
        return super().__bool__() if way is None else way

    def __float__(self) -> float:
        self._missed("float")
        return float(self.tracer.held(self.node))

    def __int__(self) -> int:
        self._missed("int")
        return int(self.tracer.held(self.node))

    def __round__(self, *digits: int) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, *digits), {})

    def _missed(self, name: str) -> None:
        """Note that the code which is running would go on if `name` was another function."""
        frame = inspect.currentframe()
        caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
        if (missing := scope(name, caller)) is not None and self.tracer.counts(self, name):
            self.tracer.missing.add(missing)


def _in_place(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`x += y` as a step of its own: fx would make it `x = x + y`, and nobody else who holds x would see the sum."""
    without = getattr(operator, name.replace("__i", "__", 1))

    def write(self: _Proxy, other: Any) -> Any:
        known = self.node in self.tracer.steps.tree  # else it is a size, and sizes are never written to
        return self.tracer.create_proxy("call_function", function if known else without, (self, other), {})

    return write


for _name_of_write in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"):
    setattr(_Proxy, _name_of_write, _in_place(_name_of_write, getattr(operator, _name_of_write)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, steps: Trace) -> None:
        super().__init__(autowrap_modules=(), autowrap_functions=IMPORTED)  # type: ignore[arg-type]
        self.steps = steps
        self.holders: dict[fx.Node, list[fx.Proxy]] = defaultdict(list)
        self.values: dict[fx.Node, torch.Tensor | None] = {}
        self.containers: list[tuple[Any, Any]] = []  # made of arguments, and as they were then
        self.caught = False  # whether a step runs where the code goes on after an exception
        self.missing: set[Scope] = set()  # where another function would have made a step of a size

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.steps.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        proxy = _Proxy(node, self)
        self.holders[node].append(proxy)
        return proxy

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.caught = self.caught or attempted(inspect.currentframe(), "_traced")
        self.steps.match(node)
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Mapping) and type(a) is not dict:  # fx would make a plain dict of it
            made = type(a)(**a)
            if list(made.items()) != list(a.items()):
                raise TypeError(f"a {type(a).__name__} cannot be made of its items")
            return self.create_node("call_function", type(a), (), {key: self.create_arg(a[key]) for key in a})
        return super().create_arg(a)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        function, arguments = super().create_args_for_root(*args, **kwargs)
        if self.steps.settled or self.steps.shaped:
            arguments = [self._spelled(each) if isinstance(each, _Proxy) else each for each in arguments]
        return function, arguments

    def _spelled(self, argument: _Proxy) -> Any:
        target = str(argument.node.target)
        return self._written(argument, self.steps.given[target.lstrip("*")], own=target.startswith("*"))

    def _written(self, argument: _Proxy, value: Any, own: bool = False, inside: bool = False) -> Any:
        """An argument as what it always is: a literal, or a container; the code checks that it is.

        `inside` a container whose shape alone is always the same, a literal may be another one.

        A container is `own` where every call makes a new one; nobody sees it if the forward changes that.
        """
        if type(value) in LITERALS and (self.steps.settled or (inside and value is None)):
            same = operator.is_ if value is None else operator.eq
            self._check(self.create_proxy("call_function", same, (argument, value), {}))
            return value
        if type(value) not in (tuple, list, dict):
            return argument
        look, shape = (list, list(value)) if isinstance(value, dict) else (len, len(value))
        found = self.create_proxy("call_function", look, (argument,), {})
        self._check(self.create_proxy("call_function", operator.eq, (found, shape), {}))
        keys = value if isinstance(value, dict) else range(len(value))
        items = [self._written(argument[key], value[key], inside=True) for key in keys]
        written = dict(zip(value, items, strict=True)) if isinstance(value, dict) else type(value)(items)
        if not own:
            self.containers.append((written, copy.copy(written)))
        return written

    def _check(self, condition: fx.Proxy) -> None:
        path = self.steps.call.path or "the model"
        message = f"{path} was converted for calls with other arguments than these"
        self.create_proxy("call_function", torch._assert, (condition, message), {})

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
        if args and isinstance(args[0], _Proxy) and self.steps.overwrites(proxy.node):
            holders = self.holders.pop(args[0].node)
            for holder in holders:
                holder.node = proxy.node  # whoever holds the tensor reads from now on what was written
            self.holders[proxy.node] += holders
        return proxy

    def counts(self, proxy: fx.Proxy, name: str) -> bool:
        """Whether int, float or len of it is a number that depends on the size of the input."""
        known = proxy.node in self.steps.tree
        return known == (name == "len") and proxy.node not in self.steps.lengths

    def number(self, proxy: fx.Proxy, function: Callable[[Any], Any]) -> Any:
        """int, float or len of a proxy: a step, if it is such a number."""
        if self.counts(proxy, function.__name__):
            return self.create_proxy("call_function", function, (proxy,), {})
        return function(proxy)

    def value(self, node: fx.Node) -> torch.Tensor | None:
        """What a step computes from parameters, buffers and literals alone; None for any other step."""
        waiting = [node]  # no function that calls itself: a sum of a thousand constants goes a thousand steps back
        while waiting:
            each = waiting[-1]
            unknown = [operand for operand in each.all_input_nodes if operand not in self.values]
            if unknown and each not in self.values and self._computes(each):
                waiting += unknown
                continue
            waiting.pop()
            if each not in self.values:
                self.values[each] = self._evaluated(each)
        return self.values[node]

    def _computes(self, node: fx.Node) -> bool:
        """Whether a step computes something from constants."""
        return node.op in ("call_function", "call_method") and self.steps.tree.get(node, _NOTHING) is None

    def _evaluated(self, node: fx.Node) -> torch.Tensor | None:
        """The value of a step; what it reads is in `values`."""
        if node.op == "get_attr":
            return self.held(node)
        if not self._computes(node):
            return None
        args: Any = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if self.steps.overwrites(node):
            args = (args[0].clone(), *args[1:])
        function: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
        result = function(*args, **kwargs)
        result = args[0] if result is None else result  # an assignment
        return result if isinstance(result, torch.Tensor) else None

    def held(self, node: fx.Node) -> torch.Tensor:
        """The parameter or buffer that a step reads."""
        if node.op != "get_attr":
            raise TypeError("a number that depends on the input is read out of a tensor")
        path, _, name = str(node.target).rpartition(".")
        holder = self.root.get_submodule(path)
        # Not by getattr: while tracing, that gives proxies.
        held: torch.Tensor = {**vars(holder), **holder._parameters, **holder._buffers}[name]
        return held


class _Missing(Exception):
    """A trace in which functions of sizes were missing."""

    def __init__(self, scopes: Collection[Scope]) -> None:
        super().__init__()
        self.scopes = frozenset(scopes)


def _traced(steps: Trace) -> fx.Graph:
    """The graph of the module's forward. What tracing leaves behind in the modules' attributes is undone."""
    module, opened = steps.module, steps.opened
    before = [Attributes(each) for each in {module: None, **dict.fromkeys(opened)}]
    tracer = _Tracer(steps)
    try:
        with torch.no_grad(), symbolic([module, *opened], steps.exchanged), steps.watch:
            graph = tracer.trace(module)
        if tracer.missing:  # code has gone on without
            raise _Missing(tracer.missing)
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
            raise _Missing(tracer.missing) from None
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


def _require_nothing_kept(steps: Trace, before: Attributes) -> None:
    """Refuse a forward that keeps on its module what it computes from the input: the trace does not show that."""
    for name, value in before.kept():
        if name.startswith("_tensor_constant") and before.module is steps.module and name not in before.values:
            steps.literals[name] = value
        else:
            kept = [leaf.node for _, leaf in leaves(value) if isinstance(leaf, fx.Proxy)]
            if any(node not in steps.tree or steps.tree[node] is not None for node in kept):
                raise steps._other(f"keeps a tensor on its module (self.{name})")
