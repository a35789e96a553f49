"""A value as a module of torch: nn.Conv1d to 3d, nn.ConvTranspose1d to 3d, nn.Linear, with numbers rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.kernels import finest_groups, regroup, transposed
from reparam.algebra.layer_form import layer_form

_PLAIN: dict[int, Callable[..., nn.Module]] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_PADS: dict[str, Sequence[Callable[[Any], nn.Module]]] = {  # of 1, 2 and 3 axes
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class BiasMap(nn.Module):
    """x + bias, one number per channel and pixel: what zero padding made of biases, for images of one size alone.

    bias: (1, channels, *sizes).
    """

    bias: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, *sizes). Raises ValueError if x has any other size: a map of one pixel would broadcast."""
        # A choice, not a condition in front of `raise`: checks go with the code that is folded away, this one must not.
        return x + (self.bias if x.shape[2:] == self.bias.shape[2:] else self._refused(x))

    def _refused(self, x: Tensor) -> Tensor:
        sizes = ["x".join(map(str, each.shape[2:])) for each in (x, self.bias)]
        raise ValueError(
            f"a map of {sizes[0]} pixels where {sizes[1]} were folded in: this model was converted with "
            "fixed_size=True; convert it for the new size, or without"
        )


def plain(value: AffineConv, like: Tensor) -> tuple[nn.Module, dict[Tensor, Tensor]]:
    """The convolution as a module of torch, in the dtype, device and memory format of `like`, and its exact weights.

    One-sided padding widens the kernel with zeros, or, where that would more than double it or the padding copies
    pixels, is a module of its own; so is a bias that differs between pixels.
    """
    frames, value = layer_form(value)
    bias = None if value.bias is None else value.bias()  # first: it may take other kernels, which are gone then
    kernel = value.kernel() if value.axes else regroup(value.kernel(), value.groups, 1)
    groups, kernel = finest_groups(kernel, value.groups) if value.axes else (1, kernel)
    kernel = transposed(kernel, groups) if value.is_transposed else kernel
    biased = value.bias is not None and not value.bias_per_pixel
    geometry: dict[str, Any] = {}
    if value.axes:
        geometry = {
            "kernel_size": tuple(axis.taps for axis in value.axes),
            "dilation": tuple(axis.dilation for axis in value.axes),
            "groups": groups,
            **(_transposed(value.axes) if value.is_transposed else _direct(value)),
        }
    kinds = _TRANSPOSED if value.is_transposed else _PLAIN
    sizes = value.in_channels, value.out_channels
    module: nn.Module = kinds[len(value.axes)](*sizes, bias=biased, device="meta", **geometry)
    exact: dict[Tensor, Tensor] = {_rounded(module, "weight", kernel, like): kernel}
    steps = [*(_PADS[mode][len(value.axes) - 1](tuple(sides)) for mode, sides in frames), module]
    if bias is not None:
        steps += [] if biased else [BiasMap()]
        number = bias if biased else bias[None]
        exact[_rounded(steps[-1], "bias", number, like)] = number
    return (nn.Sequential(*steps) if len(steps) > 1 else module).eval(), exact


def _direct(value: AffineConv) -> dict[str, Any]:
    """The geometry of nn.Conv."""
    return {
        "stride": tuple(axis.stride for axis in value.axes),
        "padding": tuple(axis.lo for axis in value.axes),
        "padding_mode": next(iter(value.modes), ZEROS),
    }


def _transposed(axes: Sequence[Axis]) -> dict[str, Any]:
    """The geometry of nn.ConvTranspose."""
    return {
        "stride": tuple(axis.input_dilation for axis in axes),
        "padding": tuple(axis.transposed_padding for axis in axes),
        "output_padding": tuple(axis.hi - axis.lo for axis in axes),
    }


def _rounded(module: nn.Module, name: str, number: Tensor, like: Tensor) -> nn.Parameter:
    """In order of memory: torch's convolutions choose that of their result by the strides of the weight."""
    form = _memory_format(like) if like.dim() == number.dim() else torch.contiguous_format
    rounded = torch.empty_like(number, dtype=like.dtype, device=like.device, memory_format=form).copy_(number)
    parameter = nn.Parameter(rounded, requires_grad=False)
    module.register_parameter(name, parameter)
    return parameter


def _memory_format(weight: Tensor) -> torch.memory_format:
    """Channels last where the strides are those alone: a kernel of one pixel is in both orders, and means the one."""
    last = _LAST.get(weight.dim())
    if last is None or weight.stride() != torch.empty_like(weight, memory_format=last, device="meta").stride():
        return torch.contiguous_format
    plain = torch.empty_like(weight, memory_format=torch.contiguous_format, device="meta")
    return torch.contiguous_format if weight.stride() == plain.stride() else last
