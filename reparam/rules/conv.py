"""Convolutions with a kernel that does not depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from reparam.affine import AffineConv
from reparam.rules.table import Case, Op, Value, affine, constant, each, optional, rule


def _pads(padding: Value, spans: list[int]) -> list[tuple[int, int]]:
    """(front, end) per axis. torch puts the odd pixel of "same" at the end."""
    if padding == "valid":
        return [(0, 0)] * len(spans)
    if padding == "same":
        return [((span - 1) // 2, span - 1 - (span - 1) // 2) for span in spans]
    return [(p, p) for p in each(padding, len(spans))]


@rule(
    "conv1d",
    "conv2d",
    "conv3d",
    folds=lambda: [
        Case(nn.Conv1d(4, 6, 3, stride=2, padding=1), spatial=1),
        Case(nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 3), bias=False)),
        Case(nn.Conv2d(4, 8, 3, padding=4, dilation=4, groups=4)),
        Case(nn.Conv2d(4, 4, 4, padding="same", dilation=3)),
        Case(nn.Conv2d(4, 4, (2, 4), padding="same")),
        Case(nn.Conv2d(4, 6, 2, padding="valid", groups=2), smallest=2),
        Case(nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1), groups=2), spatial=3),
        Case(nn.Conv2d(4, 6, 3, padding=1, stride=2, padding_mode="reflect"), smallest=2),
        Case(nn.Conv1d(4, 4, 4, padding="same", padding_mode="circular"), spatial=1, smallest=2),
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, (3, 5), padding=(1, 2), padding_mode="replicate"))),
        Case(
            Op(
                lambda m, x: F.conv2d(x, m.k + m.i, m.b, padding=1),
                k=torch.randn(4, 4, 3, 3),
                i=torch.eye(4)[:, :, None, None],
                b=torch.randn(4),
            )
        ),
        Case(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, 1))),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))), "bias"),
        (Case(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))), "bias"),
        (Case(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False))), "border"),
        (Case(Op(lambda m, x: F.conv2d(x, x[:, :, :1, :1])), channels=1), "kernel"),
    ],
)
def conv(
    input: Value,
    weight: Value,
    bias: Value = None,
    stride: Value = 1,
    padding: Value = 0,
    dilation: Value = 1,
    groups: int = 1,
) -> AffineConv:
    """A convolution pads its input with zeros, and composes with it."""
    kernel = constant(weight, "kernel")
    spatial = len(kernel.shape) - 2
    outer = AffineConv.conv(kernel, optional(bias, "bias"), each(stride, spatial), each(dilation, spatial), groups)
    pads = _pads(padding, [axis.span for axis in outer.axes])
    return affine(affine(input).seen_with(spatial).pad(pads)).then(outer)
