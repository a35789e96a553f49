"""The recorder: one run of the user's model, written down.

The model runs once, in eval and without gradients, on the user's inputs, under a `TorchFunctionMode`. Every torch
function becomes a `Node`, every module call a `Call` that knows its nodes and inner calls in order. Python's control
flow simply runs, so models that no symbolic tracer can follow are recorded as easily as others.

The record is for knowing. It is analysed and never executed in place of the user's code: what it holds is true for
this run, and whether it holds for every input is proven again, symbolically, where code is rewritten (see `trace`).
"""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from reparam.capture.bytecode import asks_for_result, attempted, caller, of_torch, takes_all
from reparam.capture.graph import (
    ALIASED,
    CAUGHT,
    GIVEN,
    GRADIENTS,
    LENT,
    MISSING,
    READ,
    RETURNED,
    SET,
    SETS,
    SIZE,
    Call,
    Node,
    Record,
    calls_around,
    common_call,
    has_literals,
    nodes_in,
    tuple_item,
)
from reparam.capture.inputs import Inputs
from reparam.capture.norms import affine_arguments, affine_dimension, affine_part, without_affine
from reparam.capture.ops import (
    GRADIENT_QUERIES,
    LAYOUT_QUERIES,
    PERHAPS_VIEWS,
    QUERIES,
    RANDOM,
    SHAPED_AS,
    SIZE_QUERIES,
    VALUE_QUERIES,
    operation,
)
from reparam.capture.snapshot import State, held, hooked, owned
from reparam.capture.tree import mapped, tensors
from reparam.capture.watch import listening, watching
from reparam.errors import ModelError


