"""Linear layers and matrix products with one factor that does not depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from reparam.affine import AffineConv
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, constant, optional, rule


@rule(
    "linear",
    folds=lambda: [
        Case(nn.Linear(4, 6), spatial=0),
        Case(nn.Linear(4, 6, bias=False), spatial=2, channels_last=True),
        Case(Op(lambda m, x: F.linear(x, m.w * 2, m.b), w=torch.randn(3, 4), b=torch.randn(3)), spatial=0),
        Case(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(7, 7)), spatial=1, smallest=7, fixed=True), "channels"),
        (Case(Op(lambda m, x: F.linear(x, x[:3])), spatial=0), "kernel"),
        (Case(Op(lambda m, x: F.linear(x, m.w), w=torch.randn(4)), spatial=1, channels_last=True), "vector"),
    ],
)
def linear(input: Value, weight: Value, bias: Value = None) -> AffineConv:
    """A linear layer is a convolution without spatial axes, over the last dimension."""
    kernel = constant(weight, "kernel")
    if len(kernel.shape) != 2:
        raise Refusal("its weight is a vector", "a weight of shape (1, in_features) would fold")
    return affine(input).seen_with(0).then(AffineConv.conv(kernel, optional(bias, "bias")))
