"""A value as a module of torch: nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, with its numbers rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.affine import AffineConv
from reparam.axis import ZEROS
from reparam.kernels import regroup

_PLAIN: dict[int, Callable[..., nn.Module]] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PADS: dict[str, Sequence[Callable[[Any], nn.Module]]] = {  # of 1, 2 and 3 axes
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


def plain(value: AffineConv, like: Tensor) -> tuple[nn.Module, dict[Tensor, Tensor]]:
    """The convolution as a module of torch, in the dtype, device and memory format of `like`, and its exact weights.

    One-sided padding widens the kernel with zeros, or, where that would more than double it or the padding copies
    pixels, is a module of its own.
    """
    frames, value = value.deployable()
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
            "padding_mode": next(iter(value.modes), ZEROS),
        }
    with torch.device("meta"):
        module: nn.Module = _PLAIN[len(value.axes)](
            value.in_channels, value.out_channels, bias=bias is not None, **geometry
        )
    exact: dict[Tensor, Tensor] = {_rounded(module, "weight", kernel, like): kernel}
    if bias is not None:
        exact[_rounded(module, "bias", bias, like)] = bias
    pads = [_PADS[mode][len(value.axes) - 1](tuple(sides)) for mode, sides in frames]
    return (nn.Sequential(*pads, module) if pads else module).eval(), exact


def _rounded(module: nn.Module, name: str, number: Tensor, like: Tensor) -> nn.Parameter:
    rounded = number.to(like.device, like.dtype, copy=True)
    if rounded.dim() in (4, 5) and like.dim() == rounded.dim():
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        last = like.is_contiguous(memory_format=formats[like.dim()]) and not like.is_contiguous()
        rounded = rounded.contiguous(memory_format=formats[like.dim()] if last else torch.contiguous_format)
    parameter = nn.Parameter(rounded, requires_grad=False)
    module.register_parameter(name, parameter)
    return parameter
