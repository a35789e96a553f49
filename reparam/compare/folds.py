"""Each fold checked alone, in float64, before its weights are rounded; and the price of rounding them.

The user's operations are compared with the fold that replaces them, on random inputs of two sizes: the smallest that
the operations accept, where every pixel is at the border, and an odd, non-square one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from reparam.capture.graph import Node
from reparam.compare.error import relative_error
from reparam.compare.verification import Check
from reparam.errors import Refusal
from reparam.plan.fold import Fold

_LARGER = (2, 5, 3)  # pixels beyond the smallest size: even and odd, different per axis
_TRIES = 16


def fold_error(fold: Fold, generator: torch.Generator) -> float:
    """The largest error of a fold, relative to max|truth|, over both sizes; inf where the shape differs."""
    return max(relative_error(truth, fold.apply(inputs)) for inputs, truth in _cases(fold, generator))


def overflow(fold: Fold) -> Refusal | None:
    """Why the weights of a fold do not fit into the dtype of its operations; None where they do."""
    dtype = fold.sink.dtype
    if dtype is None or not dtype.is_floating_point or fold.value.identity:
        return None
    ends = [end.item() for tensor in (fold.value.kernel(), fold.value.bias_value()) for end in tensor.aminmax()]
    largest = max(map(abs, ends))
    if largest <= torch.finfo(dtype).max:
        return None
    name = str(dtype).removeprefix("torch.")
    return Refusal(
        f"folded, its weights would be as large as {largest:.2g}, and {name} ends at {torch.finfo(dtype).max:.2g}",
        "a model in bfloat16 or float32 would fold",
    )


def imprecision(check: Check) -> Refusal:
    """Why a fold that makes a model fail `check`, in its own dtype alone, is left out."""
    return Refusal(
        f"folded, it would lose precision: in the model's own dtype {check.name} would be off by {check.error:.2g}, "
        f"and the rounding of the original explains {check.bound:.2g}",
        "a model of a finer dtype would fold",
    )


_Case: TypeAlias = tuple[Mapping[Node, Tensor], Tensor]


def _cases(fold: Fold, generator: torch.Generator) -> list[_Case]:
    """Random inputs, and the output of the user's operations for them."""
    if not fold.resizable:
        return [_case(fold, {node: node.shape for node in fold.inputs}, generator)]
    smallest = [axis.min_length for axis in fold.value.axes]
    larger = [size + more for size, more in zip(smallest, itertools.cycle(_LARGER), strict=False)]
    return [_legal(fold, sizes, generator) for sizes in (smallest, larger)]


def _case(fold: Fold, shapes: Mapping[Node, Sequence[int]], generator: torch.Generator) -> _Case:
    inputs = {node: torch.randn(shape, generator=generator, dtype=torch.float64) for node, shape in shapes.items()}
    return inputs, fold.original(inputs)


def _legal(fold: Fold, sizes: list[int], generator: torch.Generator) -> _Case:
    """The case of the smallest size from `sizes` on that the user's operations accept."""
    for more in range(_TRIES):
        try:
            shape = (2, fold.base.shape[1], *(size + more for size in sizes))
            return _case(fold, {fold.base: shape}, generator)
        except (RuntimeError, ValueError):
            continue  # too small for an operation on the way
    return _case(fold, {fold.base: fold.base.shape}, generator)
