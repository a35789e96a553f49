"""Normalisations in two parts: what depends on the input, and the scale and shift per channel that follow.

`F.layer_norm(x, shape, weight, bias)` is `F.layer_norm(x, shape) * weight + bias`. The first part is not linear. The
second is a convolution, and the layer that reads it may take it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

# The positions of weight and bias among the arguments.
_POSITIONS: dict[Callable[..., Any], dict[str, int]] = {
    F.layer_norm: {"weight": 2, "bias": 3},
    torch.layer_norm: {"weight": 2, "bias": 3},
    F.rms_norm: {"weight": 2},
    torch.rms_norm: {"weight": 2},
    F.group_norm: {"weight": 2, "bias": 3},
    torch.group_norm: {"weight": 2, "bias": 3},
    F.instance_norm: {"weight": 3, "bias": 4},
}
_CHANNELS_LAST = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)

# The modules of torch that are one such call, and the attribute that says whether they have a weight.
NORM_MODULES: dict[type[nn.Module], str] = {
    nn.LayerNorm: "elementwise_affine",
    nn.RMSNorm: "elementwise_affine",
    nn.GroupNorm: "affine",
    nn.InstanceNorm1d: "affine",
    nn.InstanceNorm2d: "affine",
    nn.InstanceNorm3d: "affine",
}


def affine_part(input: Tensor, weight: Tensor | None, bias: Tensor | None, dim: int) -> Tensor:
    """input * weight + bias per channel: both are (channels,) or None; dimension `dim` of input holds the channels."""
    if has_torch_function_variadic(input, weight, bias):
        result: Tensor = handle_torch_function(affine_part, (input, weight, bias), input, weight, bias, dim)
        return result
    ones = [1] * (input.dim() - 2 if dim == 1 else 0)
    scaled = input if weight is None else input * weight.view(-1, *ones)
    return scaled if bias is None else scaled + bias.view(-1, *ones)


def affine_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The weight and the bias of a call, each None where it has none."""
    positions = _POSITIONS.get(function, {})
    values = {name: kwargs.get(name, args[i] if len(args) > i else None) for name, i in positions.items()}
    return values.get("weight"), values.get("bias")


def without_affine(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the same call with None for weight and bias."""
    positions = _POSITIONS[function]
    positional = tuple(None if i in positions.values() else value for i, value in enumerate(args))
    return positional, {key: None if key in positions else value for key, value in kwargs.items()}


def affine_dimension(function: Callable[..., Any]) -> int:
    """The dimension that holds the channels, -1 or 1, where weight and bias hold one number per channel."""
    return -1 if function in _CHANNELS_LAST else 1


def drop_affine(module: nn.Module) -> None:
    """Make a module of a class in `NORM_MODULES`, or of a subclass, what it would be without weight and bias."""
    flag = next(flag for kind, flag in NORM_MODULES.items() if isinstance(module, kind))
    module._parameters.update(dict.fromkeys(module._parameters))
    setattr(module, flag, False)
