"""Liveness: which recorded tensors an output depends on, and the dead weight that none depends on.

Dead weight is what a model holds for nothing: auxiliary heads that only training calls, modules whose result is
dropped, parameters that nobody reads. A tensor is alive if an operation that an output depends on reads it, under
whatever name. A module is dead if everything in it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reparam.capture.graph import Call, Node, Record, nodes_in
from reparam.plan.fold import Fold

# Counted while training, never read in eval: they die with their norm, and are not named where the norm is alive.
_COUNTERS = ("num_batches_tracked",)


# --- nodes


def alive(record: Record) -> set[Node]:
    """The nodes that an output depends on, or a hook, or a number that code reads from a tensor.

    A tensor of which only the size is asked is alive as well. So is a write to memory that others see: that of a live
    node, of an input or of the model. The same code in another call of its module then counts, too.
    """
    live = _ancestors([*record.outputs, *record.barriers, *filter(_is_number, record.nodes)], {})
    given = [node for node in record.nodes if node.function is None]
    given += [operand for node in record.nodes for operand in node.inputs if operand.tensor is not None]
    writes = {
        node: (node.call.module, node.call.events.index(node)) for node in record.nodes if node.inplace and node.call
    }
    while True:
        visible = {0, *(node.storage for node in (*given, *live))}  # 0: unknown storage
        visible_writes = {write for memory in visible for write in record.writes.get(memory, ())}
        live_code = {place for write, place in writes.items() if write in live or write in visible_writes}
        added = [write for write, place in writes.items() if place in live_code and write not in live]
        added += [node for node in record.nodes if node.size_read and node.function is not None and node not in live]
        if not added:
            return live
        live |= _ancestors(added, {})


def computed(record: Record, folds: Iterable[Fold], live: Collection[Node]) -> set[Node]:
    """The nodes that are still computed when folds replace the operations before their sinks."""
    bases = {fold.sink: (fold.base,) for fold in folds}
    folded = {node for fold in folds for node in fold.nodes}
    roots = [n for n in live if n in record.barriers or (n not in folded and (n.inplace or _is_number(n)))]
    roots += [node for node in live if only_size_needed(node, live)]
    return _ancestors([*record.outputs, *roots], bases)


def only_size_needed(node: Node, live: Collection[Node]) -> bool:
    """Whether code asks for the tensor's size and no live operation reads it."""
    return node.size_read and not node.constant and not any(reader in live for reader in node.readers)


def with_pinned(record: Record, modules: Collection[nn.Module]) -> Record:
    """The record with the tensors that calls of these modules take and return among its barriers."""
    calls = [call for call in record.calls if call.module in set(modules)]
    trees = ((call.args, call.kwargs, call.result) for call in calls)
    boundary = {node for tree in trees for node in nodes_in(tree) if not node.constant}
    return replace(record, barriers=record.barriers | boundary)


def has_unknown_origin(node: Node) -> bool:
    """Whether nothing is known of how it was computed: by TorchScript or an extension, or held by no module."""
    return node.name.startswith("unknown") and not node.inputs


def is_dead_call(call: Call, live: Collection[Node]) -> bool:
    """Whether a call computes and returns nothing that is alive."""
    return not any(node in live for node in (*call.nodes(), *nodes_in(call.result)))


def _is_number(node: Node) -> bool:
    """Whether it reads a number from a tensor."""
    return node.dtype is None and not node.readers


def _ancestors(pending: list[Node], bases: Mapping[Node, tuple[Node, ...]]) -> set[Node]:
    """Everything that the nodes depend on. A node in `bases` depends on those instead, and is not counted itself."""
    visited: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in visited:
            visited.add(node)
            pending += bases.get(node, node.inputs)
    return visited - bases.keys()


# --- weights


@dataclass(frozen=True, eq=False)
class Dead:
    """A module that is dead as a whole, or a dead tensor of a module that is not.

    name: its path in the model; member: the module or tensor itself.
    why: what the run did instead of using it.
    tensors: the tensors that die with it, each under its first name only.
    """

    name: str
    member: nn.Module | Tensor
    why: str
    tensors: tuple[Tensor, ...]

    @property
    def kind(self) -> str:
        """The class of the module, "parameter" or "buffer"."""
        if isinstance(self.member, nn.Module):
            return type(self.member).__name__
        return "parameter" if isinstance(self.member, nn.Parameter) else "buffer"

    @property
    def elements(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def modules(self) -> set[nn.Module]:
        return set(self.member.modules()) if isinstance(self.member, nn.Module) else set()


def dead_weight(model: nn.Module, record: Record, live: Collection[Node]) -> list[Dead]:
    """Everything that `live` does not need, in the order of the model, each at the outermost module that is dead.

    Empty where the output depends on a tensor of unknown origin: any weight may have gone into that one.
    """
    if any(map(has_unknown_origin, live)):
        return []
    return list(_DeadWeightSearch(record, live, model).inside(model, ""))


class _DeadWeightSearch:
    def __init__(self, record: Record, live: Collection[Node], model: nn.Module) -> None:
        read = [node.tensor for node in live if node.tensor is not None]
        scripts = (module for module in model.modules() if is_script(module))
        unrecorded = [tensor for script in scripts for _, tensor in _named_tensors(script)]
        self.live_memory = {_memory(tensor) for tensor in (*read, *unrecorded)}
        self.readers = record.readers()
        self.called = {call.module for call in record.calls}
        self.busy = {call.module for call in record.calls if not is_dead_call(call, live)}
        self.counted: set[int] = set()

    def inside(self, module: nn.Module, path: str) -> Iterator[Dead]:
        """The dead weight inside a module that is not dead as a whole."""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in _COUNTERS and self._all_dead([tensor]):
                yield from self._dead(path + name, tensor, [tensor])
        for name, child in module._modules.items():
            if child is None or is_script(child):
                continue
            tensors = list(_named_tensors(child))
            read = [tensor for key, tensor in tensors if key not in _COUNTERS]
            if self._all_dead(read) and self.busy.isdisjoint(child.modules()):
                yield from self._dead(path + name, child, [tensor for _, tensor in tensors])
            else:
                yield from self.inside(child, f"{path}{name}.")

    def _all_dead(self, tensors: list[Tensor]) -> bool:
        return bool(tensors) and not any(tensor.numel() and _memory(tensor) in self.live_memory for tensor in tensors)

    def _dead(self, name: str, member: nn.Module | Tensor, tensors: list[Tensor]) -> Iterator[Dead]:
        """The dead weight of that name; none where an earlier name has all of its tensors."""
        new = tuple({id(tensor): tensor for tensor in tensors if id(tensor) not in self.counted}.values())
        self.counted.update(map(id, new))
        if any(tensor.numel() for tensor in new):
            yield Dead(name, member, self._why(member, tensors), new)

    def _why(self, member: nn.Module | Tensor, tensors: list[Tensor]) -> str:
        called = isinstance(member, nn.Module) and not self.called.isdisjoint(member.modules())
        if called or any(id(tensor) in self.readers for tensor in tensors):
            return "its result is dropped"
        return "never called" if isinstance(member, nn.Module) else "never read"


def is_script(module: nn.Module) -> bool:
    """Whether the module is TorchScript, which runs outside Python, where no run is recorded."""
    return isinstance(module, torch.jit.ScriptModule)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a module and of those inside it, with its name in the module that holds it."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name.rpartition(".")[2], tensor


def _memory(tensor: Tensor) -> int:
    """A key of the tensor's memory: equal for views of one another."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)
