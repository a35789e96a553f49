"""Layers that torch itself computes wrongly: no fold can be judged by what they return.

torch 2.13 on processors with bfloat16 tiles: a convolution of 8 channels by an 8-wide kernel returns other numbers, and
one in 3-D what was left in its memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import reparam
from benchmarks.fuzz.networks import Program
from reparam.capture.float64 import as_float64
from reparam.capture.inputs import Inputs
from reparam.capture.snapshot import copied
from reparam.compare.error import relative_error
from reparam.plan.cost import KERNELS
from reparam.rules import operation

_RUNS = 3  # what was left in memory may be right once
_ROUNDING = 0.1  # of max|y|: a layer that is rounded once in its dtype is off by less than a hundredth


class _Layers(TorchFunctionMode):
    """Holds every convolution and product against float64 on the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if operation(func) in KERNELS and isinstance(result, Tensor) and result.numel():
            truth = func(*as_float64(args), **as_float64(kwargs))
            if not relative_error(truth, result) <= _ROUNDING:
                self.wrong.add(operation(func))
        return result


def miscomputed(program: Program) -> set[str]:
    """The operations of a network, or of what it is converted to, that torch computes wrongly in its dtype.

    Empty where the two differ in float64, too.
    """
    model, given = program.built()
    folded = reparam.reparameterize(model, given, verify=False, fixed_size=program.fixed)
    compared = reparam.verify(model, folded, given, fixed_size=program.fixed)
    if any(check.kind == "fp64" and not check.passed for check in compared.checks):
        return set()
    runs = [(each, inputs) for each in (model, folded) for inputs in _others(Inputs.of(given))]
    return {name for each, inputs in runs for name in _wrong(each, inputs)}


def _others(inputs: Inputs) -> list[Inputs]:
    """The inputs that verification compares on."""
    return [inputs, *inputs.resized().values(), *inputs.resized(batch=0, size=(1, 3)).values()]


def _wrong(model: nn.Module, inputs: Inputs) -> set[str]:
    layers = _Layers()
    with torch.no_grad(), layers:
        for _ in range(_RUNS):
            try:
                inputs.map(Tensor.clone).call(copied(model))
            except (RuntimeError, ValueError, IndexError, AssertionError):
                break  # a size that it does not take
    return layers.wrong
