"""A value as a module of torch: nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, with its numbers rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reparam.affine import AffineConv
from reparam.kernels import regroup

_PLAIN: dict[int, Callable[..., nn.Module]] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PADS: dict[int, Callable[..., nn.Module]] = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


def plain(value: AffineConv, like: Tensor) -> tuple[nn.Module, dict[Tensor, Tensor]]:
    """The convolution as a module of torch, in the dtype, device and memory format of `like`, and its exact weights.

    One-sided padding widens the kernel with zeros, or, where that would more than double it, is a module of its own.
    """
    pads, value = value.deployable()
    kernel = value.kernel() if value.axes else regroup(value.kernel(), value.groups, 1)
    bias = None if value.bias is None else value.bias()
    geometry: dict[str, Any] = {}
    if value.axes:
        geometry = {
            "kernel_size": tuple(axis.taps for axis in value.axes),
            "stride": tuple(axis.stride for axis in value.axes),
            "padding": tuple(axis.lo for axis in value.axes),
            "dilation": tuple(axis.dilation for axis in value.axes),
            "groups": value.groups,
        }
    with torch.device("meta"):
        module: nn.Module = _PLAIN[len(value.axes)](
            value.in_channels, value.out_channels, bias=bias is not None, **geometry
        )
    exact: dict[Tensor, Tensor] = {_rounded(module, "weight", kernel, like): kernel}
    if bias is not None:
        exact[_rounded(module, "bias", bias, like)] = bias
    padded = nn.Sequential(_PADS[len(value.axes)](pads, 0.0), module) if pads else module
    return padded.eval(), exact


def _rounded(module: nn.Module, name: str, number: Tensor, like: Tensor) -> nn.Parameter:
    rounded = number.to(like.device, like.dtype, copy=True)
    if rounded.dim() in (4, 5) and like.dim() == rounded.dim():
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        last = like.is_contiguous(memory_format=formats[like.dim()]) and not like.is_contiguous()
        rounded = rounded.contiguous(memory_format=formats[like.dim()] if last else torch.contiguous_format)
    parameter = nn.Parameter(rounded, requires_grad=False)
    module.register_parameter(name, parameter)
    return parameter
