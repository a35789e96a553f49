"""One call of a model that leaves its inputs, torch's random state and the caches of user code as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from reparam.capture.caches import cached_functions, emptied
from reparam.capture.inputs import Inputs
from reparam.capture.process import exclusive
from reparam.capture.tree import leaves
from reparam.compare.error import Leaves


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
        with _seeded(seed), emptied(cached_functions(model) if mode else ()), mode or nullcontext():
            return dict(leaves(clones.call(model)))
    except Exception as error:
        raise ModelFailure(f"{type(error).__name__}: {error}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
