"""One call of a model that leaves nothing behind: neither in its inputs, nor in torch's random state, nor in tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.capture.tree import leaves

Leaves: TypeAlias = dict[str, Any]
"""The leaves of an output by path: tensors, and whatever else a model returns."""

_CACHED = type(cache(len))


class ModelFailure(Exception):
    """A model raised on inputs that it was given; the text says what."""


def run(
    model: Callable[..., Any], inputs: Inputs, seed: int, mode: AbstractContextManager[Any] | None = None
) -> Leaves:
    """The leaves of one call on clones (a model may write to its input), under a seed of its own and a `mode`, if any.

    Raises ModelFailure where the model raises anything.
    """
    fresh = inputs.map(Tensor.clone)
    try:
        with _seeded(seed), _own_tables(model) if mode else nullcontext(), mode or nullcontext():
            return dict(leaves(fresh.call(model)))
    except Exception as error:
        raise ModelFailure(f"{type(error).__name__}: {error}") from error


@contextmanager
def _own_tables(model: Callable[..., Any]) -> Iterator[None]:
    """Nothing stays in functions with a cache, where user code keeps tables, of what is made in float64."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    kinds = {kind for module in modules for kind in type(module).__mro__ if not _of_torch(kind)}
    scopes = [scope for kind in kinds for scope in (vars(kind), vars(sys.modules.get(kind.__module__, kind)))]
    caches = {id(each): each for scope in scopes for each in scope.values() if isinstance(each, _CACHED)}
    before = {key: each.cache_info().misses for key, each in caches.items()}
    try:
        yield
    finally:
        for key, each in caches.items():
            if each.cache_info().misses != before[key]:
                each.cache_clear()


def _of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
