"""Nested containers of tensors: arguments and results of forwards, whatever classes they are of."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

_LEAVES = (Tensor, int, float, str, type(None), torch.Size, torch.dtype, torch.device, bytes)
_OPAQUE = (*_LEAVES, nn.Module, type)  # not searched for tensors


def mapped(tree: T, change: Callable[[Any], Any]) -> T:
    """`tree` with `change` applied to every leaf. Containers keep their types and are new objects.

    Not torch's pytree: to that, dataclasses and subclasses of dict (a `ModelOutput`) that nobody has registered are
    leaves, and it gives no paths.
    """
    result: Any = tree
    if isinstance(tree, _LEAVES):
        result = change(tree)
    elif isinstance(tree, (tuple, list)):
        make = getattr(type(tree), "_make", type(tree))  # a named tuple's constructor wants its fields one by one
        result = make([mapped(item, change) for item in tree])
    elif isinstance(tree, Mapping):
        result = _mapped_mapping(tree, change)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        result = copy.copy(tree)
        for field in dataclasses.fields(tree):  # works for frozen ones, and runs no __init__
            object.__setattr__(result, field.name, mapped(getattr(tree, field.name), change))
    else:
        result = change(tree)
    return result  # type: ignore[no-any-return]


def field_values(tree: Any) -> dict[str, Any]:
    """The values of the fields of a dataclass, with or without slots."""
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _mapped_mapping(tree: Mapping[Any, Any], change: Callable[[Any], Any]) -> Any:
    """A shallow copy with other values, so that a defaultdict or a ModelOutput stays one; a dict where it is frozen."""
    values = {key: mapped(value, change) for key, value in tree.items()}
    if not isinstance(tree, MutableMapping):
        return values
    try:
        result = copy.copy(tree)
        for key, value in values.items():
            result[key] = value
    except Exception:  # noqa: BLE001 - a class that refuses to be written to may raise anything
        return values
    return result


def tensors(tree: Any, name: str = "out") -> list[tuple[str, Tensor]]:
    """Every tensor in `tree` with its path, such as `out['logits'][0]`, in a fixed order.

    The attributes of plain objects (a key-value cache is one) are searched as well, each object once.
    """
    return [(path, leaf) for path, leaf in leaves(tree, name) if isinstance(leaf, Tensor)]


def leaves(tree: Any, name: str = "out") -> list[tuple[str, Any]]:
    """Every leaf in `tree`, tensor or not, with its path. An empty container has none."""
    return list(_leaves(tree, name, ()))


def _leaves(tree: Any, path: str, ancestors: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    children = _children(tree, path)
    if children is None or id(tree) in ancestors:
        yield path, tree
        return
    for child_path, child in children:
        yield from _leaves(child, child_path, (*ancestors, id(tree)))


def _children(tree: Any, path: str) -> list[tuple[str, Any]] | None:
    """What a container holds, with paths; None for a leaf."""
    if isinstance(tree, _OPAQUE):
        return None
    if isinstance(tree, (tuple, list)):
        return [(f"{path}[{i}]", item) for i, item in enumerate(tree)]
    if isinstance(tree, Mapping):
        return [(f"{path}[{key!r}]", value) for key, value in tree.items()]
    if dataclasses.is_dataclass(tree):
        return [(f"{path}.{name}", value) for name, value in field_values(tree).items()]
    if callable(tree):
        return None
    try:
        attributes = vars(tree)
    except TypeError:  # a number, None, anything with slots
        return None
    return [(f"{path}.{key}", value) for key, value in attributes.items()]
