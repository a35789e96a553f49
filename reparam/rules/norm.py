"""Batch norm, and the scale and shift of norms that depend on the input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.lazy import Lazy
from reparam.capture.norms import affine_part
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, constant, optional_constant, rule


def _functional_norm(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, m.mean, m.var, None, m.beta, eps=0.1)


@rule(
    "batch_norm",
    folds=lambda: [
        Case(nn.BatchNorm1d(4), spatial=0),
        Case(nn.BatchNorm1d(4), spatial=1),
        Case(nn.BatchNorm2d(4, eps=0.3, momentum=None)),
        Case(nn.BatchNorm2d(4, affine=False)),
        Case(nn.BatchNorm3d(4), spatial=3),
        Case(nn.SyncBatchNorm(4)),
        Case(Op(_functional_norm, mean=torch.randn(4), var=torch.rand(4), beta=torch.randn(4))),
        Case(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), smallest=3),
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2)), smallest=3),
        Case(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), spatial=0),
    ],
    keeps=lambda: [
        (Case(nn.BatchNorm2d(4, track_running_stats=False), smallest=2), "batch"),
        (
            Case(
                nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(5)), spatial=1, channels_last=True, smallest=5, fixed=True
            ),
            "channels",
        ),
    ],
)
def batch_norm(
    input: Value,
    running_mean: Value,
    running_var: Value,
    weight: Value = None,
    bias: Value = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> AffineConv:
    """y = (x - mean) / sqrt(var + eps) * weight + bias per channel, from running statistics (Ioffe, Szegedy 2015)."""
    if training or running_mean is None or running_var is None:
        raise Refusal(
            "its scale depends on the batch (no running statistics)",
            "track_running_stats=True while training would fold",
        )
    mean, var = constant(running_mean, "running mean"), constant(running_var, "running variance")
    gamma, beta = optional_constant(weight, "weight"), optional_constant(bias, "bias")

    def gain() -> Tensor:
        inverse = (var.value() + eps).rsqrt()
        return inverse if gamma is None else inverse * gamma.value()

    scale = Lazy(gain)

    def shift() -> Tensor:
        centred = -mean.value() * scale()
        return centred if beta is None else centred + beta.value()

    return affine(input).channels_first().scale_shift(scale, Lazy(shift))


@rule(
    "affine_part",
    folds=lambda: [
        Case(Op(lambda m, x: affine_part(x, m.gamma, m.beta, 1), gamma=torch.randn(4), beta=torch.randn(4))),
        Case(Op(lambda m, x: affine_part(x, m.gamma, None, 1), gamma=torch.randn(4)), spatial=0),
        Case(Op(lambda m, x: affine_part(x, None, m.beta, -1), beta=torch.randn(4)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [(Case(nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1))), "bias")],
)
def normalised(input: Value, weight: Value, bias: Value, dim: int) -> AffineConv:
    """The weight and bias of `layer_norm`, `rms_norm`, `group_norm` and `instance_norm`; the normalisation stays."""
    gamma, beta = optional_constant(weight, "weight"), optional_constant(bias, "bias")
    x = affine(input).with_layout(0) if dim == -1 else affine(input).channels_first()
    return x.scale_shift(None if gamma is None else gamma.value, None if beta is None else beta.value)
