"""One call of a model that leaves its inputs, torch's random state and the caches of user code as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.capture.process import exclusive
from reparam.capture.tree import leaves
from reparam.compare.error import Leaves

_CACHED_FUNCTION = type(cache(len))


class ModelFailure(Exception):
    """A model raised on inputs that it was given; the text says what."""


@exclusive
def run(
    model: Callable[..., Any], inputs: Inputs, seed: int, mode: AbstractContextManager[Any] | None = None
) -> Leaves:
    """The leaves of what a model returns. It is called once, on clones of the inputs, under `seed` and `mode`, if any.

    Raises ModelFailure where the model raises anything.
    """
    clones = inputs.map(Tensor.clone)
    try:
        with _seeded(seed), _restored_caches(model) if mode else nullcontext(), mode or nullcontext():
            return dict(leaves(clones.call(model)))
    except Exception as error:
        raise ModelFailure(f"{type(error).__name__}: {error}") from error


@contextmanager
def _restored_caches(model: Callable[..., Any]) -> Iterator[None]:
    """Clear the `functools` caches of user code that have been filled meanwhile: they would keep float64 tensors."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    classes = {base for module in modules for base in type(module).__mro__ if not _is_builtin(base)}
    scopes = [scope for base in classes for scope in (vars(base), vars(sys.modules.get(base.__module__, base)))]
    caches = {id(value): value for scope in scopes for value in scope.values() if isinstance(value, _CACHED_FUNCTION)}
    misses = {key: function.cache_info().misses for key, function in caches.items()}
    try:
        yield
    finally:
        for key, function in caches.items():
            if function.cache_info().misses != misses[key]:
                function.cache_clear()


def _is_builtin(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("torch", "builtins")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
