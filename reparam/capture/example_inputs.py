"""Inputs for those who give none: read off a symbolic trace of the model, the poorer way in."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from reparam.capture.inputs import Inputs
from reparam.errors import InputError

_SIZES = (64, 224, 32, 256, 384)
_SPATIAL = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def guessed_inputs(model: nn.Module) -> Inputs:
    """Random inputs of the first shape that the model accepts, from the layers that read its arguments.

    Raises InputError, which asks for example inputs, where the model cannot be traced or accepts none of the shapes.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise InputError(
            f"without example inputs the model has to be traced symbolically, which stops at: {type(error).__name__}: "
            f"{error}; give example_inputs, such as torch.randn(1, 3, 224, 224)"
        ) from error
    tensors = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    for size in _SIZES:
        shapes = [_shape(model, node, size) for node in tensors]
        like = next(model.parameters(), torch.empty(0))
        inputs = Inputs(tuple(torch.randn(shape).to(like) for shape in shapes if shape))
        if len(inputs.args) == len(tensors) and _accepted(model, inputs):
            return inputs
    raise InputError(
        "the shape of the inputs cannot be read off the model; give example_inputs, such as torch.randn(1, 3, 224, 224)"
    )


class _Proxy(fx.Proxy):
    """A proxy that bears item assignment: who reads the arguments is all that is asked of the trace."""

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _shape(model: nn.Module, placeholder: fx.Node, size: int) -> tuple[int, ...]:
    """The shape that the first layer on the way from an argument reads, with `size` pixels per axis."""
    waiting, seen = list(placeholder.users), set[fx.Node]()
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return (2, layer.in_channels, *[size] * (layer.weight.dim() - 2))
        if isinstance(layer, nn.Linear):
            return (2, layer.in_features)
        if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)):
            return (2, layer.num_features, *[size] * _SPATIAL[type(layer)])
        waiting += list(node.users)
    return ()


def _accepted(model: nn.Module, inputs: Inputs) -> bool:
    try:
        inputs.call(model)
    except Exception:  # noqa: BLE001 - whatever it is, these inputs do not suit
        return False
    return True
