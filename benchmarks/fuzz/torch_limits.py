"""Layers that torch itself computes wrongly: their outputs say nothing about a fold.

With torch 2.13 on processors with bfloat16 tiles, a convolution of 8 channels with an 8-wide kernel returns wrong
numbers, and one in 3-D returns uninitialised memory.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import reparam
from benchmarks.fuzz.networks import Program
from reparam.capture.float64 import as_float64
from reparam.capture.inputs import Inputs
from reparam.capture.ops import KERNELS, op_name
from reparam.capture.snapshot import copied
from reparam.compare.error import relative_error
from reparam.errors import ReparamError

_RUNS = 3  # uninitialised memory may be right by chance
_WRONG = 0.1  # of max|y|: rounding once in its dtype changes the output of a layer by less than a hundredth


class _AgainstFloat64(TorchFunctionMode):
    """Compares every convolution and product with float64 on the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if op_name(func) in KERNELS and isinstance(result, Tensor) and result.numel():
            truth = func(*as_float64(args), **as_float64(kwargs))
            if not relative_error(truth, result) <= _WRONG:
                self.wrong.add(op_name(func))
        return result


def miscomputed(program: Program) -> set[str]:
    """The operations that torch computes wrongly in the dtype of the network, before or after the conversion.

    Empty where there is no conversion, or the two models differ in float64, too: then the conversion is wrong.
    """
    model, given = program.build()
    try:
        folded = reparam.reparameterize(model, given, verify=False, fixed_size=program.fixed_size)
    except ReparamError:
        return set()
    verification = reparam.verify(model, folded, given, fixed_size=program.fixed_size)
    if any(check.kind == "fp64" and not check.passed for check in verification.checks):
        return set()
    variants = _variants(Inputs.of(given))
    return {name for network in (model, folded) for inputs in variants for name in _wrong_operations(network, inputs)}


def _variants(inputs: Inputs) -> list[Inputs]:
    """Inputs of the sizes that verification compares."""
    larger = (inputs.resized(batch=0, size=size).values() for size in ((1, 3), (2, 4), (4, 8)))
    return [inputs, *inputs.resized().values(), *inputs.smaller(), *chain.from_iterable(larger)]


def _wrong_operations(model: nn.Module, inputs: Inputs) -> set[str]:
    comparison = _AgainstFloat64()
    with torch.no_grad(), comparison:
        for _ in range(_RUNS):
            try:
                inputs.map(Tensor.clone).call(copied(model))
            except (RuntimeError, ValueError, IndexError, AssertionError):
                break  # the network rejects this size
    return comparison.wrong
