"""How far networks in half precision are from the float64 truth."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

import reparam
from reparam.capture.float64 import Float64, double

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DRAWS = 4


def rounding(networks: Iterable[tuple[nn.Module, Tensor]]) -> dict[str, dict[str, float]]:
    """By dtype, the error of the originals and of the folded models, both rounded from float32 once.

    networks: models in float32, eval mode, with one tensor as output, and float32 images, of which others are drawn.
    An error is the distance of the outputs from those of the float64 original, over their length (Euclidean, all draws
    together: the largest single difference would be luck); of several networks the root of the mean square.
    """
    squares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for model, x in networks:
        folded = reparam.reparameterize(model, x, verify=False)
        generator = torch.Generator().manual_seed(1)
        draws = [torch.randn(x.shape, generator=generator) for _ in range(DRAWS)]
        exact = double(model)
        with torch.no_grad(), Float64():
            truths = [exact(draw.double()) for draw in draws]
        for name, dtype in DTYPES.items():
            squares[name]["original"].append(_squared_error(model, draws, truths, dtype))
            squares[name]["reparam"].append(_squared_error(folded, draws, truths, dtype))
    return {
        name: {form: math.sqrt(sum(each) / len(each)) for form, each in forms.items()}
        for name, forms in squares.items()
    }


def _squared_error(model: nn.Module, draws: list[Tensor], truths: list[Tensor], dtype: torch.dtype) -> float:
    rounded = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        results = [rounded(draw.to(dtype)).double() for draw in draws]
    missed = sum(float((result - truth).square().sum()) for result, truth in zip(results, truths, strict=True))
    return missed / sum(float(truth.square().sum()) for truth in truths)
