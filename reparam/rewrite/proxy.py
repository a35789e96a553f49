"""Proxies of a trace, and the tracer that makes them.

A proxy answers what does not depend on the input, such as its number of dimensions. It records item assignment and
writes in place as steps, which proxies of fx do not.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from reparam.capture.bytecode import attempted, discarded, required, unpacked
from reparam.capture.process import ThreadTracer
from reparam.rewrite.signature import LITERALS
from reparam.rewrite.size_functions import IMPORTED, Scope, scope

if TYPE_CHECKING:
    from reparam.rewrite.trace import Trace

NOTHING = object()


class StepProxy(fx.Proxy):
    """A proxy that records item assignment, as fx's own does not, and answers what does not depend on the input."""

    tracer: StepTracer

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


def in_place(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`x += y` as a step of its own: fx would make it `x = x + y`, and nobody else who holds x would see the sum."""
    without = getattr(operator, name.replace("__i", "__", 1))

    def write(self: StepProxy, other: Any) -> Any:
        known = self.node in self.tracer.steps.tree  # else it is a size, and sizes are never written to
        return self.tracer.create_proxy("call_function", function if known else without, (self, other), {})

    return write


class StepTracer(ThreadTracer):
    proxy_buffer_attributes = True

    def __init__(self, steps: Trace) -> None:
        super().__init__(autowrap_modules=(), autowrap_functions=IMPORTED)
        self.steps = steps
        self.holders: dict[fx.Node, list[fx.Proxy]] = defaultdict(list)
        self.values: dict[fx.Node, torch.Tensor | None] = {}
        self.containers: list[tuple[Any, Any]] = []  # made of arguments, and as they were then
        self.caught = False  # whether a step runs where the code goes on after an exception
        self.missing: set[Scope] = set()  # where another function would have made a step of a size

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.steps.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        proxy = StepProxy(node, self)
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
            arguments = [self._spelled(each) if isinstance(each, StepProxy) else each for each in arguments]
        return function, arguments

    def _spelled(self, argument: StepProxy) -> Any:
        target = str(argument.node.target)
        return self._written(argument, self.steps.given[target.lstrip("*")], own=target.startswith("*"))

    def _written(self, argument: StepProxy, value: Any, own: bool = False, inside: bool = False) -> Any:
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
        if args and isinstance(args[0], StepProxy) and self.steps.overwrites(proxy.node):
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
        return node.op in ("call_function", "call_method") and self.steps.tree.get(node, NOTHING) is None

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


class Missing(Exception):
    """A trace in which functions of sizes were missing."""

    def __init__(self, scopes: Collection[Scope]) -> None:
        super().__init__()
        self.scopes = frozenset(scopes)
