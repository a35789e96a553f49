"""Sums, scalings and what changes nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.affine import AffineConv, Deferred
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Stack, Value, affine, dimension, per_channel, rule


def _into(m: Op, x: Tensor) -> Tensor:
    y = m.inner[0](x)
    y += m.inner[1](x)
    y *= 0.5
    y -= m.shift
    return y.neg_()


def _affine_map(x: Value) -> AffineConv:
    """A map to which constants of shape (C, 1, 1) are added: channels first, unless it is a linear map already."""
    return affine(x)


def _negated(x: AffineConv, factor: float) -> AffineConv:
    return x if factor == 1 else x.scale_shift(scale=per_channel(factor, x))


@rule(
    "add",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) + x, nn.Conv2d(4, 4, 3, padding=1))),
        Case(Op(lambda m, x: torch.add(m.inner[0](x), m.inner[1](x), alpha=-0.5),
                nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1, stride=2))),
        Case(Op(lambda m, x: sum([b(x) for b in m.inner]), nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
                nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, 3, padding=6, dilation=6), nn.Identity())),
        Case(Op(_into, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2), shift=torch.randn(4, 1, 1))),
        Case(Op(lambda m, x: 1.5 + x + m.s, s=torch.randn(1, 4, 1, 1))),
        Case(Op(lambda m, x: m.inner[0](x).add_(m.inner[1](x)), nn.Linear(4, 3), nn.Linear(4, 3, bias=False)), spatial=0),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: m.inner[0](x) + x.relu(), nn.Conv2d(4, 4, 1))), "different tensors"),
        (Case(Op(lambda m, x: m.inner[0](x) + m.inner[1](x), nn.Conv2d(4, 4, 2, padding=1, stride=2),
                 nn.Conv2d(4, 4, 1, stride=2)), smallest=8), "stride or in the size"),
        (Case(Op(lambda m, x: x + m.s, s=torch.randn(9)), smallest=9), "per channel"),
        (Case(Op(lambda m, x: m.inner[0](x) + x, nn.Conv2d(4, 1, 1))), "broadcasts"),
    ],
)  # fmt: skip
def add(input: Value, other: Value, *, alpha: float = 1) -> AffineConv:
    """A sum of branches, or a shift by a constant."""
    if isinstance(input, AffineConv) and isinstance(other, AffineConv):
        return input + _negated(other, alpha)
    if isinstance(input, AffineConv) and not isinstance(other, AffineConv):
        if isinstance(other, (int, float)) and other * alpha == 0:
            return input
        shift = per_channel(other, input)
        count = input.out_channels
        return input.scale_shift(shift=Deferred(lambda: (shift() * alpha).expand(count)))
    return affine(other) if isinstance(input, (int, float)) and input == 0 else add(_negated(affine(other), alpha), input)


@rule(
    "sub",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) - m.inner[1](x), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))),
        Case(Op(lambda m, x: torch.sub(x, m.s), s=torch.randn(4, 1, 1))),
        Case(Op(lambda m, x: m.s - x, s=torch.randn(4, 1, 1))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.relu() - x)), "different tensors")],
)  # fmt: skip
def sub(input: Value, other: Value, *, alpha: float = 1) -> AffineConv:
    """A difference is a sum with a negative coefficient."""
    return add(input, other, alpha=-alpha)


@rule(
    "rsub",
    folds=lambda: [Case(Op(lambda m, x: 1 - x)), Case(Op(lambda m, x: torch.rsub(x, m.inner[0](x)), nn.BatchNorm2d(4)))],
    keeps=lambda: [(Case(Op(lambda m, x: torch.rsub(x, x.relu()))), "different tensors")],
)  # fmt: skip
def rsub(input: Value, other: Value, *, alpha: float = 1) -> AffineConv:
    """other - alpha * input."""
    return add(other, input, alpha=-alpha)


@rule(
    "mul",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) * m.gamma, nn.Conv2d(4, 4, 3, padding=1), gamma=torch.randn(4, 1, 1))),
        Case(Op(lambda m, x: m.gamma.view(1, -1, 1, 1) * x, gamma=torch.randn(4))),
        Case(Op(lambda m, x: torch.mul(x, -2).mul_(1.0))),
        Case(Op(lambda m, x: m.inner[0](x) * m.gamma, nn.Linear(4, 3), gamma=torch.randn(3)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x * x)), "both"),
        (Case(Op(lambda m, x: x * m.s, s=torch.randn(9)), smallest=9), "per channel"),
    ],
)  # fmt: skip
def mul(input: Value, other: Value) -> AffineConv:
    """A scaling by a number or by one constant per channel."""
    if isinstance(input, AffineConv) and isinstance(other, AffineConv):
        raise Refusal("both factors depend on the input")
    x, factor = (input, other) if isinstance(input, AffineConv) else (affine(other), input)
    if isinstance(factor, (int, float)) and factor == 1:
        return x
    return x.scale_shift(scale=per_channel(factor, x))


@rule(
    "div",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x) / m.s, nn.Conv2d(4, 4, 1), s=torch.rand(4, 1, 1) + 0.5)),
        Case(Op(lambda m, x: (x / 3).div_(0.7))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: 1 / (x + 9))), "divides by"), (Case(Op(lambda m, x: x / x.exp())), "divides by"),
                   (Case(Op(lambda m, x: torch.div(x, 2, rounding_mode="floor"))), "rounds")],
)  # fmt: skip
def div(input: Value, other: Value, *, rounding_mode: str | None = None) -> AffineConv:
    """A division by a number or by one constant per channel."""
    if rounding_mode is not None:
        raise Refusal("it rounds")
    if isinstance(other, AffineConv) or not isinstance(input, AffineConv):
        raise Refusal("it divides by something that depends on the input")
    factor = per_channel(other, input)
    return input.scale_shift(scale=Deferred(lambda: 1 / factor()))


@rule(
    "neg",
    folds=lambda: [Case(Op(lambda m, x: -m.inner[0](x), nn.Conv2d(4, 4, 3, padding=1))), Case(Op(lambda m, x: x.neg()))],
    keeps=lambda: [(Case(Op(lambda m, x: -F.pad(x, [1, 1], value=1.0))), "value")],
)  # fmt: skip
def neg(input: Value) -> AffineConv:
    """A scaling by -1."""
    return mul(input, -1)


@rule(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    folds=lambda: [Case(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.3), nn.Dropout2d(0.2), nn.Identity()))],
    keeps=lambda: [(Case(Op(lambda m, x: F.dropout(x, 0.0, training=True))), "training")],
)  # fmt: skip
def dropout(input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    """In eval it does nothing."""
    if training:
        raise Refusal("it runs with training=True", "passing training=self.training would fold")
    return affine(input)


@rule(
    "contiguous", "clone", "detach",
    folds=lambda: [Case(Op(lambda m, x: m.inner[0](x.contiguous().clone()).detach(), nn.Conv2d(4, 4, 1)))],
    keeps=lambda: [(Case(Op(lambda m, x: F.pad(x, [1, 1], value=1.0).clone())), "value")],
)  # fmt: skip
def unchanged(input: Value, *, memory_format: torch.memory_format | None = None) -> AffineConv:
    """The same values in another place."""
    return affine(input)


@rule(
    "stack",
    folds=lambda: [
        Case(Op(lambda m, x: torch.stack([b(x) for b in m.inner]).sum(0), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))),
        Case(Op(lambda m, x: torch.stack([b(x) for b in m.inner], dim=-1).mean(-1), nn.Linear(4, 3), nn.Linear(4, 3)),
             spatial=0),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: torch.stack([x, x]).sum(1))), "stack")],
)  # fmt: skip
def stack(tensors: Value, dim: int = 0) -> Stack:
    """Branches side by side, waiting for their sum."""
    items = tuple(affine(item) for item in tensors)
    return Stack(items, dim % (len(items[0].anchor.shape) + 1))


@rule(
    "sum", "mean",
    folds=lambda: [Case(Op(lambda m, x: torch.stack([x, m.inner[0](x)], 1).sum(dim=1), nn.Conv2d(4, 4, 1)))],
    keeps=lambda: [(Case(Op(lambda m, x: x.sum(1, keepdim=True))), "stack"),
                   (Case(Op(lambda m, x: torch.stack([x, x], 1).sum(1, keepdim=True))), "keepdim")],
)  # fmt: skip
def stack_sum(input: Value, dim: Value = None, keepdim: bool = False) -> AffineConv:
    """The sum over the dimension along which branches were stacked."""
    if not isinstance(input, Stack):
        raise Refusal("it reduces something other than a stack of branches")
    rank = len(input.items[0].anchor.shape) + 1
    dims = [d % rank for d in (dim if isinstance(dim, (tuple, list)) else [dim])] if dim is not None else []
    if dims != [input.dim] or keepdim:
        raise Refusal("it reduces another dimension than that of the stack, or keeps it (keepdim=True)")
    total = input.items[0]
    for item in input.items[1:]:
        total = total + item
    return total
