"""Example inputs for users who give none: random tensors of a shape that the model's first layers take."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from reparam.capture.inputs import Inputs
from reparam.capture.process import ThreadTracer, exclusive
from reparam.errors import InputError

_SIZES = (64, 224, 32, 256, 384)  # pixels per axis, in the order in which they are tried
_SPATIAL_AXES = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


@exclusive
def guessed_inputs(model: nn.Module) -> Inputs:
    """Random float inputs of the first shape that the model accepts.

    A symbolic trace shows which layer reads each argument; the layer says how many channels and axes it takes.
    Raises InputError where the model cannot be traced or accepts none of the shapes.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise InputError(
            "example_inputs: none are given, and their shape cannot be guessed, as tracing the model fails: "
            f"{type(error).__name__}: {error}; give example_inputs, such as torch.randn(1, 3, 224, 224)"
        ) from error
    tensors = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    for size in _SIZES:
        shapes = [_shape(model, node, size) for node in tensors]
        like = next(model.parameters(), torch.empty(0))
        inputs = Inputs(tuple(torch.randn(shape).to(like) for shape in shapes if shape))
        if len(inputs.args) == len(tensors) and _accepts(model, inputs):
            return inputs
    raise InputError(
        "example_inputs: none are given, and the model accepts none of the shapes tried; give example_inputs, such as "
        "torch.randn(1, 3, 224, 224)"
    )


class _Proxy(fx.Proxy):
    """A proxy that ignores item assignment, which says nothing about the layers that read the arguments."""

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


class _Tracer(ThreadTracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _shape(model: nn.Module, placeholder: fx.Node, size: int) -> tuple[int, ...]:
    """The shape that the first layer behind an argument reads, with `size` pixels per axis; () where there is none."""
    queue, visited = list(placeholder.users), set[fx.Node]()
    while queue:
        node = queue.pop(0)
        if node in visited:
            continue
        visited.add(node)
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return (2, layer.in_channels, *[size] * (layer.weight.dim() - 2))
        if isinstance(layer, nn.Linear):
            return (2, layer.in_features)
        if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)):
            return (2, layer.num_features, *[size] * _SPATIAL_AXES[type(layer)])
        queue += list(node.users)
    return ()


def _accepts(model: nn.Module, inputs: Inputs) -> bool:
    try:
        inputs.call(model)
    except Exception:  # noqa: BLE001 - a forward may raise anything
        return False
    return True
