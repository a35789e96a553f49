"""How far networks in half precision are from the float64 truth."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import reparam
from reparam.precision import Float64, double

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DRAWS = 4


def rounding(model: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """By dtype, the error of the original and of the folded model, both rounded from float32 once.

    model: in float32, eval mode, with one tensor as its output; x: float32 images, of which others are drawn.
    An error is the distance of the outputs from those of the float64 original, over their length (Euclidean, all draws
    together): the largest single difference would be luck.
    """
    folded = reparam.reparameterize(model, x, verify=False)
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(x.shape, generator=generator) for _ in range(DRAWS)]
    exact = double(model)
    with torch.no_grad(), Float64():
        truths = [exact(draw.double()) for draw in draws]
    return {
        name: {"original": _error(model, draws, truths, dtype), "reparam": _error(folded, draws, truths, dtype)}
        for name, dtype in DTYPES.items()
    }


def _error(model: nn.Module, draws: list[Tensor], truths: list[Tensor], dtype: torch.dtype) -> float:
    rounded = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        results = [rounded(draw.to(dtype)).double() for draw in draws]
    missed = sum(float((result - truth).square().sum()) for result, truth in zip(results, truths, strict=True))
    return float((missed / sum(float(truth.square().sum()) for truth in truths)) ** 0.5)
