"""Snapshots of what modules hold, so that running or tracing a model leaves it as it was; and copies of models."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from reparam.capture.tree import tensors
from reparam.errors import ModelError

_REGISTRIES = ("_parameters", "_buffers", "_modules")
# Where the hooks come from that compute a weight before a forward, and watch nothing.
WEIGHT_HOOKS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))  # most of them registries of hooks


class AttributeSnapshot:
    """The attributes of a module, and the contents of those that are lists, dicts or sets (caches of a forward)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = dict(vars(module))
        visited: set[int] = set()
        self.caches = [
            (name, container, _content(container))
            for name, value in self.values.items()
            if name not in _TORCH_ATTRIBUTES
            for container in _containers([value], visited)
        ]
        self._ids = [{id(item) for item in _items(content)} for _, _, content in self.caches]
        registries = [(key, self.values[key], dict(self.values[key])) for key in _REGISTRIES]
        self.contents = [("__dict__", vars(module), self.values), *self.caches, *registries]

    def restore(self) -> None:
        """Put back what has changed. The containers stay the same objects, as others may refer to them.

        Raises ModelError for a container that has changed and cannot be written to.
        """
        for name, container, content in self.contents:
            if _is_same(_content(container), content):
                continue
            try:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
            except Exception as error:
                raise ModelError(
                    f"the forward of {type(self.module).__name__} changes self.{name}, and its "
                    f"class {type(container).__name__} does not let it be put back: {type(error).__name__}: {error}; "
                    "keep what a forward changes in a plain dict, list or set"
                ) from error

    def stored_since(self) -> Iterator[tuple[str, Any]]:
        """The values that were stored after the snapshot, each with the name of the attribute that holds it."""
        attributes = vars(self.module)
        if not _is_same(attributes, self.values):
            for name, value in attributes.items():
                if name not in _REGISTRIES and self.values.get(name) is not value:
                    yield name, value
        for (name, container, content), before in zip(self.caches, self._ids, strict=True):
            if not _is_same(_content(container), content):
                yield from ((name, item) for item in _items(container) if id(item) not in before)


class ModuleSnapshot(AttributeSnapshot):
    """The attributes of a module, its registries, and the values of its buffers.

    Parameters are not copied: a forward does not write to them, but may replace their memory.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.registries = {key: dict(self.values[key]) for key in _REGISTRIES if key in self.values}
        own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        self.memory = [(tensor, tensor.data, tensor._version) for tensor in own if not is_lazy(tensor)]
        self.copies = {id(t): t.detach().clone() for t in module._buffers.values() if t is not None and not is_lazy(t)}

    def restore(self) -> None:
        super().restore()
        with torch.no_grad():
            for tensor, data, version in self.memory:
                if address(tensor) != address(data):
                    tensor.data = data
                if tensor._version != version and id(tensor) in self.copies:
                    tensor.copy_(self.copies[id(tensor)])

    def replaced_tensors(self) -> Iterator[Tensor]:
        """The tensors that the module held and holds no more, as others were put in their place."""
        attributes = vars(self.module)
        registries = [(then, attributes.get(key, {})) for key, then in self.registries.items()]
        for then, now in [(self.values, attributes), *registries]:
            yield from (t for name, t in then.items() if isinstance(t, Tensor) and now.get(name) is not t)


@contextmanager
def restored(*models: nn.Module) -> Iterator[list[ModuleSnapshot]]:
    """A context that leaves the attributes and buffers of models as they were, with what they were.

    Raises ModelError for a container that has changed and cannot be written to.
    """
    modules = (module for model in models for module in model.modules())
    snapshots = [ModuleSnapshot(module) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    try:
        yield snapshots
    finally:
        for snapshot in snapshots:
            snapshot.restore()


def address(tensor: Tensor) -> int:
    """Where the numbers of a tensor begin in memory; 0 for a sparse one, which has several places."""
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def own_tensors(module: nn.Module) -> dict[str, int]:
    """The ids of the parameters and buffers that a module itself holds now, by name."""
    registries = (module._parameters, module._buffers)
    return {name: id(tensor) for registry in registries for name, tensor in registry.items()}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the model holds with its qualified name: parameters, buffers, plain attributes."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                yield from ((prefix + name, tensor) for name, tensor in value.items() if tensor is not None)
            elif key not in _TORCH_ATTRIBUTES and isinstance(value, (Tensor, list, tuple, dict)):
                yield from ((prefix + key + where, tensor) for where, tensor in tensors(value, ""))


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has forward hooks of the user's; those of `weight_norm` and the like do not count."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(type(hook).__module__ not in WEIGHT_HOOKS for hook in hooks)


def _containers(values: Collection[Any], visited: set[int]) -> Iterator[Any]:
    """The lists, dicts and sets among the values, and those inside them, each once."""
    for value in values:
        if isinstance(value, (list, dict, set)) and id(value) not in visited:
            visited.add(id(value))
            yield value
            yield from _containers(_items(value), visited)


def _content(container: Any) -> Any:
    """What a list, dict or set holds, as a plain one: a class of its own may not let itself be copied."""
    for kind in (dict, list, set):
        if isinstance(container, kind):
            return kind(container)
    raise AssertionError(type(container))


def _is_same(now: Any, then: Any) -> bool:
    """Whether two plain containers hold the same objects, in the same order."""
    if len(now) != len(then):
        return False
    if isinstance(now, set):
        return {id(item) for item in now} == {id(item) for item in then}
    if isinstance(now, dict) and not all(map(is_, now.values(), then.values())):
        return False
    return all(map(is_, now, then))


def _items(container: Any) -> Collection[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


M = TypeVar("M", bound=nn.Module)


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy, also of a model that holds tensors that torch refuses to copy: computed and compressed sparse ones.

    memo: that of `copy.deepcopy`: by id, what stands in the copy for objects of the model.
    """
    memo = {**_empty_registries(model), **_compilers(model), **(memo or {})}
    try:
        return copy.deepcopy(model, dict(memo))
    except RuntimeError:  # it holds such a tensor (weight norm does)
        for module in model.modules():
            for _, tensor in tensors(vars(module)):
                if not tensor.is_leaf or tensor.layout != torch.strided:
                    memo.setdefault(id(tensor), tensor.detach().clone())
        return copy.deepcopy(model, memo)


def _compilers(model: nn.Module) -> dict[int, Any]:
    """What compiles the modules that torch.compile has wrapped: a backend may hold anything, so copies share it."""
    compilers = (vars(module).get("dynamo_ctx") for module in model.modules())
    return {id(compiler): compiler for compiler in compilers if compiler is not None}


def _empty_registries(model: nn.Module) -> dict[int, Any]:
    """Copies of the registries that are empty: a dozen in every module, and slow to copy one by one."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(value): OrderedDict() for value in values if type(value) is OrderedDict and not value}
