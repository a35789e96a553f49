"""The proof that code may be rewritten: its symbolic trace, matched with what the record saw.

A record is true for one run. A symbolic trace of one module's forward holds for every input, because a proxy has no
size and no value that Python could decide on. Where the two show the same operations on the same tensors in the same
order, what was concluded from the record holds for the code, and the trace is the text in which it can be edited.
Only what is edited is traced: every inner module that is not concerned stays one call.

Record and trace are matched step by step while the trace is made, so a proxy knows which recorded tensor it stands
for. It tells its rank, and a parameter its value, as neither depends on the input; it never tells a size.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import math
import operator
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from reparam.capture import SHAPED_AS, Call, Node, entry, nodes_in
from reparam.errors import Refusal
from reparam.precision import leaves
from reparam.rules import operation
from reparam.state import Attributes

CHECKS = ("_assert", "assert")
_GROUPED = ("conv1d", "conv2d", "conv3d")
_LOOKS = frozenset("size dim ndimension numel nelement is_floating_point stride get_device element_size type".split())


class Trace:
    """The traced forward of one call; `tree[n]` is what fx node n was in the record, `at[node]` the way back.

    literals: tensors written out in the code, under the names of attributes that the graph reads them from.

    Raises Refusal where the forward cannot be traced or is not what ran.
    """

    def __init__(self, call: Call, opened: Collection[nn.Module]) -> None:
        self.call = call
        self.module = call.module
        self.opened = opened
        self.tree: dict[fx.Node, Any] = {}
        self.at: dict[Node, fx.Node] = {}
        self.inner: dict[fx.Node, Call] = {}
        self.lengths: dict[fx.Node, int] = {}
        self.literals: dict[str, torch.Tensor] = {}
        self._given = self._arguments()
        self._left = _entries(call, opened)
        self.graph = _traced(self)

    def sized(self, node: Node) -> bool:
        """Whether the operation takes an argument that depends on the size of the input.

        The groups of a convolution do not, however they are computed: they are its channels over those of its kernel.
        """
        step = self.at[node]
        groups = _groups(step) if operation(node.function) in _GROUPED else None  # type: ignore[arg-type]
        return any(argument not in self.tree for argument in step.all_input_nodes if argument is not groups)

    def rank(self, node: fx.Node) -> int | None:
        """The number of dimensions of the tensor that a step computes, where it is one that was recorded."""
        seen = self.tree.get(node)
        return len(seen.shape) if isinstance(seen, Node) else None

    def match(self, node: fx.Node) -> None:
        """The next step of the trace, which has to be the next one of the record."""
        if node.op == "placeholder":
            self._is(node, self._given.get(str(node.target).lstrip("*")))
        elif node.op == "get_attr":
            self.tree[node] = None
        elif node.op == "output":
            if _nodes(map(self.tree.get, node.all_input_nodes)) != _distinct(nodes_in(self.call.result)):
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
        operands = _nodes(map(self.tree.get, inputs))
        if not operands:
            if all(argument in self.tree for argument in inputs):
                self.tree[node] = None  # computed from constants alone
            return
        source = self.tree.get(inputs[0])
        if node.target is operator.getitem and not isinstance(source, Node):
            self._is(node, source[node.args[1]])  # type: ignore[index]
        elif not self._looks(node):
            self._consume(node, operands, next(self._left, None))

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
        return name in CHECKS or (node.op == "call_method" and name in _LOOKS)

    def _consume(self, node: fx.Node, operands: list[Node], seen: Node | Call | None) -> None:
        if isinstance(seen, Call):
            same = node.op == "call_module" and self.module.get_submodule(str(node.target)) is seen.module
            given, result = _distinct(nodes_in((seen.args, seen.kwargs))), seen.result
            given = [operand for operand in given if not operand.constant]
            self.inner[node] = seen
        elif seen is not None:
            name = node.args[1] if node.target is getattr else operation(node.target)
            recorded = operation(seen.function)  # type: ignore[arg-type]
            same = node.op != "call_module" and (recorded in (name, f"r{name}") or name in SHAPED_AS)
            given, result = _distinct(seen.operands), _parts(seen)
        else:
            raise self._other(f"goes on with {node.format_node()}")
        if not same or given != operands:
            raise self._other(f"calls {operation(node.target)} where {_name(seen)} ran")
        self._is(node, result)
        if isinstance(seen, Node):
            self.at[seen] = node

    def _is(self, node: fx.Node, tree: Any) -> None:
        if not _nodes([tree]):
            return
        self.tree[node] = tree
        if isinstance(tree, Node):
            self.at.setdefault(tree, node)

    def _arguments(self) -> dict[str, Any]:
        try:
            bound = inspect.signature(self.module.forward).bind(*self.call.args, **self.call.kwargs)
        except TypeError as error:
            raise self._other(f"is called in another way ({error})") from None
        return bound.arguments

    def _other(self, what: str) -> Refusal:
        path = self.call.path or "the model itself"
        kind = type(self.module).__name__
        return Refusal(
            f"the forward of {path} ({kind}) cannot be rewritten: traced for every input it {what}",
            "a forward without branches on sizes or values would fold",
        )


def _groups(step: fx.Node) -> Any:
    """The last argument of a functional convolution."""
    return step.kwargs.get("groups", step.args[6] if len(step.args) > 6 else None)


def _entries(call: Call, opened: Collection[nn.Module]) -> Iterator[Node | Call]:
    """What a trace shows one step each: the operations of the call and of opened inner calls, and all other calls."""
    for event in call.events:
        if isinstance(event, Call):
            if event.module in opened:
                yield from _entries(event, opened)
            elif any(not node.constant for node in nodes_in((event.args, event.kwargs))):
                yield event
        elif not event.constant and event.function is not entry and event.function is not None:
            yield event


def _parts(node: Node) -> Any:
    """The result of an operation: the node, or the entries of the tuple that it returned."""
    if node.same:
        return node.operands[0]
    if node.dtype is not None:
        return node
    parts = {reader.args[1]: reader for reader in node.readers if reader.function is entry}
    return [parts.get(i) for i in range(max(parts, default=-1) + 1)]


def _nodes(trees: Any) -> list[Node]:
    return _distinct(node for tree in trees if tree is not None for node in nodes_in(tree) if not node.constant)


def _distinct(nodes: Any) -> list[Node]:
    return list(dict.fromkeys(nodes))


def _name(seen: Node | Call) -> str:
    return f"{seen.path} ({type(seen.module).__name__})" if isinstance(seen, Call) else seen.name


class _Proxy(fx.Proxy):
    """A proxy that records item assignment, as fx's own does not, and answers what does not depend on the input."""

    tracer: _Tracer

    def __setitem__(self, index: Any, value: Any) -> None:
        # Later uses read the assigned tensor.
        self.node = self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {}).node

    def __getattr__(self, name: str) -> Any:
        if name == "ndim" and (rank := self._rank()) is not None:
            return rank
        if name == "shape":
            own = self._own()
            if own is not None:
                return own.shape
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _own(self) -> torch.Tensor | None:
        """The parameter or buffer that this is, if it is one."""
        return self.tracer.held(self.node) if self.node.op == "get_attr" else None

    def _rank(self) -> int | None:
        own = self._own()
        return own.dim() if own is not None else self.tracer.steps.rank(self.node)

    def dim(self) -> Any:
        rank = self._rank()
        return rank if rank is not None else self.tracer.create_proxy("call_method", "dim", (self,), {})

    def size(self, *args: Any, **kwargs: Any) -> Any:
        own = self._own()
        if own is not None:
            return own.size(*args, **kwargs)
        return self.tracer.create_proxy("call_method", "size", (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def __len__(self) -> int:
        length = self.tracer.steps.lengths.get(self.node)
        return super().__len__() if length is None else length

    def __iter__(self) -> Any:
        length = self.tracer.steps.lengths.get(self.node)
        frame = inspect.currentframe()
        if length is None and frame is not None and frame.f_back is not None:
            length = _unpacked(frame.f_back)
        return super().__iter__() if length is None else iter([self[i] for i in range(length)])

    def __bool__(self) -> bool:
        if (own := self._own()) is not None:
            return bool(own)
        frame = inspect.currentframe()
        if frame is not None and frame.f_back is not None and _asserts(frame.f_back):
            self.tracer.create_proxy("call_function", torch._assert, (self, ""), {})
            return True
        return super().__bool__()

    def __float__(self) -> float:
        return float(self.tracer.held(self.node))

    def __int__(self) -> int:
        return int(self.tracer.held(self.node))


def _in_place(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`x += y` as a step of its own: fx would make it `x = x + y`, and nobody else who holds x would see the sum."""
    without = getattr(operator, name.replace("__i", "__", 1))

    def write(self: _Proxy, other: Any) -> Any:
        known = self.node in self.tracer.steps.tree  # else it is a size, and sizes are never written to
        return self.tracer.create_proxy("call_function", function if known else without, (self, other), {})

    return write


for _name_of_write in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"):
    setattr(_Proxy, _name_of_write, _in_place(_name_of_write, getattr(operator, _name_of_write)))


def _unpacked(frame: FrameType) -> int | None:
    """The number of names that a frame is just unpacking something into, as in `a, b = x.chunk(2, 1)`."""
    step = next((step for step in dis.get_instructions(frame.f_code) if step.offset == frame.f_lasti), None)
    return int(step.argval) if step is not None and step.opname == "UNPACK_SEQUENCE" else None


_NAMED = {"LOAD_ASSERTION_ERROR": "AssertionError"}  # by its own instruction up to Python 3.13


def _asserts(frame: FrameType) -> bool:
    """Whether the condition that a frame is looking at is that of a plain `assert condition`."""
    after = [step for step in dis.get_instructions(frame.f_code) if step.offset > frame.f_lasti]
    steps = (step for step in after if step.opname not in ("TO_BOOL", "CACHE", "NOT_TAKEN"))
    following = next((step for step in steps if not step.opname.startswith("POP_JUMP")), None)
    return following is not None and "AssertionError" in (following.argval, _NAMED.get(following.opname))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, steps: Trace) -> None:
        super().__init__(autowrap_modules=(), autowrap_functions=_IMPORTED)  # type: ignore[arg-type]
        self.steps = steps

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.steps.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.steps.match(node)
        return node

    def held(self, node: fx.Node) -> torch.Tensor:
        """The parameter or buffer that a step reads."""
        if node.op != "get_attr":
            raise TypeError("a number that depends on the input is read out of a tensor")
        path, _, name = str(node.target).rpartition(".")
        holder = self.root.get_submodule(path)
        # Not by getattr: while tracing, that gives proxies.
        held: torch.Tensor = {**vars(holder), **holder._parameters, **holder._buffers}[name]
        return held


# What Python itself does with sizes. fx can wrap all of `math`, but patching it anew for every trace takes longer than
# the trace.
_IMPORTED = (math.ceil, math.floor, math.sqrt)  # also where user code imports them by name
_ON_SIZES = {builtins: ("max", "min"), math: ("ceil", "floor", "sqrt", "prod")}


@contextmanager
def _symbolic_sizes() -> Iterator[None]:
    """Within it these functions of sizes are steps of the trace; Python's own would ask for the numbers."""
    originals = [(module, name, getattr(module, name)) for module, names in _ON_SIZES.items() for name in names]
    for module, name, function in originals:
        setattr(module, name, _symbolic(function))
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def _symbolic(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        proxy = next((argument for argument in args if isinstance(argument, fx.Proxy)), None)
        if proxy is None or (len(args) < 2 and function.__module__ == "builtins"):  # of a sequence
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return traced


def _traced(steps: Trace) -> fx.Graph:
    """The graph of the module's forward. What tracing leaves behind in the modules' attributes is undone."""
    module, opened = steps.module, steps.opened
    before = [Attributes(each) for each in {module: None, **dict.fromkeys(opened)}]
    try:
        with torch.no_grad(), _symbolic_sizes():
            graph = _Tracer(steps).trace(module)
        for held in before:
            _require_nothing_kept(steps, held)
        return graph
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001 - a user's forward may raise anything on a proxy
        line = _line_of(module, opened, error)
        raise Refusal(
            f"the forward of {type(module).__name__} cannot be rewritten: tracing it for every input stops {line}"
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})",
            "a forward without branches on sizes or values would fold",
        ) from None
    finally:
        for held in before:
            held.restore()


def _require_nothing_kept(steps: Trace, before: Attributes) -> None:
    """Refuse a forward that keeps on its module what it computes from the input: the trace does not show that."""
    for name, value in before.kept():
        if name.startswith("_tensor_constant") and before.module is steps.module and name not in before.values:
            steps.literals[name] = value
        else:
            kept = [leaf.node for _, leaf in leaves(value) if isinstance(leaf, fx.Proxy)]
            if any(node not in steps.tree or steps.tree[node] is not None for node in kept):
                raise steps._other(f"keeps a tensor on its module (self.{name})")


def _line_of(module: nn.Module, opened: Collection[nn.Module], error: Exception) -> str:
    """Where in the user's forward tracing stopped."""
    files = {inspect.getsourcefile(type(each)) for each in (module, *opened) if _has_source(each)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not frames:
        return ""
    return f"at line {frames[-1].lineno} of {frames[-1].filename}: `{frames[-1].line}` "


def _has_source(module: nn.Module) -> bool:
    try:
        return inspect.getsourcefile(type(module)) is not None
    except TypeError:
        return False


def user_code(module: nn.Module) -> bool:
    """Whether the module's forward is not torch's own: torch's operations do the same at every size."""
    return not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.Sequential)
