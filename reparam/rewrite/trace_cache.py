"""Modules that nothing tells apart but the numbers in their tensors, as the blocks of one stage are.

Code that does not look at those numbers does the same in each of them. One symbolic trace serves them all then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reparam.capture.tree import tensors
from reparam.rewrite.signature import LITERALS

_CONTAINERS = (tuple, list, dict, OrderedDict)
_REGISTRIES = ("_parameters", "_buffers")


def contents(module: nn.Module, opened: Collection[nn.Module]) -> Any:
    """What is equal for two such modules: all that they and the modules inside hold, and which of these are `opened`.

    What is neither a plain value, a parameter, a buffer, a module nor a container of such has to be the very same.
    """
    places: dict[int, int] = {}

    def placed(held: Tensor | nn.Module) -> tuple[int, bool]:
        known = id(held) in places
        return places.setdefault(id(held), len(places)), known

    def described(value: Any, registered: bool = False) -> Any:
        kind = type(value)
        if kind in LITERALS:
            return kind, value
        if kind in _CONTAINERS:
            items = [*value, *value.values()] if isinstance(value, dict) else value
            return kind, *(described(item, registered) for item in items)
        if kind is set:
            return kind, frozenset(map(described, value))
        if isinstance(value, nn.Module):
            place, known = placed(value)
            if known:
                return place
            held = ((name, described(each, name in _REGISTRIES)) for name, each in vars(value).items())
            return kind, value in opened, *held
        if registered and isinstance(value, Tensor):
            return kind, placed(value)[0]
        return id(value)

    return len(opened), described(module)


class Watch(TorchFunctionMode):
    """Within it: `looked` tells whether code has called anything with a tensor that is no proxy."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.looked = self.looked or bool(tensors((args, kwargs)))
        return func(*args, **(kwargs or {}))
