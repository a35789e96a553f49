"""Average pools: depthwise convolutions with the same weight at every tap."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from reparam.algebra.affine import AffineConv, Constant
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, as_ints, rule


def _average(
    x: AffineConv,
    spatial: int,
    kernel_size: Value,
    stride: Value,
    padding: Value,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> AffineConv:
    taps = as_ints(kernel_size, spatial)
    strides = as_ints(stride, spatial) if stride else taps
    pads = as_ints(padding, spatial)
    if any(pads) and not count_include_pad and divisor is None:
        raise Refusal(
            "count_include_pad=False divides windows at the border by fewer pixels",
            "padding=0 or count_include_pad=True would fold",
        )
    if ceil_mode and any(step > 1 for step in strides):
        raise Refusal("ceil_mode=True adds windows that depend on the size of the input", "ceil_mode=False would fold")
    shape, weight = (x.out_channels, 1, *taps), 1 / (divisor or math.prod(taps))
    kernel = Constant(shape, Lazy(lambda: torch.full(shape, weight, dtype=torch.float64)))
    outer = AffineConv.conv(kernel, stride=strides, groups=x.out_channels)
    pooled = affine(x.with_layout(spatial).pad([(p, p) for p in pads])).then(outer)
    return replace(pooled, mean=x.identity and not any(pads) and divisor is None)


@rule(
    "avg_pool1d",
    folds=lambda: [
        Case(nn.AvgPool1d(3, 2, padding=1), spatial=1),
        Case(nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.AvgPool1d(2)), spatial=1, smallest=4),
    ],
    keeps=lambda: [(Case(nn.AvgPool1d(3, 2, ceil_mode=True), spatial=1, smallest=3), "ceil_mode")],
)
def avg_pool1d(
    input: Value,
    kernel_size: Value,
    stride: Value = None,
    padding: Value = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> AffineConv:
    """The mean over a window, always divided by the same number of pixels."""
    return _average(affine(input), 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@rule(
    "avg_pool2d",
    folds=lambda: [
        Case(nn.AvgPool2d(2), smallest=2),
        Case(nn.AvgPool2d((3, 2), stride=(1, 2), padding=(1, 0)), smallest=2),
        Case(nn.AvgPool2d(3, 1, padding=0, count_include_pad=False, ceil_mode=True), smallest=3),
        Case(nn.AvgPool2d(2, 2, divisor_override=3), smallest=2),
        Case(Op(lambda m, x: F.avg_pool2d(input=x, kernel_size=3, padding=1))),
    ],
    keeps=lambda: [
        (Case(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)), "count_include_pad"),
        (Case(nn.AvgPool2d(3, 2, ceil_mode=True), smallest=3), "ceil_mode"),
        (Case(nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1))), "bias"),
        (Case(nn.AvgPool2d(2), spatial=1, smallest=2), "2 spatial axes"),
    ],
)
def avg_pool2d(
    input: Value,
    kernel_size: Value,
    stride: Value = None,
    padding: Value = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> AffineConv:
    """The mean over a window, always divided by the same number of pixels."""
    return _average(affine(input), 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@rule(
    "avg_pool3d",
    folds=lambda: [Case(nn.AvgPool3d(2, 1, padding=1), spatial=3, smallest=2)],
    keeps=lambda: [
        (Case(nn.AvgPool3d(3, 1, padding=1, count_include_pad=False), spatial=3, smallest=2), "count_include_pad")
    ],
)
def avg_pool3d(
    input: Value,
    kernel_size: Value,
    stride: Value = None,
    padding: Value = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> AffineConv:
    """The mean over a window, always divided by the same number of pixels."""
    return _average(affine(input), 3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
