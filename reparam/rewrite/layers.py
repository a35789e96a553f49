"""Values as layers of torch: nn.Conv1d to 3d, nn.ConvTranspose1d to 3d, nn.Linear. Numbers are rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.kernels import finest_groups, regroup, transposed
from reparam.algebra.layer_form import layer_form, pads_as_same

_PLAIN: dict[int, Callable[..., nn.Module]] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_PADS: dict[str, Sequence[Callable[[Any], nn.Module]]] = {  # for 1, 2 and 3 axes
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class BiasMap(nn.Module):
    """x + bias, with one bias per channel and pixel, for images of one size: the biases of zero-padded convolutions.

    bias: (1, channels, *sizes).
    """

    bias: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, *sizes). Raises ValueError for other sizes, also where the bias would broadcast."""
        return add_map(x, self.bias)


def add_map(x: Tensor, bias: Tensor) -> Tensor:
    """x + bias. To a recording this is one operation, which no rule knows: the check must not be folded away."""
    if has_torch_function((x, bias)):
        return handle_torch_function(add_map, (x, bias), x, bias)
    if x.shape[2:] == bias.shape[2:]:
        return x + bias
    given, expected = ("x".join(map(str, tensor.shape[2:])) for tensor in (x, bias))
    raise ValueError(
        f"the input of this layer has {given} pixels instead of {expected}: the model was converted with "
        "fixed_size=True; convert it for the new size, or without fixed_size"
    )


def plain_layer(value: AffineConv, like: Tensor) -> tuple[nn.Module, dict[Tensor, Tensor]]:
    """The layer that computes a value, and the float64 value of each of its weights.

    like: a weight whose dtype, device and memory format the layer takes.

    Padding that the layer cannot do itself (see `layer_form`) becomes a padding module before it, and a bias per pixel
    a `BiasMap` behind it.
    """
    paddings, value = layer_form(value)
    bias = None if value.bias is None else value.bias()  # first: it may consume other kernels
    kernel = value.kernel() if value.axes else regroup(value.kernel(), value.groups, 1)
    groups, kernel = finest_groups(kernel, value.groups) if value.axes else (1, kernel)
    kernel = transposed(kernel, groups) if value.is_transposed else kernel
    has_bias = value.bias is not None and not value.bias_per_pixel
    geometry: dict[str, Any] = {}
    if value.axes:
        geometry = {
            "kernel_size": tuple(axis.taps for axis in value.axes),
            "dilation": tuple(axis.dilation for axis in value.axes),
            "groups": groups,
            **(_transposed_geometry(value.axes) if value.is_transposed else _direct_geometry(value)),
        }
    constructors = _TRANSPOSED if value.is_transposed else _PLAIN
    channels = value.in_channels, value.out_channels
    layer: nn.Module = constructors[len(value.axes)](*channels, bias=has_bias, device="meta", **geometry)
    exact: dict[Tensor, Tensor] = {_add_rounded(layer, "weight", kernel, like): kernel}
    modules = [*(_PADS[mode][len(value.axes) - 1](tuple(sides)) for mode, sides in paddings), layer]
    if bias is not None:
        modules += [] if has_bias else [BiasMap()]
        exact_bias = bias if has_bias else bias[None]
        exact[_add_rounded(modules[-1], "bias", exact_bias, like)] = exact_bias
    return (nn.Sequential(*modules) if len(modules) > 1 else layer).eval(), exact


def _direct_geometry(value: AffineConv) -> dict[str, Any]:
    """The geometry of nn.Conv."""
    return {
        "stride": tuple(axis.stride for axis in value.axes),
        "padding": "same" if pads_as_same(value) else tuple(axis.lo for axis in value.axes),
        "padding_mode": next(iter(value.modes), ZEROS),
    }


def _transposed_geometry(axes: Sequence[Axis]) -> dict[str, Any]:
    """The geometry of nn.ConvTranspose."""
    return {
        "stride": tuple(axis.input_dilation for axis in axes),
        "padding": tuple(axis.transposed_padding for axis in axes),
        "output_padding": tuple(axis.hi - axis.lo for axis in axes),
    }


def _add_rounded(module: nn.Module, name: str, number: Tensor, like: Tensor) -> nn.Parameter:
    """Add a number to a module as a parameter, rounded (see `rounded`)."""
    parameter = rounded(number, like)
    module.register_parameter(name, parameter)
    return parameter


def rounded(number: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter that holds a number in the dtype, device and memory format of `like`.

    The memory format counts: torch's convolutions choose the layout of their result by the strides of the weight.
    """
    memory_format = _memory_format(like) if like.dim() == number.dim() else torch.contiguous_format
    memory = torch.empty_like(number, dtype=like.dtype, device=like.device, memory_format=memory_format)
    memory.copy_(number)
    return nn.Parameter(memory, requires_grad=False)


def _memory_format(weight: Tensor) -> torch.memory_format:
    """The memory format that the strides show. A kernel of one pixel is in both formats and counts as contiguous."""
    channels_last = _CHANNELS_LAST.get(weight.dim())
    if channels_last is None or weight.stride() != _strides_in(weight, channels_last):
        return torch.contiguous_format
    return torch.contiguous_format if weight.stride() == _strides_in(weight, torch.contiguous_format) else channels_last


def _strides_in(weight: Tensor, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty_like(weight, memory_format=memory_format, device="meta").stride()
