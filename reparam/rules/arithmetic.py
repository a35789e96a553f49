"""Sums, scalings, and operations that change no value."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv, PendingBorder
from reparam.algebra.lazy import Lazy
from reparam.algebra.views import View
from reparam.errors import Refusal
from reparam.rules.table import (
    Case,
    Op,
    Stack,
    Value,
    affine,
    as_ints,
    channel_dimension,
    layout_for_constant,
    per_channel,
    rule,
    same_layout,
)


def _accumulate(m: Any, x: Tensor) -> Tensor:
    """A branch that another is added to in place."""
    y: Tensor = m.inner[0](x)
    y += m.inner[1](x)
    y *= 0.5
    y -= m.shift
    return y.neg_()


def _scaled(x: AffineConv, factor: float) -> AffineConv:
    return x if factor == 1 else x.scale_shift(scale=per_channel(factor, x))


@rule(
    "add",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) + x, nn.Conv2d(4, 4, 3, padding=1))),
        Case(
            Op(
                lambda m, x: torch.add(m.inner[0](x), m.inner[1](x), alpha=-0.5),
                nn.Conv2d(4, 6, 3, stride=2, padding=1),
                nn.Conv2d(4, 6, 1, stride=2),
            )
        ),
        Case(
            Op(
                lambda m, x: sum([b(x) for b in m.inner]),
                nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
                nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
                nn.Conv2d(4, 4, 3, padding=6, dilation=6),
                nn.Identity(),
            )
        ),
        Case(Op(_accumulate, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2), shift=torch.randn(4, 1, 1))),
        Case(Op(lambda m, x: 1.5 + x + m.s, s=torch.randn(1, 4, 1, 1))),
        Case(
            Op(lambda m, x: m.inner[0](x).add_(m.inner[1](x)), nn.Linear(4, 3), nn.Linear(4, 3, bias=False)), spatial=0
        ),
        Case(Op(lambda m, x: x + m.inner[0](x), nn.Linear(4, 4)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: m.inner[0](x) + x.relu(), nn.Conv2d(4, 4, 1))), "different tensors"),
        (
            Case(
                Op(
                    lambda m, x: m.inner[0](x) + m.inner[1](x),
                    nn.Conv2d(4, 4, 2, padding=1, stride=2),
                    nn.Conv2d(4, 4, 1, stride=2),
                ),
                smallest=7,
                fixed=True,
            ),
            "stride or in the size",
        ),
        (Case(Op(lambda m, x: x + m.s, s=torch.randn(9, 1)), smallest=9, fixed=True), "per channel"),
        (Case(Op(lambda m, x: x + m.s, s=torch.randn(1, 1, 4, 1, 1))), "per channel"),
        (Case(Op(lambda m, x: m.inner[0](x) + x, nn.Conv2d(4, 1, 1))), "broadcasts"),
    ],
)
def add(input: Value, other: Value, *, alpha: float = 1) -> AffineConv:
    """A sum of branches, or a shift by a constant."""
    if isinstance(input, AffineConv) and isinstance(other, AffineConv):
        x, y = same_layout(input, other)
        return x + _scaled(y, alpha)
    if isinstance(other, AffineConv):
        return add(_scaled(other, alpha), input)
    x = layout_for_constant(affine(input), other)
    if isinstance(other, (int, float)) and other == 0:
        return x
    shift = per_channel(other, x)
    return x.scale_shift(shift=Lazy(lambda: shift() * alpha))


@rule(
    "sub",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) - m.inner[1](x), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))),
        Case(Op(lambda m, x: torch.sub(x, m.s), s=torch.randn(4, 1, 1))),
        Case(Op(lambda m, x: m.s - x, s=torch.randn(4, 1, 1))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.relu() - x)), "different tensors")],
)
def sub(input: Value, other: Value, *, alpha: float = 1) -> AffineConv:
    """A difference is a sum with a negative coefficient."""
    return add(input, other, alpha=-alpha)


@rule(
    "rsub",
    folds=lambda: [
        Case(Op(lambda m, x: 1 - x)),
        Case(Op(lambda m, x: 0 - x)),
        Case(Op(lambda m, x: torch.rsub(x, m.inner[0](x)), nn.BatchNorm2d(4))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: torch.rsub(x, x.relu()))), "different tensors")],
)
def rsub(input: Value, other: Value, *, alpha: float = 1) -> AffineConv:
    """other - alpha * input."""
    return add(other, input, alpha=-alpha)


@rule(
    "mul",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) * m.gamma, nn.Conv2d(4, 4, 3, padding=1), gamma=torch.randn(4, 1, 1))),
        Case(Op(lambda m, x: m.gamma.view(1, -1, 1, 1) * x, gamma=torch.randn(4))),
        Case(Op(lambda m, x: torch.mul(x, -2).mul_(1.0))),
        Case(
            Op(lambda m, x: x + m.inner[0](x) * m.gamma, nn.Linear(4, 4), gamma=torch.randn(4)),
            spatial=2,
            channels_last=True,
        ),
        Case(
            Op(
                lambda m, x: (m.b + x * m.gamma) / m.s,
                gamma=torch.randn(4),
                b=torch.randn(1, 1, 4),
                s=torch.rand(4) + 0.5,
            ),
            spatial=1,
            channels_last=True,
        ),
        Case(Op(lambda m, x: m.inner[0](m.gamma * x), nn.Linear(9, 2), gamma=torch.randn(9)), smallest=9, fixed=True),
        Case(
            Op(lambda m, x: m.inner[0](x) * m.gamma, nn.Linear(4, 3), gamma=torch.randn(3)),
            spatial=1,
            channels_last=True,
        ),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x * x)), "both"),
        (Case(Op(lambda m, x: x * m.s, s=torch.randn(4, 1, 9)), smallest=9, fixed=True), "per channel"),
    ],
)
def mul(input: Value, other: Value) -> AffineConv:
    """A scaling by a number or by one constant per channel."""
    if isinstance(input, AffineConv) and isinstance(other, AffineConv):
        raise Refusal("both factors depend on the input")
    swapped = isinstance(other, (AffineConv, PendingBorder))
    x, factor = (affine(other), input) if swapped else (affine(input), other)
    x = layout_for_constant(x, factor)
    if isinstance(factor, (int, float)) and factor == 1:
        return x
    return x.scale_shift(scale=per_channel(factor, x))


@rule(
    "div",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) / m.s, nn.Conv2d(4, 4, 1), s=torch.rand(4, 1, 1) + 0.5)),
        Case(Op(lambda m, x: (x / 3).div_(0.7))),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: torch.div(m.s, x), s=torch.rand(4, 1, 1))), "divides by"),
        (Case(Op(lambda m, x: x / x.exp())), "divides by"),
        (Case(Op(lambda m, x: torch.div(x, 2, rounding_mode="floor"))), "rounds"),
    ],
)
def div(input: Value, other: Value, *, rounding_mode: str | None = None) -> AffineConv:
    """A division by a number or by one constant per channel."""
    if rounding_mode is not None:
        raise Refusal("it rounds the quotient")
    if isinstance(other, (AffineConv, PendingBorder)):
        raise Refusal("it divides by something that depends on the input")
    x = layout_for_constant(affine(input), other)
    factor = per_channel(other, x)
    return x.scale_shift(scale=Lazy(lambda: 1 / factor()))


@rule(
    "neg",
    folds=lambda: [
        Case(Op(lambda m, x: -m.inner[0](x), nn.Conv2d(4, 4, 3, padding=1))),
        Case(Op(lambda m, x: x.neg())),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: -F.pad(x, [1, 1], value=1.0))), "value")],
)
def neg(input: Value) -> AffineConv:
    """A scaling by -1."""
    return mul(input, -1)


@rule(
    "contiguous",
    "clone",
    "detach",
    folds=lambda: [
        Case(
            Op(
                lambda m, x: m.inner[0](x.contiguous(memory_format=torch.channels_last).clone()).detach(),
                nn.Conv2d(4, 4, 1),
            )
        )
    ],
    keeps=lambda: [(Case(Op(lambda m, x: F.pad(x, [1, 1], value=1.0).clone())), "value")],
)
def unchanged(input: Value, *, memory_format: torch.memory_format | None = None) -> AffineConv:
    """A copy, or the tensor itself."""
    return affine(input)


@rule(
    "stack",
    folds=lambda: [
        Case(
            Op(
                lambda m, x: torch.stack([b(x) for b in m.inner]).sum(0),
                nn.Conv2d(4, 4, 3, padding=1),
                nn.BatchNorm2d(4),
            )
        ),
        Case(
            Op(lambda m, x: torch.stack([b(x) for b in m.inner], dim=-1).mean(-1), nn.Linear(4, 3), nn.Linear(4, 3)),
            spatial=0,
        ),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: torch.stack([x, x]).sum(1))), "stack")],
)
def stack(tensors: Value, dim: int = 0) -> Stack:
    """Branches side by side; a value once they are summed."""
    items = tuple(map(affine, tensors))
    return Stack(items, dim % (len(items[0].anchor.shape) + 1))


def _sum_of_stack(input: Value, dim: Value, keepdim: bool) -> tuple[AffineConv, int]:
    """The sum of a stack over its own dimension, and the number of branches."""
    if not isinstance(input, Stack):
        raise Refusal("it sums over something other than a stack of branches")
    rank = len(input.items[0].anchor.shape) + 1
    dims = [] if dim is None else [d % rank for d in as_ints(dim, 1)]
    if dims != [input.dim] or keepdim:
        raise Refusal("it reduces a dimension other than that of the stack, or keeps it (keepdim=True)")
    return reduce(add, input.items), len(input.items)


@rule(
    "sum",
    folds=lambda: [
        Case(Op(lambda m, x: torch.stack([x, m.inner[0](x)], 1).sum(dim=1), nn.Conv2d(4, 4, 1))),
        Case(
            Op(lambda m, x: torch.sum(torch.stack([x, m.inner[0](x)]), (0,)), nn.Linear(4, 4)),
            spatial=2,
            channels_last=True,
        ),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.sum(1, keepdim=True))), "stack"),
        (Case(Op(lambda m, x: torch.stack([x, x], 1).sum(1, keepdim=True))), "keepdim"),
    ],
)
def stack_sum(input: Value, dim: Value = None, keepdim: bool = False) -> AffineConv:
    """The sum over the dimension along which branches were stacked."""
    return _sum_of_stack(input, dim, keepdim)[0]


@rule(
    "mean",
    folds=lambda: [
        Case(Op(lambda m, x: torch.stack([x, -x, m.inner[0](x)]).mean(0), nn.Conv2d(4, 4, 1))),
        Case(nn.Sequential(nn.BatchNorm2d(4), Op(lambda m, x: x.mean((2, 3))), nn.Linear(4, 3))),
        Case(nn.Sequential(nn.Conv2d(4, 4, 1), Op(lambda m, x: x.mean([-1, -2], keepdim=True)), nn.Conv2d(4, 3, 1))),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.mean(1, keepdim=True))), "channels"),
        (Case(Op(lambda m, x: x.mean())), "channels"),
    ],
)
def mean(input: Value, dim: Value = None, keepdim: bool = False) -> AffineConv | View:
    """The mean over the dimension along which branches were stacked, or over pixels."""
    if isinstance(input, Stack):
        total, count = _sum_of_stack(input, dim, keepdim)
        return _scaled(total, 1 / count)
    x = affine(input)
    rank = len(x.anchor.shape)
    dims = set(range(rank)) if dim is None else {d % rank for d in as_ints(dim, 1)}
    channel = channel_dimension(x)
    if dims & {0, channel}:
        raise Refusal("it averages over channels or the batch")
    shape = [1 if i in dims else size for i, size in enumerate(x.shape()) if keepdim or i not in dims]
    return View(x, tuple(shape), channel if keepdim else channel - sum(d < channel for d in dims))
