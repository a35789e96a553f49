"""Normalisations in two halves: what depends on the input, and the scale and shift per channel behind it.

`F.layer_norm(x, shape, weight, bias)` is `F.layer_norm(x, shape) * weight + bias`. The first half is no convolution of
anything; the second is one, and what reads it may absorb it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

# Where each of them takes its weight and bias.
_PLACES: dict[Callable[..., Any], dict[str, int]] = {
    F.layer_norm: {"weight": 2, "bias": 3},
    torch.layer_norm: {"weight": 2, "bias": 3},
    F.rms_norm: {"weight": 2},
    torch.rms_norm: {"weight": 2},
    F.group_norm: {"weight": 2, "bias": 3},
    torch.group_norm: {"weight": 2, "bias": 3},
    F.instance_norm: {"weight": 3, "bias": 4},
}
_LAST = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)  # normalised over the last dimensions

# The modules of torch that are one such call, and the attribute that says whether they have weights.
SCALED: dict[type[nn.Module], str] = {
    nn.LayerNorm: "elementwise_affine",
    nn.RMSNorm: "elementwise_affine",
    nn.GroupNorm: "affine",
    nn.InstanceNorm1d: "affine",
    nn.InstanceNorm2d: "affine",
    nn.InstanceNorm3d: "affine",
}


def affine_part(input: Tensor, weight: Tensor | None, bias: Tensor | None, dim: int) -> Tensor:
    """input * weight + bias, both (channels,) or None, the channels of `input` on dimension `dim`: 1 or -1."""
    if has_torch_function_variadic(input, weight, bias):
        result: Tensor = handle_torch_function(affine_part, (input, weight, bias), input, weight, bias, dim)
        return result
    ones = [1] * (input.dim() - 2 if dim == 1 else 0)
    scaled = input if weight is None else input * weight.view(-1, *ones)
    return scaled if bias is None else scaled + bias.view(-1, *ones)


def affine_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The weight and the bias of a call; None for what it does not have."""
    places = _PLACES.get(function, {})
    given = {name: kwargs.get(name, args[at] if len(args) > at else None) for name, at in places.items()}
    return given.get("weight"), given.get("bias")


def without_affine(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the same call without weight and bias."""
    places = _PLACES[function]
    left = tuple(None if i in places.values() else each for i, each in enumerate(args))
    return left, {key: None if key in places else each for key, each in kwargs.items()}


def affine_dimension(function: Callable[..., Any]) -> int:
    """The dimension that holds the channels, where weight and bias are vectors of one number per channel."""
    return -1 if function in _LAST else 1


def unscale(module: nn.Module) -> None:
    """Take the parameters from a module of a class in `SCALED`, or of a subclass, as if it had been made without."""
    flag = next(flag for kind, flag in SCALED.items() if isinstance(module, kind))
    module._parameters.update(dict.fromkeys(module._parameters))
    setattr(module, flag, False)
