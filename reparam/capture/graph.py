"""What a run was, written down: `Node` is one operation, `Call` one call of a module, `Record` the whole run.

A record is for analysis. Nothing here computes a tensor, and the nodes hold no values: only shapes, dtypes, strides,
and the arguments of each operation with nodes in place of tensors. The tensors of the model itself are the exception;
their nodes refer to them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from reparam.capture.norms import affine_part
from reparam.capture.ops import op_name
from reparam.capture.symbolic import Decision, is_symbolic
from reparam.capture.tree import field_values

Spelling = tuple[Callable[..., Any] | None, tuple[Any, ...], dict[str, Any]]


@dataclass(eq=False, slots=True)
class Node:
    """One operation of the run and the tensor that it computed; or a tensor that no operation computed.

    function: None for an input of the model, a tensor of the model and a tensor of unknown origin.
    op: the name of the operation in the table of `ops.py`, whatever its spelling; "" where there is no function.
    args, kwargs: of the function, with nodes in place of tensors. inputs: the nodes among them.
    spelling: the call as the code made it, where that is another one: with numbers that depend on the input, or with
        the scale and shift of a norm. sized: computed with such a number, perhaps by an operation before it.
    call: the module call whose code ran it; None outside any.
    tensor: the parameter, buffer or plain attribute of the model that it is; `name` is its qualified name.
    constant: computed from tensors of the model and literals alone.
    inplace: the function wrote this value over its first argument. overwritten: a later operation writes over it.
    passthrough: the function returned its input as it was (a cast to the dtype it has). Readers read the input.
    size_read, layout_read: code reads its size, or its strides.
    storage: equal for tensors that share memory; 0 where that is not known. strides: in that memory.
    readers: the operations that read it.
    """

    name: str
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: Call | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    tensor: Tensor | None = None
    constant: bool = False
    inplace: bool = False
    overwritten: bool = False
    passthrough: bool = False
    size_read: bool = False
    layout_read: bool = False
    storage: int = 0
    strides: tuple[int, ...] = ()
    inputs: tuple[Node, ...] = ()
    readers: list[Node] = field(default_factory=list)
    spelling: Spelling | None = None
    sized: bool = False
    op: str = field(init=False)

    def __post_init__(self) -> None:
        self.op = "" if self.function is None else op_name(self.function)

    def __repr__(self) -> str:
        return self.name

    @property
    def spelled(self) -> Spelling:
        """Function, arguments and keyword arguments as the code gave them."""
        return self.spelling or (self.function, self.args, self.kwargs)

    @property
    def resized(self) -> bool:
        """Whether its arguments hold a number that depends on the input."""
        return self.spelling is not None and is_symbolic(self.spelling[1:])

    @property
    def invariant(self) -> bool:
        """Whether it is the same for every input: no size plays a part either."""
        return self.constant and not self.sized

    @property
    def operands(self) -> tuple[Node, ...]:
        """The inputs that depend on the model's input."""
        return tuple(node for node in self.inputs if not node.constant)

    @property
    def affine_part(self) -> Node | None:
        """The scale and shift that the same call of the user's code computes, if it is a normalisation with any."""
        parts = (reader for reader in self.readers if reader.function is affine_part and reader.args[0] is self)
        return next(parts, None)

    @property
    def path(self) -> str:
        """The module whose forward computed it."""
        return (self.call.path if self.call is not None else "") or "the model itself"

    @property
    def where(self) -> str:
        """The module whose forward computed it, and by which operation."""
        return f"{self.path} ({self.name.rpartition('.')[2]})"


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module.

    path: the qualified name of the module. parent: the call whose code made this one; None for the root's.
    events: the operations of its own code and the calls that it made, in order.
    args, kwargs, result: what went in and came out, with nodes in place of tensors.
    failed: it ended with an exception, which code around it has caught.
    lent: other tensors stood in for its parameters or buffers.
    changes: its code changed attributes of modules, or the containers that it was handed.
    asked: the tensors whose dtype or device its code asked for, by what it was told.
    """

    module: nn.Module
    path: str
    parent: Call | None
    events: list[Node | Call] = field(default_factory=list)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    lent: bool = False
    failed: bool = False
    changes: bool = False
    asked: dict[Any, Node] = field(default_factory=dict)

    def arguments(self) -> Mapping[str, Any]:
        """What its forward was handed, by name, with the defaults for what was not. Raises TypeError, ValueError."""
        bound = inspect.signature(self.module.forward).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def nodes(self) -> Iterator[Node]:
        """The operations of its code and of all calls inside it, in order."""
        for event in self.events:
            if isinstance(event, Call):
                yield from event.nodes()
            elif not event.passthrough:
                yield event

    def stack(self, last: Call | None = None) -> Iterator[Call]:
        """This call and its callers, innermost first; as far as `last`, if given."""
        call: Call | None = self
        while call is not None:
            yield call
            call = None if call is last else call.parent


@dataclass(eq=False)
class Record:
    """One run of a model.

    nodes, calls: all operations and all module calls, in order; the root's call is the first.
    outputs: the nodes whose tensors somebody may read after the run: what the model returned or stored.
    barriers: the nodes that no fold may lead through: what goes in and out of hooked modules, and the opaque ones.
    opaque: the nodes that no fold may compute: writes that other tensors see, and what a call computes from tensors
        that stand in for the parameters of its module.
    hooked: the modules with hooks of the user's.
    writes: by storage, the operations that write to it, in order; also those that do so at other sizes only.
    inspectors: by the id of a tensor of the model, the modules whose code asks for its size, dtype or device.
    flags: the parameters of the model, other than tensors, by which its code may go.
    decisions: where numbers that depend on the input became plain values, in order.
    witnesses: records of other runs (see `witness`).
    sizes_asked: code has asked for a size that depends on the input.
    error: the exception that ended the run, if one did.
    """

    nodes: list[Node]
    calls: list[Call]
    outputs: list[Node]
    barriers: set[Node]
    hooked: set[nn.Module]
    writes: Mapping[int, Sequence[Node]] = field(default_factory=dict)
    opaque: frozenset[Node] = frozenset()
    inspectors: Mapping[int, Collection[nn.Module]] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    decisions: list[Decision] = field(default_factory=list)
    witnesses: list[Record] = field(default_factory=list)
    error: str = ""
    sizes_asked: bool = False

    def readers(self) -> dict[int, list[Node]]:
        """The nodes that read each tensor of the model, by the tensor's id."""
        readers: dict[int, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for operand in node.inputs:
                if operand.tensor is not None:
                    readers[id(operand.tensor)].append(node)
        return readers


def nodes_in(tree: Any) -> list[Node]:
    """Every node in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(tree, Node):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = list(field_values(tree).values())
    return [node for item in tree for node in nodes_in(item)] if isinstance(tree, (tuple, list)) else []


def tuple_item(values: Any, index: int) -> Any:
    """The function of nodes that are items of a tuple which an operation returned."""
    return values[index]


tuple_item.__name__ = "getitem"


def used_only_by(node: Node, users: Collection[Node]) -> bool:
    """Whether a node is one of `users`, or a constant that they alone read, directly or through other constants."""
    pending, visited = [node], {node}
    while pending:
        current = pending.pop()
        if current in users:
            continue
        if not current.constant:
            return False
        readers = [reader for reader in current.readers if reader not in visited]
        visited.update(readers)
        pending += readers
    return True


def common_call(nodes: Sequence[Node]) -> Call | None:
    """The innermost call that all nodes are inside of; None where one is outside any."""
    if any(node.call is None for node in nodes):
        return None
    stacks = [list(node.call.stack()) for node in nodes if node.call]
    return next((call for call in stacks[0] if all(call in others for others in stacks[1:])), None)


def calls_around(node: Node, last: Call | None) -> Iterator[Call]:
    """The calls that a node is inside of, innermost first, as far as `last`."""
    yield from node.call.stack(last) if node.call else ()


def model_tensors(nodes: Iterable[Node]) -> list[Tensor]:
    """The tensors of the model that operations read, directly or through constants computed from them, each once."""
    pending, visited = [operand for node in nodes for operand in node.inputs], dict[Node, None]()
    while pending:
        node = pending.pop()
        if node not in visited and (node.constant or node.tensor is not None):
            visited[node] = None
            pending += node.inputs
    return [node.tensor for node in visited if node.tensor is not None]


def has_user_code(module: nn.Module) -> bool:
    """Whether the module's forward is the user's. Those of torch's own layers run the same at every size."""
    kind = type_before_parametrizations(module)
    return not kind.__module__.startswith("torch.nn.") or isinstance(module, nn.Sequential)


_PLAIN_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_torch_layer(module: nn.Module) -> bool:
    """Whether the module is of a class of torch that is no plain container, or of a subclass."""
    kinds = type(module).__mro__
    return any(kind.__module__.startswith("torch.nn.") and kind not in _PLAIN_CONTAINERS for kind in kinds)
