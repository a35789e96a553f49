"""The first level of verification: each fold alone, in float64, before it is rounded.

The user's operations between two tensors against the one convolution that stands for them, on drawn inputs: at the
smallest sizes that the operations accept (there everything is border) and at an odd, non-square one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reparam.algebra.affine import AffineConv, padded
from reparam.capture.evaluate import evaluate
from reparam.compare.error import relative_error
from reparam.plan.fold import Fold

_LARGER = (2, 5, 3)  # pixels beyond the smallest size: even and odd, different per axis
_TRIES = 16


def fold_error(fold: Fold, generator: torch.Generator) -> float:
    """The largest error of the fold, relative to max|y|, over the sizes tried; inf where shapes differ."""
    if fold.given:
        return _given_error(fold, generator)
    return max(_error(truth, _folded(fold, x)) for x, truth in _cases(fold, generator))


def _error(truth: Tensor, value: Tensor) -> float:
    return relative_error(truth, value) if truth.shape == value.shape else math.inf


def _given_error(fold: Fold, generator: torch.Generator) -> float:
    """What the operations make of drawn sides of a join, against the join of sides that have taken their parts."""
    sides = {side: torch.randn(side.shape, generator=generator, dtype=torch.float64) for side in fold.given}
    truth = evaluate(fold.sink, {side: x.clone() for side, x in sides.items()})
    return relative_error(truth, evaluate(fold.base, {side: fold.given[side](x) for side, x in sides.items()}))


def _folded(fold: Fold, x: Tensor) -> Tensor:
    if fold.wide is not None:
        return fold.wide.part(_plain(fold.wide.value, x), fold.sink)
    return _behind_steps(fold, x) if fold.steps else _plain(fold.value, x)


def _plain(value: AffineConv, x: Tensor) -> Tensor:
    frames, value = value.deployable()
    for mode, sides in frames:
        x = padded(x, sides, mode)
    return value(x)


def _behind_steps(fold: Fold, x: Tensor) -> Tensor:
    """The steps as they are, the folded map at its place, nothing for every other operation."""
    for node in fold.nodes:
        if node in fold.steps:
            x = evaluate(node, {node.operands[0]: x})
        elif node is fold.place:
            x = _plain(fold.value, x)
    return x


def _cases(fold: Fold, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Drawn inputs, and what the user's operations make of them."""
    axes = fold.value.axes
    if not axes or fold.steps or fold.reshapes or fold.value.anchor.fixed:
        return [_case(fold, fold.base.shape, generator)]
    smallest = [axis.smallest for axis in axes]
    larger = [size + more for size, more in zip(smallest, itertools.cycle(_LARGER), strict=False)]
    return [_legal(fold, sizes, generator) for sizes in (smallest, larger)]


def _case(fold: Fold, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    known = {fold.base: x.clone()}
    for node in fold.nodes:
        evaluate(node, known)
    truth = known[fold.sink]
    return x, truth if fold.advance is None else fold.advance(truth)


def _legal(fold: Fold, sizes: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The case of the smallest size from `sizes` on that the user's operations accept."""
    for more in range(_TRIES):
        try:
            return _case(fold, (2, fold.base.shape[1], *(size + more for size in sizes)), generator)
        except (RuntimeError, ValueError):
            continue  # too small for an operation on the way
    return _case(fold, fold.base.shape, generator)
