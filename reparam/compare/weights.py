"""The weights of the models that are compared: rounded anew, in their exact values, and checked against those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from reparam.capture.float64 import double
from reparam.compare.error import is_floating, relative_error
from reparam.compare.verification import OWN_DTYPE, Check
from reparam.errors import InputError


def state(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under each of their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def eps(tensor: Tensor) -> float:
    """The relative rounding step of a tensor's dtype; 0 for integers and bools."""
    return torch.finfo(tensor.dtype).eps if is_floating(tensor) else 0.0


def rerounded(original: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy of the original, each floating weight off by a random part of one ulp of the dtype that it had.

    Whole numbers stay (a mask, a scale of one, an index kept as a float): rounding does not touch them.
    """
    copy = double(original)
    for (_, before), (_, after) in zip(
        chain(original.named_parameters(), original.named_buffers()),
        chain(copy.named_parameters(), copy.named_buffers()),
        strict=True,
    ):
        if before.is_floating_point():
            part = torch.rand(after.shape, generator=generator, dtype=torch.float64).to(after.device) * 2 - 1
            ulp = torch.ldexp(torch.full_like(after, eps(before)), torch.frexp(after).exponent - 1)
            after.data.copy_(torch.where(after == after.round(), after, after + part * ulp))
    return copy


def set_exact(model: nn.Module, exact: Mapping[str, Tensor]) -> None:
    """Give a float64 model the values that its weights were rounded from.

    Raises InputError for a name that the model lacks, and for a value of another shape.
    """
    weights = dict(state(model))
    for name, value in exact.items():
        if name not in weights or weights[name].shape != value.shape:
            fault = f"has shape {tuple(weights[name].shape)}" if name in weights else "does not exist"
            raise InputError(
                f"exact: {name!r} {fault} in the candidate, the value given has shape {tuple(value.shape)}; give the "
                "float64 values of the candidate's own parameters and buffers under their qualified names"
            )
        weights[name].data.copy_(value)


def rounding_checks(candidate: nn.Module, exact: Mapping[str, Tensor]) -> Iterator[Check]:
    """A failed check for each weight that is not its exact value, rounded: fp64 checks use the exact value instead."""
    weights = dict(state(candidate))
    for name, value in exact.items():
        weight = weights[name].detach()
        if not is_floating(weight):
            continue
        info = torch.finfo(weight.dtype)
        truth = value.detach().double()
        allowed = info.eps * truth.abs() + info.eps * info.smallest_normal
        overflow = truth.abs() > info.max
        off = (weight.to(truth.device, torch.float64) - truth).abs() > allowed
        if bool(off.logical_and(~overflow).any()):
            detail = "the weight is not its exact value rounded to its dtype"
            yield Check(name, "weights", OWN_DTYPE, relative_error(value, weight), info.eps, 0.0, False, detail)
