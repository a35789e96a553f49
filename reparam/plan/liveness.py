"""Dead weight: what a model holds and no output of the recorded run depends on.

Auxiliary heads that only training calls, modules whose result is dropped, parameters that nobody reads. A tensor is
alive if something that an output depends on has read it, under whatever name; a module is dead if everything in it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.capture.graph import Call, Node, Record, nodes_in
from reparam.plan.fold import Fold

# Counted while training, never read in eval: part of a dead norm, but nothing to name in one that is alive.
_COUNTERS = ("num_batches_tracked",)


@dataclass(frozen=True, eq=False)
class Dead:
    """A module that is dead as a whole, or a single dead tensor of one that is not; `name` is its path in the model.

    why: how the run passed it by; tensors: what dies with it, each tensor under the first name that it has.
    """

    name: str
    held: nn.Module | Tensor
    why: str
    tensors: tuple[Tensor, ...]

    @property
    def kind(self) -> str:
        """The class of the module, or what the tensor is."""
        if isinstance(self.held, nn.Module):
            return type(self.held).__name__
        return "parameter" if isinstance(self.held, nn.Parameter) else "buffer"

    @property
    def elements(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def modules(self) -> set[nn.Module]:
        return set(self.held.modules()) if isinstance(self.held, nn.Module) else set()


def around(record: Record, modules: Collection[nn.Module]) -> set[Node]:
    """What goes into these modules and comes out of them."""
    calls = [call for call in record.calls if call.module in set(modules)]
    return {node for call in calls for node in nodes_in((call.args, call.kwargs, call.result)) if not node.constant}


def from_outside(node: Node) -> bool:
    """Whether nothing is known of its origin: TorchScript, an extension, a tensor that no module holds."""
    return node.name.startswith("unknown") and not node.inputs


def dead_weight(model: nn.Module, record: Record, live: Collection[Node]) -> list[Dead]:
    """Everything that `live` does not need, in the order of the model, each at the outermost module that is dead.

    Nothing where the output depends on a tensor of unknown origin: any weight may have gone into that one.
    """
    if any(map(from_outside, live)):
        return []
    return list(_Walk(record, live, model).below(model, ""))


class _Walk:
    def __init__(self, record: Record, live: Collection[Node], model: nn.Module) -> None:
        read = [node.tensor for node in live if node.tensor is not None]
        hidden = [tensor for each in model.modules() if compiled(each) for tensor in _held(each)]
        self.alive = {_memory(tensor) for tensor in (*read, *hidden)}
        self.readers = record.readers()
        self.called = {call.module for call in record.calls}
        self.busy = {call.module for call in record.calls if not idle(call, live)}
        self.named: set[int] = set()

    def below(self, module: nn.Module, path: str) -> Iterator[Dead]:
        """The dead weight inside a module that is not dead as a whole."""
        own = [*module._parameters.items(), *module._buffers.items()]
        for name, tensor in own:
            if tensor is not None and name not in _COUNTERS and self._dead([tensor]):
                yield from self._named(path + name, tensor, [tensor])
        for name, child in module._modules.items():
            if child is None or compiled(child):
                continue
            read = [tensor for key, tensor in _items(child) if key not in _COUNTERS]
            if self._dead(read) and self.busy.isdisjoint(child.modules()):
                yield from self._named(path + name, child, list(_held(child)))
            else:
                yield from self.below(child, f"{path}{name}.")

    def _dead(self, tensors: list[Tensor]) -> bool:
        return bool(tensors) and not any(tensor.numel() and _memory(tensor) in self.alive for tensor in tensors)

    def _named(self, name: str, held: nn.Module | Tensor, tensors: list[Tensor]) -> Iterator[Dead]:
        new = tuple({id(tensor): tensor for tensor in tensors if id(tensor) not in self.named}.values())
        self.named.update(map(id, new))
        if any(tensor.numel() for tensor in new):
            yield Dead(name, held, self._why(held, tensors), new)

    def _why(self, held: nn.Module | Tensor, tensors: list[Tensor]) -> str:
        called = isinstance(held, nn.Module) and not self.called.isdisjoint(held.modules())
        if called or any(id(tensor) in self.readers for tensor in tensors):
            return "its result is dropped"
        return "never called" if isinstance(held, nn.Module) else "never read"


def idle(call: Call, live: Collection[Node]) -> bool:
    """Whether a call computes and returns nothing that is alive."""
    return not any(node in live for node in (*call.nodes(), *nodes_in(call.result)))


def _held(module: nn.Module) -> Iterator[Tensor]:
    return (tensor for _, tensor in _items(module))


def _items(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a module and those inside it, with its own name in its module."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name.rpartition(".")[2], tensor


def compiled(module: nn.Module) -> bool:
    """Whether it runs outside Python, where no run is recorded."""
    return isinstance(module, torch.jit.ScriptModule)


def _memory(tensor: Tensor) -> int:
    """What tensors share that are views of one another."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def alive(record: Record) -> set[Node]:
    """Every node that an output depends on, or what hooks look at, or a number that is read from a tensor.

    A tensor of which only the size is asked has to exist as well: what it is computed from may not be another's input.
    A write counts where its memory is that of something alive, of an input or of the model, for others see it; and
    where the same code, in another call of its module, makes a write that counts.
    """
    live = _reached([*record.outputs, *record.barriers, *filter(_number, record.nodes)], {})
    given = [node for node in record.nodes if node.function is None]
    given += [operand for node in record.nodes for operand in node.inputs if operand.tensor is not None]
    writes = {
        node: (node.call.module, node.call.events.index(node)) for node in record.nodes if node.inplace and node.call
    }
    while True:
        lasting = {0, *(node.storage for node in (*given, *live))}  # 0: nobody knows which memory it has
        reaching = {write for memory in lasting for write in record.writes.get(memory, ())}
        code = {place for write, place in writes.items() if write in live or write in reaching}
        seen = [write for write, place in writes.items() if place in code and write not in live]
        seen += [node for node in record.nodes if node.size_read and node.function is not None and node not in live]
        if not seen:
            return live
        live |= _reached(seen, {})


def _number(node: Node) -> bool:
    """Whether it reads a number out of a tensor."""
    return node.dtype is None and not node.readers


def asked_alone(node: Node, live: Collection[Node]) -> bool:
    """Whether nothing but its size is needed."""
    return node.size_read and not node.constant and not any(reader in live for reader in node.readers)


def computed(record: Record, folds: Iterable[Fold], live: Collection[Node]) -> set[Node]:
    """Every node that is still computed when folds stand for the operations before their sinks."""
    bases = {fold.sink: (fold.base,) for fold in folds}
    inside = {node for fold in folds for node in fold.nodes}
    roots = [n for n in live if n in record.barriers or (n not in inside and (n.inplace or _number(n)))]
    roots += [node for node in live if asked_alone(node, live)]
    return _reached([*record.outputs, *roots], bases)


def _reached(waiting: list[Node], instead: Mapping[Node, tuple[Node, ...]]) -> set[Node]:
    """Everything that the nodes depend on; one in `instead` depends on what stands there and is not counted."""
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += instead.get(node, node.inputs)
    return seen - instead.keys()
