"""Pixels moved into channels, and channels into pixels."""

from __future__ import annotations

import torch
from torch import nn

from reparam.affine import AffineConv, Constant, Deferred
from reparam.rules.table import Case, Value, affine, rule
from reparam.viewed import Viewed


@rule(
    "pixel_unshuffle",
    folds=lambda: [
        Case(nn.PixelUnshuffle(2), smallest=4, fixed=True),
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.PixelUnshuffle(3), nn.Conv2d(36, 3, 1)), smallest=6, fixed=True),
    ],
    keeps=lambda: [(Case(nn.PixelUnshuffle(2), spatial=3, smallest=4, fixed=True), "2 spatial axes")],
)
def pixel_unshuffle(input: Value, downscale_factor: int) -> AffineConv:
    """Every block of pixels moved into channels."""
    x, r = affine(input).seen_with(2), downscale_factor
    shape = (x.out_channels * r * r, 1, r, r)
    kernel = Deferred(lambda: torch.eye(r * r, dtype=torch.float64).repeat(x.out_channels, 1).view(shape))
    return x.then(AffineConv.conv(Constant(shape, kernel), stride=[r, r], groups=x.out_channels))


@rule(
    "pixel_shuffle",
    folds=lambda: [
        Case(nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2), nn.BatchNorm2d(3))),
        Case(nn.Sequential(nn.Conv2d(4, 9, 3, 1, 1), nn.PixelShuffle(3), nn.AvgPool2d(2), nn.BatchNorm2d(1))),
        Case(nn.Sequential(nn.Conv2d(4, 16, 1), nn.PixelShuffle(2), nn.PixelShuffle(2), nn.BatchNorm2d(1))),
        Case(nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 6, 1, groups=2))),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 3))), "neighbours"),
        (Case(nn.PixelShuffle(2), spatial=3, smallest=4, fixed=True), "2 spatial axes"),
    ],
)  # fmt: skip
def pixel_shuffle(input: Value, upscale_factor: int) -> Viewed:
    """Every r * r channels moved into a block of pixels: a map of single pixels may stand before it."""
    x, r = affine(input).seen_with(2), upscale_factor
    batch, channels, *sizes = x.shape()
    return Viewed(x, (batch, channels // (r * r), *(size * r for size in sizes)), 1, spread=r * r)
