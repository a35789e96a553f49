"""Pixels moved into channels, and channels into pixels."""

from __future__ import annotations

from torch import nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.index_map import Permute, Rearranged, Reshape, space_to_depth
from reparam.rules.table import Case, Value, affine, rule


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
    return space_to_depth(affine(input).with_layout(2), [downscale_factor] * 2)


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
def pixel_shuffle(input: Value, upscale_factor: int) -> Rearranged:
    """Every r * r channels moved into a block of pixels: a 1x1 convolution after it can move before it."""
    x, r = affine(input).with_layout(2), upscale_factor
    _, channels, high, wide = x.shape()
    cut = Reshape((channels // (r * r), r, r), 1, 2)
    return Rearranged(x, (cut, Permute((0, 1, 4, 2, 5, 3)), Reshape((high * r,), 2, 4), Reshape((wide * r,), 3, 5)))
