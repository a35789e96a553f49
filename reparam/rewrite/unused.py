"""What a model no longer uses after an edit: modules, parameters and buffers that only removed operations read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from torch import Tensor, nn

from reparam.capture.graph import Call, Node, Record, is_torch_layer, used_only_by
from reparam.capture.norms import NORM_MODULES, drop_affine
from reparam.capture.snapshot import WEIGHT_HOOKS
from reparam.rewrite.call_graph import CallGraph
from reparam.rewrite.code import forward_of
from reparam.rewrite.context import only_read_by
from reparam.rewrite.program import Program


class UnusedModules:
    """Finds what removed operations alone use, in the model as it was recorded.

    parents: the modules that hold each module, with the name it has there; kept up to date by whoever exchanges one.
    stripped: the modules that have lost tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        record: Record,
        removed: Collection[Node],
        parents: Mapping[nn.Module, Sequence[tuple[nn.Module, str]]],
    ) -> None:
        self.removed = removed
        self.parents = parents
        self.readers = record.readers()
        self.calls: dict[nn.Module, list[Call]] = defaultdict(list)
        for call in record.calls:
            self.calls[call.module].append(call)
        self.stripped: set[nn.Module] = set()
        self.modules = self._unused_modules(model, record)

    def drop(self, code: CallGraph, names: Set[str], idle: Collection[str]) -> None:
        """Delete from a rewritten module what its new forward does not need.

        names: of what the forward uses; idle: the paths of modules whose calls have been erased.
        """
        module, used = code.module, _UsedNames(names)
        for path, inner in list(module.named_modules()):
            unused = inner in self.modules or path in idle or self._is_written_out(inner, code)
            if path and unused and not used.overlap(path):
                self._drop_module(module, path)
        paths = {inner: path for path, inner in module.named_modules()}
        for opened in code.opened:
            if opened in paths:
                self._drop_tensors(opened, f"{paths[opened]}." if paths[opened] else "", names)

    def _unused_modules(self, model: nn.Module, record: Record) -> set[nn.Module]:
        """The modules of which every call runs removed operations only, and whose tensors no other code reads.

        Also modules that are never called, if only removed operations read their tensors.
        """
        all_removed: dict[nn.Module, bool] = defaultdict(lambda: True)
        for call in record.calls:
            nodes = [node for node in call.nodes() if not node.constant]
            all_removed[call.module] &= bool(nodes) and all(node in self.removed for node in nodes)
        unused = {module for module, removed in all_removed.items() if removed and self._only_removed_read(module)}
        for module in model.modules():
            is_called = any(inner in all_removed and inner not in unused for inner in module.modules())
            if module not in all_removed and not is_called and self._is_read(module):
                unused |= {module} if self._only_removed_read(module) else set()
        return unused

    def _is_written_out(self, module: nn.Module, code: CallGraph) -> bool:
        """Whether every call of a module is written out in the new forward, and no other code reads its tensors."""
        calls = self.calls[module]
        opened = all(outer.module in code.opened for call in calls for outer in _inside(call, code.module))
        return bool(calls) and opened and self._only_removed_read(module)

    def _only_removed_read(self, module: nn.Module) -> bool:
        return only_read_by(self.removed, module, self.readers)

    def _is_read(self, module: nn.Module) -> bool:
        """Whether code reads all floating-point tensors of a module, which has some. Counters are integers."""
        tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
        return bool(tensors) and all(self.readers.get(id(tensor)) for tensor in tensors)

    def is_unread(self, module: nn.Module, name: str, sources: Collection[Tensor]) -> bool:
        """Whether a module with a new forward no longer needs a weight that it computes from these tensors."""
        program = forward_of(module)
        if not isinstance(program, Program) or name in program.members():
            return False
        return all(used_only_by(reader, self.removed) for tensor in sources for reader in self.readers[id(tensor)])

    def _drop_tensors(self, module: nn.Module, prefix: str, names: Collection[str]) -> None:
        """Delete the tensors of one module that only removed operations read; `prefix` is its path with a dot."""
        is_layer = is_torch_layer(module)
        for registry in (module._parameters, module._buffers):
            for name, tensor in list(registry.items()):
                readers = self.readers[id(tensor)]
                unread = readers and all(used_only_by(reader, self.removed) for reader in readers)
                if prefix + name in names or not unread:
                    continue
                self.stripped.add(module)
                if is_layer:
                    registry[name] = None  # like a missing bias: its repr asks for it
                else:
                    del registry[name]
        if isinstance(module, tuple(NORM_MODULES)) and not any(p is not None for p in module._parameters.values()):
            drop_affine(module)
        stems = {name.rpartition("_")[0] for name in (*module._parameters, *module._buffers)}
        for key, hook in list(module._forward_pre_hooks.items()):
            if type(hook).__module__ in WEIGHT_HOOKS and vars(hook)["name"] not in stems:
                del module._forward_pre_hooks[key]  # it computes a weight from tensors that are gone

    def _drop_module(self, module: nn.Module, path: str) -> None:
        """Delete an inner module, and the containers that are empty without it."""
        parent_path, _, name = path.rpartition(".")
        try:
            parent = module.get_submodule(parent_path)
        except AttributeError:
            return  # deleted together with a module around it
        if parent is not module and len(self.parents[parent]) > 1:
            return  # other modules hold the parent as well
        parent._modules.pop(name, None)
        if parent_path and not parent._modules and isinstance(parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            self._drop_module(module, parent_path)


def _inside(call: Call, module: nn.Module) -> Iterator[Call]:
    """A call and its callers as far as one of `module`; all of them if there is none."""
    for outer in call.stack():
        if outer.module is module:
            return
        yield outer


class _UsedNames:
    """Qualified names that code uses, with the paths of all modules around them."""

    def __init__(self, names: Set[str]) -> None:
        self.names = names
        self.around = {path for name in names for path in _prefixes(name)}

    def overlap(self, path: str) -> bool:
        """Whether a used name is this module, in it or around it."""
        return path in self.around or not self.names.isdisjoint(_prefixes(path))


def _prefixes(path: str) -> list[str]:
    """The path itself and those of the modules around it."""
    ends = [*(i for i, letter in enumerate(path) if letter == "."), len(path)]
    return [path[:end] for end in ends]
