"""Errors of networks in half precision against float64."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

import reparam
from reparam.capture.float64 import Float64, double

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_INPUTS = 4  # batches


def rounding_errors(networks: Iterable[tuple[nn.Module, Tensor]]) -> dict[str, dict[str, float]]:
    """By dtype, the errors of the originals and of the folded models, both rounded from float32 once.

    networks: float32 models in eval mode that return one tensor, and float32 images, whose shape other images are
    drawn in. An error is the Euclidean distance of all outputs from those of the float64 original, over the norm of
    these (the largest single difference would depend on luck); of several networks, the root of the mean square.
    """
    squares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for model, x in networks:
        folded = reparam.reparameterize(model, x, verify=False)
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randn(x.shape, generator=generator) for _ in range(_INPUTS)]
        exact = double(model)
        with torch.no_grad(), Float64():
            truths = [exact(batch.double()) for batch in batches]
        for name, dtype in _DTYPES.items():
            squares[name]["original"].append(_squared_error(model, batches, truths, dtype))
            squares[name]["reparam"].append(_squared_error(folded, batches, truths, dtype))
    return {
        name: {form: math.sqrt(sum(errors) / len(errors)) for form, errors in forms.items()}
        for name, forms in squares.items()
    }


def _squared_error(model: nn.Module, batches: list[Tensor], truths: list[Tensor], dtype: torch.dtype) -> float:
    rounded = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        results = [rounded(batch.to(dtype)).double() for batch in batches]
    error = sum(float((result - truth).square().sum()) for result, truth in zip(results, truths, strict=True))
    return error / sum(float(truth.square().sum()) for truth in truths)
