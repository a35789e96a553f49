"""TODO."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.norms import affine_part
from reparam.capture.ops import operation

# What the control flow of a module's code may depend on, so that it may differ for another input.
SIZE = "reads the size of a tensor"
READ = "reads a number out of a tensor"
GIVEN = "is called with a number"
RETURNED = "gets a number, a flag or a collection from a module that it calls"
MISSING = "asks for a tensor that a module may not return for every input"
ALIASED = "writes to the result of `contiguous`, which is its input or a copy, depending on the input"
CAUGHT = "catches an exception that may depend on the input"
GRADIENTS = "asks whether gradients are recorded"
LENT = "is called with other tensors in place of its parameters or buffers"
SETS = "sets attributes of other modules"
SET = "has attributes that the code of another module sets"


@dataclass(eq=False, slots=True)
class Node:
    """One tensor computed (or given) during the run; compared by identity.

    function: what computed it, or None for an input of the model and for a tensor of unknown origin.
    op: the name of the operation in the table of `ops.py`, whatever its spelling; "" where there is no function.
    tensor: the parameter, buffer or plain attribute that it is, else None; `name` is its qualified name.
    constant: computed from such tensors and literals alone.
    written: some later operation overwrites the memory of this value.
    inplace: this is the new value of its first argument, which it overwrote.
    same: this is its input itself, returned as it came in (a cast to the dtype it has): later readers read that.
    measured: code has asked for its size; laid: for how it lies in memory.
    memory: what it shares with the tensors that are views of it, or of which it is one; strides: how it lies there.
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
    written: bool = False
    inplace: bool = False
    same: bool = False
    measured: bool = False
    laid: bool = False
    memory: int = 0
    strides: tuple[int, ...] = ()
    inputs: tuple[Node, ...] = ()
    readers: list[Node] = field(default_factory=list)
    op: str = field(init=False)

    def __post_init__(self) -> None:
        self.op = "" if self.function is None else operation(self.function)

    def __repr__(self) -> str:
        return self.name

    @property
    def operands(self) -> tuple[Node, ...]:
        """The inputs that depend on the model's input."""
        return tuple(node for node in self.inputs if not node.constant)

    @property
    def affine_part(self) -> Node | None:
        """The other part of the step of code that this is, where it is a normalisation with a scale and shift."""
        return next((reader for reader in self.readers if reader.function is affine_part), None)

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
    """One call of a module: `events` are the nodes computed by its own code and the calls it made, in order.

    args, kwargs and result are what went in and came out, with nodes where tensors were.
    control_flow: what that of its own code may depend on (SIZE, READ, ...). Where it is empty, the code runs the same
    operations for every input.
    """

    module: nn.Module
    path: str
    parent: Call | None
    events: list[Node | Call] = field(default_factory=list)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    control_flow: set[str] = field(default_factory=set)

    def nodes(self) -> Iterator[Node]:
        """Every node computed inside, in order."""
        for event in self.events:
            if isinstance(event, Call):
                yield from event.nodes()
            elif not event.same:
                yield event

    def inner(self) -> Iterator[Call]:
        """Every call made inside, at any depth."""
        for event in self.events:
            if isinstance(event, Call):
                yield event
                yield from event.inner()

    def above(self) -> Iterator[Call]:
        """This call and those it was made from, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent

    def up_to(self, last: Call | None) -> Iterator[Call]:
        """This call and those it was made from, innermost first, as far as `last`."""
        for call in self.above():
            yield call
            if call is last:
                return


@dataclass(eq=False)
class Record:
    """What happened: all nodes in order, all calls in order (the root's first), the nodes whose tensors are needed.

    hooked: the modules with hooks.
    barriers: the nodes that no fold may lead through: what goes in and out of hooked modules, and the opaque ones.
    writes: the nodes that write to each memory, in order, at this size or perhaps at another.
    opaque: the nodes that no fold may compute: writes that are read through another tensor, and what a call computes from
        tensors lent to its module.
    asked: the modules whose code has asked a tensor of the model for its size, dtype or device, by the tensor's id.
    """

    nodes: list[Node]
    calls: list[Call]
    outputs: list[Node]
    barriers: set[Node]
    hooked: set[nn.Module]
    writes: Mapping[int, Sequence[Node]] = field(default_factory=dict)
    opaque: frozenset[Node] = frozenset()
    asked: Mapping[int, Collection[nn.Module]] = field(default_factory=dict)

    def readers(self) -> dict[int, list[Node]]:
        """The nodes that read each tensor of the model, by the tensor's id."""
        readers: dict[int, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for operand in node.inputs:
                if operand.tensor is not None:
                    readers[id(operand.tensor)].append(node)
        return readers


def nodes_in(tree: Any) -> list[Node]:
    """Every node in a described tree, in order."""
    if isinstance(tree, Node):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = list(vars(tree).values())
    return [node for item in tree for node in nodes_in(item)] if isinstance(tree, (tuple, list)) else []


def literal(tree: Any) -> bool:
    """Whether there is anything but tensors and None in a described tree."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return any(map(literal, tree))
    return not (tree is None or isinstance(tree, Node))


def entry(values: Any, index: int) -> Any:
    return values[index]


entry.__name__ = "getitem"


def served(node: Node, removed: Collection[Node]) -> bool:
    """Whether an operation is removed, or is a constant that only removed ones use."""
    waiting, seen = [node], {node}
    while waiting:
        each = waiting.pop()
        if each in removed:
            continue
        if not each.constant:
            return False
        new = [reader for reader in each.readers if reader not in seen]
        seen.update(new)
        waiting += new
    return True


def common(nodes: Sequence[Node]) -> Call | None:
    """The innermost call around all nodes."""
    if any(node.call is None for node in nodes):
        return None
    around = [list(node.call.above()) for node in nodes if node.call]
    return next((call for call in around[0] if all(call in others for others in around[1:])), None)


def within(node: Node, common: Call | None) -> Iterator[Call]:
    """The calls around a node, from its own to `common`."""
    yield from node.call.up_to(common) if node.call else ()


def leaves_of(nodes: Iterable[Node]) -> list[Tensor]:
    """The tensors of the model that operations read, directly or through constants computed from them, each once."""
    waiting, seen = [operand for node in nodes for operand in node.inputs], dict[Node, None]()
    while waiting:
        each = waiting.pop()
        if each not in seen and (each.constant or each.tensor is not None):
            seen[each] = None
            waiting += each.inputs
    return [each.tensor for each in seen if each.tensor is not None]


def user_code(module: nn.Module) -> bool:
    """Whether the module's forward is not torch's own: torch's operations do the same at every size."""
    return not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.Sequential)
