"""Records runs of the user's model.

The model runs in eval mode and without gradients, on the user's inputs, under a `TorchFunctionMode`. Every torch
function becomes a `Node` and every module call a `Call` that lists its nodes and inner calls in order. Python's control
flow simply runs, so models that no symbolic tracer can follow are recorded like any other. Sizes that code asks for
remember where they come from (see `symbolic`), and what they decide is noted.

The record holds for this run. It is analysed and never executed in place of the user's code. What it says of other
inputs is seen in `witness`.
"""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from reparam.capture.dims import Dims
from reparam.capture.graph import Call, Node, Record, nodes_in, tuple_item
from reparam.capture.norms import affine_arguments, affine_dimension, affine_part, without_affine
from reparam.capture.ops import (
    CHANNEL_COUNTING,
    GRADIENT_QUERIES,
    LAYOUT_QUERIES,
    PERHAPS_VIEWS,
    QUERIES,
    RANDOM,
    SHAPED_AS,
    SIZE_QUERIES,
    SIZED,
    VALUE_QUERIES,
    facts,
    op_name,
)
from reparam.capture.questions import of_torch, otherwise
from reparam.capture.snapshot import AttributeSnapshot, ModuleSnapshot, address, has_hooks, named_tensors, own_tensors
from reparam.capture.symbolic import ASKED, ITEM, SIZE, Decisions, Shape, Symbolic, atoms, is_symbolic, plain
from reparam.capture.tree import leaves, mapped, tensors
from reparam.errors import first_line


class Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, plain: bool, lie: Set[str], changing: Collection[nn.Module]) -> None:
        super().__init__()
        self.plain, self.lie = plain, lie
        self.decisions = Decisions(lambda: (self._current_call(), len(self.nodes)))
        if lie:
            self.decisions.lie = (ITEM, frozenset[str]()) if VALUES in lie else (ASKED, lie)
        self.recent: dict[int, Any] = {}  # by value, sizes that have become plain numbers since the last operation
        self.attributes = [AttributeSnapshot(module) for module in changing]  # as the code has left them so far
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
        self.bound: dict[int, tuple[weakref.ref[Tensor], Node, int]] = {}  # tensors that hold a node's value, by id
        self.model_tensors = {
            id(tensor): (name, tensor, tensor._version, address(tensor)) for name, tensor in named_tensors(model)
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
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        return handles

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(module, self.paths[module], self.stack[-1] if self.stack else None)
        call.args, call.kwargs = self._with_nodes(args), self._with_nodes(kwargs)
        call.lent = not self.own_tensors[module].items() <= own_tensors(module).items()
        self._note_changes()
        if self.stack:
            self.stack[-1].events.append(call)
        self.calls.append(call)
        self.stack.append(call)
        if module in self.hooked:
            self.barriers.update(nodes_in((call.args, call.kwargs)))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._note_changes()
        call = self.stack.pop()
        call.failed = sys.exc_info()[1] is not None and result is None
        call.result = self._with_nodes(result)
        for handed, now in ((call.args, args), (call.kwargs, kwargs)):
            call.changes |= _holds_containers(now) and not _same(handed, self._with_nodes(now))
        if module in self.hooked:
            self.barriers.update(nodes_in(call.result))

    def _note_changes(self) -> None:
        """Note that the code which has run since the last call began or ended has changed attributes."""
        for i, before in enumerate(self.attributes):
            if next(before.stored_since(), None) is not None:
                self.attributes[i] = AttributeSnapshot(before.module)
                if self.stack:
                    self.stack[-1].changes = True

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
        if name in QUERIES:
            return self._answered(name, func, args, kwargs, by_user=not of_torch(sys._getframe(1)))
        if name == "iter":
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        self.decisions.handed_to_torch(sys._getframe(1))
        if name in SHAPED_AS:
            self._note_size_read(args[1:])
            func, attribute = SHAPED_AS[name]
            args = (args[0], self._shape(args[1]) if attribute == "shape" else self._asked_for(args[1], attribute))
            name = op_name(func)
        versions: list[tuple[Tensor, int]] = []
        self.recent = self.decisions.recent()
        if name not in SIZED:  # most ones are a stride or a dimension
            self.recent = {number: expression for number, expression in self.recent.items() if number > 1}
        spelling: Any = (func, self._argument(args, versions), self._argument(kwargs, versions))
        _, positional, named = spelling
        if symbolic := is_symbolic((positional, named)):
            positional, named, args, kwargs = plain(positional), plain(named), plain(args), plain(kwargs)
        inputs = tuple(self.node_of(tensor) for tensor, _ in versions)
        result = func(*args, **kwargs)
        written = [tensor for tensor, version in versions if tensor._version != version]
        node = Node(name, func, positional, named, self._current_call(), inputs=inputs)
        node.spelling = spelling if symbolic else None
        node.sized = symbolic or any(operand.sized for operand in inputs)
        node.constant = name not in RANDOM and all(operand.constant for operand in inputs)
        if isinstance(result, Tensor) and not written:
            node = self._split_norm(node, result)
        return self._record(node, result, written, versions)

    def cached(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function with a cache, whose calls are operations. Those that are handed tensors run as ever."""

        def called(*args: Any, **kwargs: Any) -> Any:
            if tensors((args, kwargs)) or torch._C._len_torch_function_stack() == 0:
                return function(*args, **kwargs)
            node = Node(function.__name__, function, plain(args), plain(kwargs), self._current_call())
            node.op = f"{function.__module__}.{function.__qualname__}"
            node.sized = is_symbolic((args, kwargs))
            node.spelling = (function, args, kwargs) if node.sized else None
            node.constant = not node.sized
            with torch._C.DisableTorchFunction():
                result = function(*node.args, **node.kwargs)
                if not tensors(result):
                    for number in (leaf for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Symbolic)):
                        self.decisions.note(number.expression, number.value)
                return self._record(node, result, [], [])

        return called

    # --- questions

    def answer(self, question: str, truth: Any) -> Any:
        """What code is told that asks about the process, or about gradients and memory of a tensor."""
        if type(truth) is int and not self.plain:
            return Symbolic(truth, (ASKED, question), self.decisions)
        told = otherwise(truth) if question in self.lie else truth
        self.decisions.note((ASKED, question), told)
        return told

    def _answered(self, name: str, func: Any, args: Any, kwargs: Any, *, by_user: bool) -> Any:
        """What code is told that asks about a tensor."""
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if self.stack and tensor is not None:
            self.inspectors[id(tensor)].add(self.stack[-1].module)
        truth = func(*plain(args), **plain(kwargs))
        if tensor is None:
            return truth
        if name in GRADIENT_QUERIES:
            return self.answer(name, truth) if by_user else truth
        if name in SIZE_QUERIES:
            self._note_size_read(args)
            return self._size(name, truth, *args, **kwargs)
        if name in LAYOUT_QUERIES:
            node = self.node_of(tensor)
            node.layout_read = True
            return truth if node.invariant else self.answer(name, truth)
        if name in VALUE_QUERIES:
            self._note_value(self.node_of(tensor), truth)
        elif name in ("dtype", "device") and self.stack:
            self.stack[-1].asked[truth] = self.node_of(tensor)
        return truth

    def _asked_for(self, tensor: Tensor, attribute: str) -> Any:
        with torch._C.DisableTorchFunction():
            truth = getattr(tensor, attribute)
        if self.stack:
            self.stack[-1].asked[truth] = self.node_of(tensor)
        return truth

    def _shape(self, tensor: Tensor) -> Any:
        """The shape of a tensor; of one that depends on the input, with the expressions of its sizes."""
        node = self.node_of(tensor)
        with torch._C.DisableTorchFunction():
            sizes = tensor.shape
        if node.invariant:
            return sizes
        shape = Shape(Symbolic(size, (SIZE, node, dim), self.decisions) for dim, size in enumerate(sizes))
        return torch.Size(map(int, shape)) if self.plain else shape

    def _size(self, name: str, truth: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = self._shape(tensor)
        dim = plain(kwargs.get("dim", args[0] if args else None))
        if name == "size" and isinstance(dim, int):
            return shape[dim]
        if name in ("numel", "nelement"):
            return shape.numel()
        if name == "len":
            return int(shape[0])
        if name == "is_same_size":
            return shape == self._shape(args[0])
        return shape if dim is None else truth

    def _note_value(self, node: Node, value: Any) -> None:
        if not node.invariant:
            self.decisions.note((ITEM, node), value if isinstance(value, (bool, int, float, str)) else repr(value))

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
        norm.strides, norm.spelling = result.stride(), node.spelled
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
        if type(value) is int and value in self.recent:  # most probably that number; witnesses show whether it is
            return Symbolic(value, self.recent[value], self.decisions)
        if isinstance(value, dict):
            return {key: self._argument(item, versions) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(part, versions) for part in (value.start, value.stop, value.step)))
        return value

    def _record(self, node: Node, result: Any, written: list[Tensor], versions: list[tuple[Tensor, int]]) -> Any:
        """Add a node whose function has run, and bind the tensors that it returned or wrote to. Returns the result."""
        self._record_writes(node, written)
        returned = [result] if isinstance(result, Tensor) else [tensor for _, tensor in tensors(result)]
        if not returned and not written:
            return self._record_number(node, result)
        if isinstance(result, Tensor) and not written and any(tensor is result for tensor, _ in versions):
            node.passthrough = True
            self.contiguous_calls.update({node.inputs[0]: node} if node.name == "contiguous" else {})
            node.shape, node.dtype = tuple(result.shape), result.dtype
            self._add_event(node)
            return result
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
        return result

    def _record_number(self, node: Node, result: Any) -> Any:
        """A number is read out of a tensor, which is needed for that; what does not come from weights decides."""
        if not node.inputs or result is None:
            return result
        self._add(node)
        operand = node.inputs[0]
        if node.op == "item" and not node.invariant and type(result) in (int, float) and not self.plain:
            return Symbolic(result, (ITEM, operand), self.decisions)
        lies = VALUES in self.lie and not node.invariant and isinstance(result, bool)
        told = otherwise(result) if lies else result
        self._note_value(node, told)
        return told

    def _record_writes(self, node: Node, written: list[Tensor]) -> None:
        for tensor in written:
            _, before, _ = self.bound[id(tensor)]
            before.overwritten = True
            if before in self.contiguous_calls:  # its input or a copy, depending on the input
                self.overwritten.add(before.storage)
            storage: int | None = before.storage
            while storage is not None:
                self.writes[storage].append(node)
                storage = self.source_storage.get(storage)

    def _record_items(self, node: Node, result: tuple[Any, ...] | list[Any]) -> None:
        """Add a node for each tensor of a tuple, as if it were indexed. How many there are may depend on a size."""
        self._note_parts(node, result)
        for i, item in enumerate(result):
            if isinstance(item, Tensor):
                part = Node("getitem", tuple_item, (node, i), {}, node.call, tuple(item.shape), item.dtype)
                part.inputs, part.constant = (node,), node.constant
                self._bind(item, self._add(part))
            else:
                for _, tensor in tensors(item):
                    self._bind(tensor, self._add(self._unknown(tensor, (node,))))

    def _note_parts(self, node: Node, result: Sequence[Any]) -> None:
        """Note how many parts a tensor was cut into, where that depends on its size."""
        if node.op not in ("chunk", "split", "unbind", "tensor_split") or node.invariant:
            return
        first = 0 if node.op == "unbind" else 1
        dim = node.kwargs.get("dim", node.args[1 + first] if len(node.args) > 1 + first else 0)
        cut = node.kwargs.get("chunks", node.kwargs.get("split_size_or_sections", node.args[1] if first else 1))
        if isinstance(dim, int) and isinstance(cut, int) and node.op != "tensor_split":
            size = (SIZE, node.inputs[0], dim % len(node.inputs[0].shape))
            self.decisions.note(("parts", size, cut) if node.op != "unbind" else size, len(result))

    # --- the end

    def failed(self, error: Exception) -> Record:
        """The record of a run that has ended with an exception."""
        message = f"{type(error).__name__}: {first_line(error)}"
        return Record(self.nodes, self.calls, [], set(), set(), decisions=self.decisions.made, error=message)

    def finish(self, result: Any, snapshots: list[ModuleSnapshot]) -> Record:
        """The record of the run that has returned `result`; `snapshots` are of the modules before it."""
        self.decisions.open = False
        with torch._C.DisableTorchFunction():
            returned = [tensor for _, tensor in tensors(result)]
            outputs = [self.node_of(tensor) for tensor in returned]
            stored = [t for snapshot in snapshots for _, value in snapshot.stored_since() for _, t in tensors(value)]
            outputs += [self.bound[id(tensor)][1] for tensor in stored if id(tensor) in self.bound]
            outputs += self._kept_elsewhere([*returned, *stored])
        replaced = {id(tensor) for snapshot in snapshots for tensor in snapshot.replaced_tensors()}
        lent = {node for call in self.calls if call.lent for node in call.nodes()}
        changed = {node for node in self.model_nodes if id(node.tensor) in replaced or self._is_changed(node)}
        self._settle_sizes()
        _no_longer_constant(changed | lent | {node for node in self.nodes if node.sized})
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
            decisions=self.decisions.made,
            sizes_asked=bool(self.decisions.numbers),
        )

    def _kept_elsewhere(self, known: Sequence[Tensor]) -> list[Node]:
        """The nodes whose tensors somebody else keeps: a global, a closure, an object that is no module."""
        ids = {id(tensor) for tensor in known}
        ids.update(id(tensor._base) for tensor in known if tensor._base is not None)
        nodes = []
        for key, (reference, node, _) in self.bound.items():
            tensor = reference()
            if tensor is not None and key not in ids and node.tensor is None and node.function is not None:
                nodes.append(node)
        return nodes

    def _settle_sizes(self) -> None:
        """Let sizes that are the same number for every input be plain numbers in the arguments of operations."""
        if not any(node.spelling is not None for node in self.nodes):
            return
        dims = Dims(self._fixed_sizes())
        for node in self.nodes:
            if node.spelling is not None:
                function, args, kwargs = node.spelling
                args, kwargs = _settled(args, dims), _settled(kwargs, dims)
                symbolic = is_symbolic((args, kwargs))
                node.spelling = (function, args, kwargs) if symbolic or node.affine_part is not None else None
            node.sized = node.resized or any(operand.sized for operand in node.inputs)

    def _fixed_sizes(self) -> dict[Any, int]:
        """The sizes that a layer accepts alone: those of the channels that it reads."""
        dims, fixed = Dims(), dict[Any, int]()
        for node in self.nodes:
            channels = facts(node.op).channels
            if channels is None or node.op not in CHANNEL_COUNTING or not node.operands:
                continue
            operand = node.operands[0]
            if operand is not node.inputs[0] or not -len(operand.shape) <= channels < len(operand.shape):
                continue
            length = dims.of(operand)[channels]
            if len(length) == 1 and (only := next(iter(length.items())))[1] == 1 and len(only[0]) == 1:
                fixed[only[0][0]] = operand.shape[channels]
        return fixed

    def _is_changed(self, node: Node) -> bool:
        """Whether the run has written to a tensor of the model."""
        _, tensor, version, pointer = self.model_tensors[id(node.tensor)]
        return tensor._version != version or address(tensor) != pointer


VALUES = "the values of tensors"


def _settled(tree: Any, dims: Dims) -> Any:
    kind = type(tree)
    if issubclass(kind, Symbolic):
        number = None if any(atoms(tree.expression, ITEM)) else dims.number(tree.expression)
        return tree if number is None else tree.value
    if kind in (tuple, list, Shape):
        items = [_settled(item, dims) for item in tree]
        return items if kind is list else tuple(items)
    if kind is dict:
        return {key: _settled(item, dims) for key, item in tree.items()}
    if kind is slice:
        return slice(_settled(tree.start, dims), _settled(tree.stop, dims), _settled(tree.step, dims))
    return tree


def _holds_containers(tree: Any) -> bool:
    """Whether arguments hold lists or dicts."""
    values = tree.values() if isinstance(tree, Mapping) else tree
    return any(isinstance(item, (list, dict)) or (type(item) is tuple and _holds_containers(item)) for item in values)


def _same(now: Any, then: Any) -> bool:
    """Whether two trees hold the very same leaves."""
    if type(now) is not type(then):
        return False
    if isinstance(now, Mapping):
        return list(now) == list(then) and _same(list(now.values()), list(then.values()))
    if type(now) in (tuple, list):
        return len(now) == len(then) and all(map(_same, now, then))
    return now is then or not isinstance(now, Node)


def _no_longer_constant(nodes: set[Node]) -> None:
    """Tensors that the run changes are not constant, nor is what is computed from them."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.constant:
            node.constant = False
            pending += node.readers
