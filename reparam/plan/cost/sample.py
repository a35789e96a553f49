"""The calls that are timed: each launches one piece of work on tensors of ones.

Biases are left out, since they take next to no time. A layer with a bias and one without are then the same sample, so
the noise of two measurements does not decide whether a layer takes a norm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.layer_form import pads_as_same
from reparam.capture.graph import Node
from reparam.capture.ops import op_name


@dataclass(frozen=True)
class Shaped:
    """A placeholder for a tensor of ones; dtype None is the model's."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Sample:
    """A call, with `Shaped` in the place of tensors. Samples of one key take the same time."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{op_name(self.function)}{self.args}{self.kwargs or ''}"

    def call(self, tensor: Callable[[Shaped], Tensor]) -> Callable[[], Any]:
        """The call, on tensors that `tensor` makes of the placeholders."""
        args, kwargs = (_map_tree(tree, Shaped, tensor) for tree in (self.args, self.kwargs))
        return lambda: self.function(*args, **kwargs)


_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_BY_NAME = {function.__name__: function for function in (*_CONV.values(), *_TRANSPOSED.values())}


def _conv(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> None:
    """The signature of torch's convolutions."""


def _conv_transpose(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: Any = 1, dilation: Any = 1,
) -> None:  # fmt: skip
    """The signature of torch's transposed convolutions."""


def of_node(node: Node) -> Sample:
    """The user's own call. Convolutions get one spelling, so that a fold of the same geometry has the same key."""
    function = node.function
    assert function is not None
    args, kwargs = (_map_tree(tree, Node, _shaped) for tree in (node.args, node.kwargs))
    if function is F.linear:
        return Sample(function, (args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]))
    convolution = _BY_NAME.get(node.op)
    if convolution is None:
        return Sample(function, args, kwargs)
    signature = inspect.signature(_conv_transpose if convolution in _TRANSPOSED.values() else _conv)
    given = signature.bind(*args, **kwargs)
    given.apply_defaults()
    given.arguments["bias"] = None
    rank = len(given.arguments["weight"].shape) - 2
    spelled = {name: _per_axis(name, value, rank) for name, value in given.arguments.items()}
    return Sample(convolution, tuple(spelled.values()))


def _per_axis(name: str, value: Any, rank: int) -> Any:
    if name not in ("stride", "padding", "output_padding", "dilation") or isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * rank if len(values) == 1 else values


def of_fold(value: AffineConv, shape: Sequence[int]) -> Sample:
    """The layer that computes a value in layer form from a tensor of `shape`, padded where padding copies pixels."""
    read = Shaped(tuple(shape))
    if not value.axes:
        return Sample(F.linear, (read, Shaped((value.out_channels, value.in_channels))))
    strides, dilations = (tuple(getattr(axis, name) for axis in value.axes) for name in ("stride", "dilation"))
    taps, inner = [axis.taps for axis in value.axes], value.in_channels // value.groups
    if value.is_transposed:
        weight = Shaped((value.in_channels, value.out_channels // value.groups, *taps))
        paddings, output_paddings = zip(
            *((axis.transposed_padding, axis.hi - axis.lo) for axis in value.axes), strict=True
        )
        strides = tuple(axis.input_dilation for axis in value.axes)
        return Sample(
            _TRANSPOSED[len(taps)], (read, weight, None, strides, paddings, output_paddings, value.groups, dilations)
        )
    padding = "same" if pads_as_same(value) else tuple(map(_padding, value.axes))
    weight = Shaped((value.out_channels, inner, *taps))
    return Sample(_CONV[len(taps)], (read, weight, None, strides, padding, dilations, value.groups))


def _padding(axis: Axis) -> int:
    return axis.lo if axis.mode == ZEROS else 0


def of_pad(shape: Sequence[int], sides: Sequence[int], mode: str) -> Sample:
    """A padding in front of a fold."""
    return Sample(F.pad, (Shaped(tuple(shape)), tuple(sides), "constant" if mode == ZEROS else mode))


def of_sum(shape: Sequence[int]) -> Sample:
    """The sum with a map of biases, one number per channel and pixel."""
    return Sample(torch.add, (Shaped(tuple(shape)), Shaped((1, *shape[1:]))))


def _shaped(node: Node) -> Shaped:
    floating = node.dtype is None or node.dtype.is_floating_point
    return Shaped(node.shape, None if floating else node.dtype)


def _map_tree(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A tree of arguments in which `change` replaces everything of one type."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map_tree(item, kind, change) for item in tree)
    if isinstance(tree, dict):
        return {key: _map_tree(item, kind, change) for key, item in tree.items()}
    return tree
