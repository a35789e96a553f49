"""Records one run of the user's model.

The model runs once, in eval mode and without gradients, on the user's inputs, under a `TorchFunctionMode`. Every torch
function becomes a `Node` and every module call a `Call` that lists its nodes and inner calls in order. Python's control
flow simply runs, so models that no symbolic tracer can follow are recorded like any other.

The record holds for this run. It is analysed and never executed in place of the user's code. Where code is rewritten,
what the record says is proven for every input from a symbolic trace (see `rewrite.trace`).
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
    op_name,
)
from reparam.capture.snapshot import ModuleSnapshot, has_hooks, named_tensors, own_tensors
from reparam.capture.tree import mapped, tensors
from reparam.capture.watch import listening, watching
from reparam.errors import ModelError


def record(model: nn.Module, inputs: Inputs) -> Record:
    """Run `model` once on `inputs` and write down what it computes. The model is left as it was.

    Raises ModelError if the model fails on the inputs.
    """
    snapshots = [ModuleSnapshot(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    recorder = _Recorder(model)
    handles = recorder.watch(model)
    try:
        copies = inputs.map(recorder.input_copy)
        with torch.no_grad(), listening(recorder.gradients_asked), watching(recorder.attribute_set), recorder:
            result = copies.call(model)
        return recorder.finish(result, snapshots)
    except Exception as error:
        raise ModelError(
            f"the model fails on its example inputs ({inputs}) in eval mode: {type(error).__name__}: {error}; "
            "give the inputs that its forward takes: a tensor, a tuple of arguments or a dict of keyword arguments"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for snapshot in snapshots:
            snapshot.restore()


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.model_nodes: list[Node] = []  # of tensors of the model
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.barriers: set[Node] = set()
        self.paths: dict[nn.Module, str] = {}
        self.own_tensors: dict[nn.Module, dict[str, int]] = {}
        self.hooked: set[nn.Module] = set()
        self.writes: dict[int, list[Node]] = defaultdict(list)
        self.source_storage: dict[int, int] = {}  # of a copy, the storage that it would share at other sizes
        self.storages: dict[int, StorageWeakRef] = {}  # held here, so that no new storage gets the same address
        self.overwritten: set[int] = set()  # storages that were written to through another tensor
        self.contiguous_calls: dict[Node, Node] = {}  # by the tensor that the call returned as it was
        self.inspectors: dict[int, set[nn.Module]] = defaultdict(set)
        self.set_by_others: set[nn.Module] = set()  # modules whose attributes the code of others has set
        self.bound: dict[int, tuple[weakref.ref[Tensor], Node, int]] = {}  # tensors that hold a node's value, by id
        self.model_tensors = {
            id(tensor): (name, tensor, tensor._version, tensor.data_ptr()) for name, tensor in named_tensors(model)
        }

    # --- modules

    def watch(self, model: nn.Module) -> list[Any]:
        """Register hooks that record every call; the user's own hooks run inside them. Returns their handles."""
        handles = []
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it runs outside Python, so its results are tensors of unknown origin
            self.paths[module] = path
            self.own_tensors[module] = own_tensors(module)
            self.hooked.update([module] if has_hooks(module) else [])
            handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        return handles

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(module, self.paths[module], self.stack[-1] if self.stack else None)
        call.args, call.kwargs = self._with_nodes(args), self._with_nodes(kwargs)
        call.control_flow.update([GIVEN] if _has_numbers(call.args) or _has_numbers(call.kwargs) else [])
        call.control_flow.update([] if self.own_tensors[module].items() <= own_tensors(module).items() else [LENT])
        if self.stack:
            self._depends_on(CAUGHT, attempted(caller(sys._getframe()), "_call_impl"))
            self.stack[-1].events.append(call)
        self.calls.append(call)
        self.stack.append(call)
        if module in self.hooked:
            self.barriers.update(nodes_in((call.args, call.kwargs)))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        call = self.stack.pop()
        call.result = self._with_nodes(result)
        self._depends_on(RETURNED, _has_numbers(call.result, flags=True))
        if call.control_flow and (frame := caller(sys._getframe())) is not None:
            self._depends_on(MISSING, isinstance(call.result, Node) and asks_for_result(frame.f_code))
            several = not isinstance(call.result, Node) and not takes_all(frame)
            self._depends_on(RETURNED, several or has_literals(call.result))
        if module in self.hooked:
            self.barriers.update(nodes_in(call.result))

    # --- tensors

    def input_copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the example inputs, for the model to read or overwrite."""
        copy = tensor.detach().clone()
        self._bind(copy, self._add(Node(f"input_{len(self.nodes)}", shape=tuple(copy.shape), dtype=copy.dtype)))
        return copy

    def _with_nodes(self, tree: Any) -> Any:
        """The tree with nodes in place of tensors."""
        if type(tree) in (tuple, list):  # by far the most frequent
            return type(tree)(map(self._with_nodes, tree))
        with torch._C.DisableTorchFunction():
            return mapped(tree, lambda leaf: self.node_of(leaf) if isinstance(leaf, Tensor) else leaf)

    def node_of(self, tensor: Tensor) -> Node:
        """The node whose value the tensor holds now."""
        if (bound := self.bound.get(id(tensor))) is not None:
            reference, node, version = bound
            if reference() is tensor and version == tensor._version:
                return node
            if reference() is tensor:  # overwritten through another tensor: what it holds now is unknown
                self.overwritten.add(node.storage)
                return self._bind(tensor, self._add(self._unknown(tensor, (node,))))
        name, model_tensor, *_ = self.model_tensors.get(id(tensor), ("", None))
        if model_tensor is tensor:
            node = Node(name, shape=tuple(tensor.shape), dtype=tensor.dtype, tensor=tensor, constant=True)
            self.model_nodes.append(node)
            return self._bind(tensor, node)
        return self._bind(tensor, self._add(self._unknown(tensor, ())))

    def _unknown(self, tensor: Tensor, inputs: tuple[Node, ...]) -> Node:
        """A node for a tensor of unknown origin; it depends on `inputs` in a way that nobody knows."""
        name = f"unknown_{len(self.nodes)}"
        return Node(name, shape=tuple(tensor.shape), dtype=tensor.dtype, inputs=inputs, call=self._current_call())

    def _current_call(self) -> Call | None:
        return self.stack[-1] if self.stack else None

    def _depends_on(self, cause: str, holds: bool = True) -> None:
        """Note what the control flow of the code that runs now may depend on, if it `holds`."""
        if holds and self.stack:
            self.stack[-1].control_flow.add(cause)

    def gradients_asked(self) -> None:
        """Code asks torch whether gradients are recorded."""
        self._depends_on(GRADIENTS)

    def attribute_set(self, module: nn.Module, name: str) -> None:
        """An attribute of a module is set."""
        if self.stack and self.stack[-1].module is not module and name != "training":
            self._depends_on(SETS)
            self.set_by_others.add(module)

    def _note_size_read(self, arguments: tuple[Any, ...]) -> None:
        for tensor in arguments:
            if isinstance(tensor, Tensor):
                self.node_of(tensor).size_read = True

    def _bind(self, tensor: Tensor, node: Node) -> Node:
        """Note that the tensor holds the value of the node until it is written to."""
        if tensor.layout == torch.strided:
            storage = StorageWeakRef(tensor.untyped_storage())
            node.storage, node.strides = storage.cdata, tensor.stride()
            self.storages.setdefault(node.storage, storage)
        self.bound[id(tensor)] = (weakref.ref(tensor), node, tensor._version)
        return node

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        for operand in node.inputs:
            operand.readers.append(node)
        self._add_event(node)
        return node

    def _add_event(self, node: Node) -> None:
        if node.call is not None:
            node.call.events.append(node)

    # --- functions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = op_name(func)
        self._depends_on(CAUGHT, attempted(sys._getframe(), "_call_impl"))
        if name in QUERIES:
            self._depends_on(GRADIENTS, name in GRADIENT_QUERIES and not of_torch(sys._getframe(1)))
            self._depends_on(READ, name in VALUE_QUERIES)
            if name in LAYOUT_QUERIES:
                self.node_of(args[0]).layout_read = True
            if name in SIZE_QUERIES or name in LAYOUT_QUERIES:
                self._depends_on(SIZE)
                self._note_size_read(args)
            if self.stack and args:
                self.inspectors[id(args[0])].add(self.stack[-1].module)
            return func(*args, **kwargs)
        if name in SHAPED_AS:
            self._note_size_read(args[1:])
            func, args = SHAPED_AS[name](*args)
            name = op_name(func)
        versions: list[tuple[Tensor, int]] = []
        positional, named = self._argument(args, versions), self._argument(kwargs, versions)
        inputs = tuple(self.node_of(tensor) for tensor, _ in versions)
        result = func(*args, **kwargs)
        written = [tensor for tensor, version in versions if tensor._version != version]
        node = Node(name, func, positional, named, self._current_call(), inputs=inputs)
        node.constant = name not in RANDOM and all(operand.constant for operand in inputs)
        if isinstance(result, Tensor) and not written:
            node = self._split_norm(node, result)
        self._record(node, result, written, versions)
        return result

    def _split_norm(self, node: Node, result: Tensor) -> Node:
        """The scale and shift of a normalisation, whose other part is recorded here; any other node as it is."""
        weight, bias = affine_arguments(node.function, node.args, node.kwargs)  # type: ignore[arg-type]
        affine = [vector for vector in (weight, bias) if vector is not None]
        if not affine or node.constant or not 2 <= result.dim() <= 5:
            return node
        vectors = all(isinstance(item, Node) and item.constant and len(item.shape) == 1 for item in affine)
        if not vectors or {operand.dtype for operand in node.inputs} != {result.dtype}:
            return node  # the dtype of the result may come from the weights
        rest = tuple(operand for operand in node.inputs if operand not in affine)
        args, kwargs = without_affine(node.function, node.args, node.kwargs)  # type: ignore[arg-type]
        norm = Node(node.name, node.function, args, kwargs, node.call, tuple(result.shape), result.dtype, inputs=rest)
        norm.strides = result.stride()
        self._add(norm)
        parts = (norm, weight, bias, affine_dimension(node.function))  # type: ignore[arg-type]
        return Node(f"{node.name}'s scale", affine_part, parts, call=node.call, inputs=(norm, *affine))

    def _argument(self, value: Any, versions: list[tuple[Tensor, int]]) -> Any:
        """An argument with nodes in place of tensors; adds the tensors and their versions to `versions`, in order."""
        if isinstance(value, Tensor):
            versions.append((value, value._version))
            return self.node_of(value)
        if isinstance(value, (tuple, list)):
            items = [self._argument(item, versions) for item in value]
            return items if type(value) is list else tuple(items)
        if isinstance(value, dict):
            return {key: self._argument(item, versions) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(part, versions) for part in (value.start, value.stop, value.step)))
        return value

    def _record(self, node: Node, result: Any, written: list[Tensor], versions: list[tuple[Tensor, int]]) -> None:
        """Add a node whose function has run, and bind the tensors that it returned or wrote to."""
        self._record_writes(node, written)
        returned = [result] if isinstance(result, Tensor) else [tensor for _, tensor in tensors(result)]
        if not returned and not written:
            if node.inputs and result is not None:  # a number is read out of a tensor, which is needed for that
                self._depends_on(READ)
                self._add(node)
            return
        if isinstance(result, Tensor) and not written and any(tensor is result for tensor, _ in versions):
            node.passthrough = True
            self.contiguous_calls.update({node.inputs[0]: node} if node.name == "contiguous" else {})
            node.shape, node.dtype = tuple(result.shape), result.dtype
            self._add_event(node)
            return
        self._add(node)
        node.inplace = bool(written)
        value = result if isinstance(result, Tensor) else written[0] if not returned else None
        if value is not None:
            node.shape, node.dtype = tuple(value.shape), value.dtype
            self._bind(value, node)
            if node.op in PERHAPS_VIEWS and node.inputs[0].storage != node.storage:
                self.source_storage[node.storage] = node.inputs[0].storage
        elif isinstance(result, (tuple, list)):
            self._record_items(node, result)
        else:
            for tensor in returned:
                self._bind(tensor, self._add(self._unknown(tensor, (node,))))
        for tensor in written:
            if tensor is not value:
                self._bind(tensor, self._add(self._unknown(tensor, (node,))))

    def _record_writes(self, node: Node, written: list[Tensor]) -> None:
        for tensor in written:
            _, before, _ = self.bound[id(tensor)]
            before.overwritten = True
            if before in self.contiguous_calls:
                _note_between(ALIASED, self.contiguous_calls[before], node)
            storage: int | None = before.storage
            while storage is not None:
                self.writes[storage].append(node)
                storage = self.source_storage.get(storage)

    def _record_items(self, node: Node, result: tuple[Any, ...] | list[Any]) -> None:
        """Add a node for each tensor of a tuple, as if it were indexed. How many there are may depend on a size."""
        self._depends_on(SIZE, not takes_all(sys._getframe(3)))  # the caller of `__torch_function__`
        for i, item in enumerate(result):
            if isinstance(item, Tensor):
                part = Node("getitem", tuple_item, (node, i), {}, node.call, tuple(item.shape), item.dtype)
                part.inputs, part.constant = (node,), node.constant
                self._bind(item, self._add(part))
            else:
                for _, tensor in tensors(item):
                    self._bind(tensor, self._add(self._unknown(tensor, (node,))))

    # --- the end

    def finish(self, result: Any, snapshots: list[ModuleSnapshot]) -> Record:
        """The record of the run that has returned `result`; `snapshots` are of the modules before it."""
        with torch._C.DisableTorchFunction():
            outputs = [self.node_of(tensor) for _, tensor in tensors(result)]
            for snapshot in snapshots:
                stored = [tensor for _, value in snapshot.stored_since() for _, tensor in tensors(value)]
                outputs += [self.bound[id(tensor)][1] for tensor in stored if id(tensor) in self.bound]
        replaced = {id(tensor) for snapshot in snapshots for tensor in snapshot.replaced_tensors()}
        lent = {node for call in self.calls if LENT in call.control_flow for node in call.nodes()}
        changed = {node for node in self.model_nodes if id(node.tensor) in replaced or self._is_changed(node)}
        _no_longer_constant(changed | lent)
        for call in self.calls:
            call.control_flow.update([SET] if call.module in self.set_by_others else [])
        opaque = frozenset(node for storage in self.overwritten for node in self.writes[storage]) | lent
        return Record(
            nodes=self.nodes,
            calls=self.calls,
            outputs=outputs,
            barriers=self.barriers | opaque,
            hooked=self.hooked,
            writes=self.writes,
            opaque=opaque,
            inspectors=self.inspectors,
        )

    def _is_changed(self, node: Node) -> bool:
        """Whether the run has written to a tensor of the model."""
        _, tensor, version, pointer = self.model_tensors[id(node.tensor)]
        return tensor._version != version or tensor.data_ptr() != pointer


def _has_numbers(tree: Any, flags: bool = False) -> bool:
    """Whether there are numbers among arguments or results; `flags`: a bool is one."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return any(_has_numbers(item, flags) for item in tree)
    return isinstance(tree, (int, float)) and (flags or not isinstance(tree, bool))


def _no_longer_constant(nodes: set[Node]) -> None:
    """Tensors that the run changes are not constant, nor is what is computed from them."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.constant:
            node.constant = False
            pending += node.readers


def _note_between(cause: str, *nodes: Node) -> None:
    """Note a cause for all code between the nodes: the calls around each, as far as the one around all."""
    common = common_call(nodes)
    for call in (call for node in nodes for call in calls_around(node, common)):
        call.control_flow.add(cause)
