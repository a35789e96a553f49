"""Average pools: depthwise convolutions with one and the same weight at every tap."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.affine import AffineConv, Constant, Deferred
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, each, rule, settled


@rule(
    "avg_pool1d", "avg_pool2d", "avg_pool3d",
    folds=lambda: [
        Case(nn.AvgPool1d(3, 2, padding=1), spatial=1),
        Case(nn.AvgPool2d(2), smallest=2),
        Case(nn.AvgPool2d((3, 2), stride=(1, 2), padding=(1, 0)), smallest=2),
        Case(nn.AvgPool2d(3, 1, padding=0, count_include_pad=False, ceil_mode=True), smallest=3),
        Case(nn.AvgPool2d(2, 2, divisor_override=3), smallest=2),
        Case(nn.AvgPool3d(2, 1, padding=1), spatial=3),
        Case(Op(lambda m, x: F.avg_pool2d(x, 3, padding=1))),
    ],
    keeps=lambda: [
        (Case(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)), "count_include_pad"),
        (Case(nn.AvgPool2d(3, 2, ceil_mode=True), smallest=3), "ceil_mode"),
        (Case(nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1))), "bias"),
    ],
)  # fmt: skip
def avg_pool(
    x: Value,
    kernel_size: Value,
    stride: Value = None,
    padding: Value = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> AffineConv:
    """The mean over a window that always counts the same number of pixels."""
    value = affine(x)
    value = value.seen_with(len(value.anchor.shape) - 2)
    spatial = len(value.axes)
    taps = each(kernel_size, spatial)
    strides = each(stride, spatial) if stride else taps
    pads = each(padding, spatial)
    if any(pads) and not count_include_pad and divisor_override is None:
        raise Refusal(
            "count_include_pad=False divides windows at the border by fewer pixels",
            "padding=0 or count_include_pad=True would fold",
        )
    if ceil_mode and any(step > 1 for step in strides):
        raise Refusal("ceil_mode=True adds windows that depend on the size of the input", "ceil_mode=False would fold")
    channels, divisor = value.out_channels, divisor_override or math.prod(taps)

    def kernel() -> Tensor:
        return torch.full((channels, 1, *taps), 1 / divisor, dtype=torch.float64)

    outer = AffineConv.conv(Constant((channels, 1, *taps), Deferred(kernel)), stride=strides, groups=channels)
    return settled(value.pad([(p, p) for p in pads])).then(outer)