def record(model: nn.Module, inputs: Inputs) -> Record:
    """Run `model` once on `inputs` and write down what it computes. The model is left as it was.

    Raises ModelError if the model fails on the inputs.
    """
    before = [State(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    recorder = _Recorder(model)
    handles = recorder.watch(model)
    try:
        given = inputs.map(recorder.given)
        with torch.no_grad(), listening(recorder.asked_for_gradients), watching(recorder.set), recorder:
            result = given.call(model)
        return recorder.finish(result, before)
    except Exception as error:
        raise ModelError(
            f"the model fails on its example inputs ({inputs}) in eval mode: {type(error).__name__}: {error}; "
            "give the inputs that its forward takes: a tensor, a tuple of arguments or a dict of keyword arguments"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for state in before:
            state.restore()


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.sources: list[Node] = []
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.barriers: set[Node] = set()
        self.paths: dict[nn.Module, str] = {}
        self.owned: dict[nn.Module, dict[str, int]] = {}
        self.hooked: set[nn.Module] = set()
        self.writes: dict[int, list[Node]] = defaultdict(list)
        self.copies: dict[int, int] = {}  # of memory that would be that of another tensor at another size
        self.memories: dict[int, StorageWeakRef] = {}  # as long as they are held, no address means another memory
        self.overwritten: set[int] = set()
        self.alone: dict[Node, Node] = {}  # what `contiguous` has left as it is in this run, with that step
        self.inspectors: dict[int, set[nn.Module]] = defaultdict(set)
        self.told: set[nn.Module] = set()  # those of which the code of others has set attributes
        self.known: dict[int, tuple[weakref.ref[Tensor], Node, int]] = {}
        self.held = {id(tensor): (name, tensor, tensor._version, tensor.data_ptr()) for name, tensor in held(model)}

    # --- modules

    def watch(self, model: nn.Module) -> list[Any]:
        """Hooks that note every call; a user's own hooks run inside it, and what they see must stay as it is."""
        handles = []
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # runs outside Python: its results are tensors of unknown origin
            self.paths[module] = path
            self.owned[module] = owned(module)
            self.hooked.update([module] if hooked(module) else [])
            handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        return handles

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(module, self.paths[module], self.stack[-1] if self.stack else None)
        call.args, call.kwargs = self.described(args), self.described(kwargs)
        call.control_flow.update([GIVEN] if _numbers(call.args) or _numbers(call.kwargs) else [])
        call.control_flow.update([] if self.owned[module].items() <= owned(module).items() else [LENT])
        if self.stack:
            self._looks(CAUGHT, attempted(caller(sys._getframe()), "_call_impl"))
            self.stack[-1].events.append(call)
        self.calls.append(call)
        self.stack.append(call)
        if module in self.hooked:
            self.barriers.update(nodes_in((call.args, call.kwargs)))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        call = self.stack.pop()
        call.result = self.described(result)
        self._looks(RETURNED, _numbers(call.result, flags=True))
        if call.control_flow and (frame := caller(sys._getframe())) is not None:
            self._looks(MISSING, isinstance(call.result, Node) and asks_for_result(frame.f_code))
            several = not isinstance(call.result, Node) and not takes_all(frame)
            self._looks(RETURNED, several or has_literals(call.result))
        if module in self.hooked:
            self.barriers.update(nodes_in(call.result))

    # --- tensors

    def given(self, tensor: Tensor) -> Tensor:
        """A tensor of the example inputs, as the model gets it."""
        alias = tensor.detach().clone()
        self._bind(alias, self._add(Node(f"input_{len(self.nodes)}", shape=tuple(alias.shape), dtype=alias.dtype)))
        return alias

    def described(self, tree: Any) -> Any:
        """The tree with nodes for tensors."""
        if type(tree) in (tuple, list):  # by far the most frequent
            return type(tree)(map(self.described, tree))
        with torch._C.DisableTorchFunction():
            return mapped(tree, lambda leaf: self.node_of(leaf) if isinstance(leaf, Tensor) else leaf)

    def node_of(self, tensor: Tensor) -> Node:
        """The node whose value the tensor holds now."""
        entry = self.known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            if entry[2] == tensor._version:
                return entry[1]
            # Its memory was overwritten through another tensor: what it holds now has no description.
            self.overwritten.add(entry[1].storage)
            return self._bind(tensor, self._add(self._unknown(tensor, (entry[1],))))
        held = self.held.get(id(tensor))
        if held is not None and held[1] is tensor:
            node = Node(held[0], shape=tuple(tensor.shape), dtype=tensor.dtype, tensor=tensor, constant=True)
            self.sources.append(node)
            return self._bind(tensor, node)
        return self._bind(tensor, self._add(self._unknown(tensor, ())))

    def _unknown(self, tensor: Tensor, inputs: tuple[Node, ...]) -> Node:
        name = f"unknown_{len(self.nodes)}"
        return Node(name, shape=tuple(tensor.shape), dtype=tensor.dtype, inputs=inputs, call=self._here())

    def _here(self) -> Call | None:
        return self.stack[-1] if self.stack else None

    def _looks(self, how: str, so: bool = True) -> None:
        if so and self.stack:
            self.stack[-1].control_flow.add(how)

    def asked_for_gradients(self) -> None:
        self._looks(GRADIENTS)

    def set(self, module: nn.Module, name: str) -> None:
        if self.stack and self.stack[-1].module is not module and name != "training":
            self._looks(SETS)
            self.told.add(module)

    def _measured(self, asked: tuple[Any, ...]) -> None:
        for tensor in asked:
            if isinstance(tensor, Tensor):
                self.node_of(tensor).size_read = True

    def _bind(self, tensor: Tensor, node: Node) -> Node:
        if tensor.layout == torch.strided:
            memory = StorageWeakRef(tensor.untyped_storage())
            node.storage, node.strides = memory.cdata, tensor.stride()
            self.memories.setdefault(node.storage, memory)
        self.known[id(tensor)] = (weakref.ref(tensor), node, tensor._version)
        return node

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        for operand in node.inputs:
            operand.readers.append(node)
        self._note(node)
        return node

    def _note(self, node: Node) -> None:
        if node.call is not None:
            node.call.events.append(node)

    # --- functions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation(func)
        self._looks(CAUGHT, attempted(sys._getframe(), "_call_impl"))
        if name in QUERIES:
            self._looks(GRADIENTS, name in GRADIENT_QUERIES and not of_torch(sys._getframe(1)))
            self._looks(READ, name in VALUE_QUERIES)
            if name in LAYOUT_QUERIES:
                self.node_of(args[0]).layout_read = True
            if name in SIZE_QUERIES or name in LAYOUT_QUERIES:
                self._looks(SIZE)
                self._measured(args)
            if self.stack and args:
                self.inspectors[id(args[0])].add(self.stack[-1].module)
            return func(*args, **kwargs)
        if name in SHAPED_AS:
            self._measured(args[1:])
            func, args = SHAPED_AS[name](*args)
            name = operation(func)
        seen: list[tuple[Tensor, int]] = []
        described, named = self._noted(args, seen), self._noted(kwargs, seen)
        inputs = tuple(self.node_of(tensor) for tensor, _ in seen)
        result = func(*args, **kwargs)
        written = [tensor for tensor, version in seen if tensor._version != version]
        node = Node(name, func, described, named, self._here(), inputs=inputs)
        node.constant = name not in RANDOM and all(operand.constant for operand in inputs)
        if isinstance(result, Tensor) and not written:
            node = self._split(node, result)
        self._conclude(node, result, written, seen)
        return result

    def _split(self, node: Node, result: Tensor) -> Node:
        """The affine part of a normalisation, whose other part is noted here; any other node as it is."""
        weight, bias = affine_arguments(node.function, node.args, node.kwargs)  # type: ignore[arg-type]
        affine = [each for each in (weight, bias) if each is not None]
        if not affine or node.constant or not 2 <= result.dim() <= 5:
            return node
        vectors = all(isinstance(each, Node) and each.constant and len(each.shape) == 1 for each in affine)
        if not vectors or {each.dtype for each in node.inputs} != {result.dtype}:
            return node  # weights of another dtype may decide on that of the result
        rest = tuple(each for each in node.inputs if each not in affine)
        args, kwargs = without_affine(node.function, node.args, node.kwargs)  # type: ignore[arg-type]
        norm = Node(node.name, node.function, args, kwargs, node.call, tuple(result.shape), result.dtype, inputs=rest)
        norm.strides = result.stride()
        self._add(norm)
        parts = (norm, weight, bias, affine_dimension(node.function))  # type: ignore[arg-type]
        return Node(f"{node.name}'s scale", affine_part, parts, call=node.call, inputs=(norm, *affine))

    def _noted(self, value: Any, seen: list[tuple[Tensor, int]]) -> Any:
        """An argument with nodes for tensors; `seen` gets the tensors with their versions, in order."""
        if isinstance(value, Tensor):
            seen.append((value, value._version))
            return self.node_of(value)
        if isinstance(value, (tuple, list)):
            items = [self._noted(item, seen) for item in value]
            return items if type(value) is list else tuple(items)
        if isinstance(value, dict):
            return {key: self._noted(item, seen) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._noted(part, seen) for part in (value.start, value.stop, value.step)))
        return value

    def _conclude(self, node: Node, result: Any, written: list[Tensor], seen: list[tuple[Tensor, int]]) -> None:
        self._overwrites(node, written)
        found = [result] if isinstance(result, Tensor) else [tensor for _, tensor in tensors(result)]
        if not found and not written:
            if node.inputs and result is not None:  # a number read out of a tensor: the tensor is needed
                self._looks(READ)
                self._add(node)
            return
        if isinstance(result, Tensor) and not written and any(tensor is result for tensor, _ in seen):
            node.passthrough = True
            self.alone.update({node.inputs[0]: node} if node.name == "contiguous" else {})
            node.shape, node.dtype = tuple(result.shape), result.dtype
            self._note(node)
            return
        self._add(node)
        node.inplace = bool(written)
        whole = result if isinstance(result, Tensor) else written[0] if not found else None
        if whole is not None:
            node.shape, node.dtype = tuple(whole.shape), whole.dtype
            self._bind(whole, node)
            if node.op in PERHAPS_VIEWS and node.inputs[0].storage != node.storage:
                self.copies[node.storage] = node.inputs[0].storage
        elif isinstance(result, (tuple, list)):
            self._entries(node, result)
        else:
            for tensor in found:
                self._bind(tensor, self._add(self._unknown(tensor, (node,))))
        for tensor in written:
            if tensor is not whole:
                self._bind(tensor, self._add(self._unknown(tensor, (node,))))

    def _overwrites(self, node: Node, written: list[Tensor]) -> None:
        for tensor in written:
            (before := self.known[id(tensor)][1]).overwritten = True
            if before in self.alone:
                _note_between(ALIASED, self.alone[before], node)
            memory: int | None = before.storage
            while memory is not None:
                self.writes[memory].append(node)
                memory = self.copies.get(memory)

    def _entries(self, node: Node, result: tuple[Any, ...] | list[Any]) -> None:
        """One node per tensor of a tuple, as if it were indexed. How many there are may depend on a size."""
        self._looks(SIZE, not takes_all(sys._getframe(3)))  # behind `_conclude` and `__torch_function__`
        for i, item in enumerate(result):
            if isinstance(item, Tensor):
                part = Node("getitem", tuple_item, (node, i), {}, node.call, tuple(item.shape), item.dtype)
                part.inputs, part.constant = (node,), node.constant
                self._bind(item, self._add(part))
            else:
                for _, tensor in tensors(item):
                    self._bind(tensor, self._add(self._unknown(tensor, (node,))))

    # --- the end

    def finish(self, result: Any, before: list[State]) -> Record:
        with torch._C.DisableTorchFunction():
            outputs = [self.node_of(tensor) for _, tensor in tensors(result)]
            for state in before:
                stored = [tensor for _, value in state.kept() for _, tensor in tensors(value)]
                outputs += [self.known[id(t)][1] for t in stored if id(t) in self.known]
        outdated = {id(tensor) for state in before for tensor in state.outdated()}
        lent = {node for call in self.calls if LENT in call.control_flow for node in call.nodes()}
        _no_longer_constant({n for n in self.sources if id(n.tensor) in outdated or self._changed(n)} | lent)
        for call in self.calls:
            call.control_flow.update([SET] if call.module in self.told else [])
        opaque = frozenset(node for memory in self.overwritten for node in self.writes[memory]) | lent
        return Record(
            self.nodes, self.calls, outputs, self.barriers | opaque, self.hooked, self.writes, opaque, self.inspectors
        )

    def _changed(self, node: Node) -> bool:
        """Whether the run has written to a tensor that the model holds."""
        _, tensor, version, pointer = self.held[id(node.tensor)]
        return tensor._version != version or tensor.data_ptr() != pointer


def _numbers(tree: Any, flags: bool = False) -> bool:
    """Whether there are numbers in a described tree; `flags` count where they are not those that a caller chooses."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return any(_numbers(item, flags) for item in tree)
    return isinstance(tree, (int, float)) and (flags or not isinstance(tree, bool))


def _no_longer_constant(nodes: set[Node]) -> None:
    """A tensor that the run itself changes is not a constant, nor is what is computed from it."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.constant:
            node.constant = False
            waiting += node.readers


def _note_between(what: str, *nodes: Node) -> None:
    """Note it for all code that leads from one of the nodes to another."""
    around = common_call(nodes)
    for call in (call for node in nodes for call in calls_around(node, around)):
        call.control_flow.add(what)
