"""The first level of verification: each fold alone, in float64, before it is rounded.

The user's operations between two tensors against the one convolution that stands for them, on drawn inputs: at the
smallest sizes that the operations accept (there everything is border) and at an odd, non-square one.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.affine import AffineConv
from reparam.capture import evaluate
from reparam.plan import Fold, last_kernel
from reparam.verify import relative_error

_LARGER = (2, 5, 3)  # pixels beyond the smallest size: even and odd, different per axis
_TRIES = 16


def fold_error(fold: Fold, generator: torch.Generator) -> float:
    """The largest error of the fold, relative to max|y|, over the sizes tried."""
    return max(_error(fold, x) for x in _inputs(fold, generator))


def _error(fold: Fold, x: Tensor) -> float:
    truth = evaluate(fold.sink, {fold.base: x.clone()})
    return relative_error(truth, _behind_steps(fold, x) if fold.steps else _plain(fold.value, x))


def _plain(value: AffineConv, x: Tensor) -> Tensor:
    pads, value = value.deployable()
    return value(F.pad(x, pads) if pads else x)


def _behind_steps(fold: Fold, x: Tensor) -> Tensor:
    """The steps as they are, the folded map at the last kernel, nothing for every other operation."""
    place = last_kernel(fold.nodes)
    for node in fold.nodes:
        if node in fold.steps:
            x = evaluate(node, {node.operands[0]: x})
        elif node is place:
            x = _plain(fold.value, x)
    return x


def _inputs(fold: Fold, generator: torch.Generator) -> list[Tensor]:
    axes, shape = fold.value.axes, fold.base.shape
    if not axes or fold.steps:
        return [torch.randn(shape, generator=generator, dtype=torch.float64)]
    smallest = [axis.smallest for axis in axes]
    larger = [size + more for size, more in zip(smallest, itertools.cycle(_LARGER), strict=False)]
    return [_legal(fold, sizes, generator) for sizes in (smallest, larger)]


def _legal(fold: Fold, sizes: list[int], generator: torch.Generator) -> Tensor:
    """A drawn input of the smallest size from `sizes` on that the user's operations accept."""
    for more in range(_TRIES):
        shape = (2, fold.base.shape[1], *(size + more for size in sizes))
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        try:
            evaluate(fold.sink, {fold.base: x.clone()})
        except (RuntimeError, ValueError):
            continue  # too small for an operation on the way
        return x
    return torch.randn((2, *fold.base.shape[1:]), generator=generator, dtype=torch.float64)
