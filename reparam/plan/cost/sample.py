"""Calls that launch the work of a plan, on tensors of ones: what is timed.

Biases are left out. They take next to nothing, and a layer that gets one should not be timed as another one: the noise
of two measurements would decide whether it takes a norm.
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
from reparam.capture.graph import Node
from reparam.rules import operation


@dataclass(frozen=True)
class Shaped:
    """Stands for a tensor of ones; dtype None is that of the model."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Sample:
    """A call, with `Shaped` where tensors are. Two calls of one key take the same time."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{operation(self.function)}{self.args}{self.kwargs or ''}"

    def call(self, tensor: Callable[[Shaped], Tensor]) -> Callable[[], Any]:
        """The call on tensors that `tensor` makes."""
        args, kwargs = (_replaced(tree, Shaped, tensor) for tree in (self.args, self.kwargs))
        return lambda: self.function(*args, **kwargs)


_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_NAMED = {function.__name__: function for function in (*_CONV.values(), *_TRANSPOSED.values())}


def _direct(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> None:
    """How the convolutions of torch are called."""


def _stretched(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: Any = 1, dilation: Any = 1,
) -> None:  # fmt: skip
    """How the transposed ones are called."""


def of_node(node: Node) -> Sample:
    """The user's own call; convolutions spelled in one way, so that a fold of the same geometry is the same call."""
    function = node.function
    assert function is not None
    args, kwargs = (_replaced(tree, Node, _shaped) for tree in (node.args, node.kwargs))
    if function is F.linear:
        return Sample(function, (args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]))
    convolution = _NAMED.get(operation(function))
    if convolution is None:
        return Sample(function, args, kwargs)
    given = inspect.signature(_stretched if convolution in _TRANSPOSED.values() else _direct).bind(*args, **kwargs)
    given.apply_defaults()
    given.arguments["bias"] = None
    rank = len(given.arguments["weight"].shape) - 2
    spelled = {name: _per_axis(name, value, rank) for name, value in given.arguments.items()}
    return Sample(convolution, tuple(spelled.values()))


def _per_axis(name: str, value: Any, rank: int) -> Any:
    if name not in ("stride", "padding", "output_padding", "dilation") or isinstance(value, str):
        return value
    every = tuple(value) if isinstance(value, Sequence) else (value,)
    return every * rank if len(every) == 1 else every


def of_fold(value: AffineConv, shape: Sequence[int]) -> Sample:
    """The layer that a deployable value would be, reading a tensor of `shape`, padded where that copies pixels."""
    read = Shaped(tuple(shape))
    if not value.axes:
        return Sample(F.linear, (read, Shaped((value.out_channels, value.in_channels))))
    strides, dilations = (tuple(getattr(axis, name) for axis in value.axes) for name in ("stride", "dilation"))
    taps, inner = [axis.taps for axis in value.axes], value.in_channels // value.groups
    if value.is_transposed:
        weight = Shaped((value.in_channels, value.out_channels // value.groups, *taps))
        cuts, ends = zip(*((axis.transposed_padding, axis.hi - axis.lo) for axis in value.axes), strict=True)
        strides = tuple(axis.input_dilation for axis in value.axes)
        return Sample(_TRANSPOSED[len(taps)], (read, weight, None, strides, cuts, ends, value.groups, dilations))
    pads = tuple(map(_padding, value.axes))
    weight = Shaped((value.out_channels, inner, *taps))
    return Sample(_CONV[len(taps)], (read, weight, None, strides, pads, dilations, value.groups))


def _padding(axis: Axis) -> int:
    return axis.lo if axis.mode == ZEROS else 0


def of_pad(shape: Sequence[int], sides: Sequence[int], mode: str) -> Sample:
    """A padding in front of a fold."""
    return Sample(F.pad, (Shaped(tuple(shape)), tuple(sides), "constant" if mode == ZEROS else mode))


def of_sum(shape: Sequence[int]) -> Sample:
    """A map of biases that is added, one number per channel and pixel."""
    return Sample(torch.add, (Shaped(tuple(shape)), Shaped((1, *shape[1:]))))


def _shaped(node: Node) -> Shaped:
    floating = node.dtype is None or node.dtype.is_floating_point
    return Shaped(node.shape, None if floating else node.dtype)


def _replaced(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The tree of an operation's arguments with something else for everything of that kind."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_replaced(each, kind, change) for each in tree)
    if isinstance(tree, dict):
        return {key: _replaced(each, kind, change) for key, each in tree.items()}
    return tree
