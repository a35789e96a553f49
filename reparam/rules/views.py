"""Operations that do the same to every channel: reshapes, transposes, pools and resizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.index_map import Permute, Rearranged, Reshape
from reparam.algebra.views import View
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, as_ints, channel_dimension, rule


def _permute(x: AffineConv, order: Sequence[int]) -> AffineConv | Rearranged:
    rank = len(x.anchor.shape)
    places = tuple(dim % rank for dim in order)
    return x if places == tuple(range(rank)) else Rearranged(x, (Permute(places),))


def _reshape(x: AffineConv, shape: Sequence[int]) -> AffineConv | Rearranged:
    """The same entries in the same order."""
    before = x.shape()
    known = math.prod(size for size in shape if size != -1)
    after = tuple(math.prod(before) // max(known, 1) if size == -1 else size for size in shape)
    if tuple(shape) == (-1, before[channel_dimension(x)]) and after == before:
        return x  # at every input size; other literal shapes hold for one size alone
    return Rearranged(x, (Reshape(after, 0, len(before)),))


@rule(
    "transpose",
    "swapaxes",
    "swapdims",
    folds=lambda: [
        Case(nn.Sequential(nn.BatchNorm1d(4), Op(lambda m, x: x.transpose(1, 2)), nn.Linear(4, 3)), spatial=1),
        Case(
            nn.Sequential(nn.Linear(4, 6), Op(lambda m, x: x.swapaxes(-1, -2)), nn.BatchNorm1d(6)),
            spatial=1,
            channels_last=True,
        ),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(Op(lambda m, x: x.transpose(2, 3)), nn.Conv2d(4, 4, 3))), "neighbours"),
    ],
)
def transpose(input: Value, dim0: int, dim1: int) -> AffineConv | Rearranged:
    """Two dimensions swapped."""
    x = affine(input)
    order = list(range(len(x.anchor.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(x, order)


@rule(
    "permute",
    folds=lambda: [
        Case(nn.Sequential(nn.Conv2d(4, 6, 1), Op(lambda m, x: x.permute(0, 2, 3, 1)), nn.Linear(6, 3))),
        Case(nn.Sequential(nn.BatchNorm2d(4), Op(lambda m, x: torch.permute(x, (0, 3, 2, 1))), nn.Linear(4, 3))),
    ],
    keeps=lambda: [(Case(nn.Sequential(Op(lambda m, x: x.permute(0, 1, 3, 2)), nn.Conv2d(4, 4, 3))), "neighbours")],
)
def permute(input: Value, *dims: Value) -> AffineConv | Rearranged:
    """Dimensions in another order."""
    return _permute(affine(input), dims[0] if isinstance(dims[0], (tuple, list, torch.Size)) else dims)


@rule(
    "movedim",
    "moveaxis",
    folds=lambda: [
        Case(nn.Sequential(nn.BatchNorm2d(4), Op(lambda m, x: x.movedim(1, -1)), nn.Linear(4, 3))),
        Case(nn.Sequential(nn.BatchNorm2d(4), Op(lambda m, x: torch.moveaxis(x, (1, 2), (3, 1))), nn.Linear(4, 3))),
    ],
    keeps=lambda: [(Case(nn.Sequential(Op(lambda m, x: x.movedim(2, 3)), nn.Conv2d(4, 4, 3))), "neighbours")],
)
def movedim(input: Value, source: Value, destination: Value) -> AffineConv | Rearranged:
    """Some dimensions moved, the others in their order."""
    x = affine(input)
    rank = len(x.anchor.shape)
    moved = {to % rank: dim % rank for dim, to in zip(as_ints(source, 1), as_ints(destination, 1), strict=True)}
    others = iter([dim for dim in range(rank) if dim not in moved.values()])
    return _permute(x, [moved[at] if at in moved else next(others) for at in range(rank)])


@rule(
    "reshape",
    "view",
    folds=lambda: [
        Case(
            nn.Sequential(
                nn.BatchNorm2d(4), Op(lambda m, x: x.reshape(x.shape[0], 4, -1).transpose(1, 2)), nn.Linear(4, 3)
            )
        ),
        Case(
            nn.Sequential(nn.Linear(4, 6), Op(lambda m, x: x.view(-1, 6)), nn.BatchNorm1d(6)),
            spatial=1,
            channels_last=True,
        ),
    ],
    keeps=lambda: [
        (
            Case(
                nn.Sequential(nn.Conv2d(4, 4, 1), Op(lambda m, x: x.view(len(x), -1)), nn.Linear(4 * 49, 2)),
                smallest=7,
                fixed=True,
            ),
            "merged with",
        ),
        (
            Case(nn.Sequential(nn.Linear(4, 4), Op(lambda m, x: x.view(len(x), -1, 2, 2))), channels_last=True),
            "splits channels",
        ),
    ],
)
def reshape(input: Value, *shape: Value) -> AffineConv | Rearranged:
    """The same entries in another shape."""
    return _reshape(affine(input), shape[0] if isinstance(shape[0], (tuple, list, torch.Size)) else shape)


@rule(
    "flatten",
    folds=lambda: [
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(2), nn.BatchNorm1d(4))),
        Case(nn.Sequential(nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))),
    ],
    keeps=lambda: [
        (
            Case(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 49, 2)), smallest=7, fixed=True),
            "merged with",
        )
    ],
)
def flatten(input: Value, start_dim: int = 0, end_dim: int = -1) -> AffineConv | Rearranged:
    """Neighbouring dimensions merged into one."""
    x = affine(input)
    shape = x.shape()
    start, end = start_dim % len(shape), end_dim % len(shape)
    if start == end:
        return x
    return Rearranged(x, (Reshape((math.prod(shape[start : end + 1]),), start, end + 1),))


@rule(
    "unflatten",
    folds=lambda: [
        Case(
            nn.Sequential(
                nn.Conv2d(4, 6, 1),
                nn.Unflatten(1, (2, 3)),
                Op(lambda m, x: x.swapaxes(1, 2).flatten(1, 2)),
                nn.BatchNorm2d(6),
            )
        )
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(-1, (2, 2))), channels_last=True), "splits channels up"),
    ],
)
def unflatten(input: Value, dim: int, sizes: Value) -> Rearranged:
    """One dimension split into several."""
    x = affine(input)
    at = dim % len(x.shape())
    count = x.shape()[at]
    known = math.prod(size for size in sizes if size != -1)
    return Rearranged(x, (Reshape(tuple(count // known if size == -1 else size for size in sizes), at, at + 1),))


@rule(
    "unsqueeze",
    folds=lambda: [
        Case(nn.Sequential(nn.Conv1d(4, 6, 1), Op(lambda m, x: x.unsqueeze(2)), nn.BatchNorm2d(6)), spatial=1)
    ],
    keeps=lambda: [
        (
            Case(nn.Sequential(Op(lambda m, x: x.unsqueeze(2)), nn.Conv2d(4, 6, (1, 3))), spatial=1, smallest=3),
            "neighbours",
        )
    ],
)
def unsqueeze(input: Value, dim: int) -> Rearranged:
    """A new dimension of length 1."""
    x = affine(input)
    at = dim % (len(x.shape()) + 1)
    return Rearranged(x, (Reshape((1,), at, at),))


@rule(
    "squeeze",
    folds=lambda: [
        Case(
            nn.Sequential(
                nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), Op(lambda m, x: x.squeeze(-1).squeeze(-1)), nn.Linear(6, 3)
            )
        ),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), Op(lambda m, x: x.squeeze()))), "every"),
        (Case(Op(lambda m, x: x.squeeze(-1)), smallest=2), "some sizes"),
    ],
)
def squeeze(input: Value, dim: Value = None) -> Rearranged:
    """A dimension of length 1 dropped."""
    x = affine(input)
    if not isinstance(dim, int):
        raise Refusal("it drops every dimension that happens to be 1", "naming one dimension would fold")
    shape, channel = x.shape(), channel_dimension(x)
    at = dim % len(shape)
    if at in (0, channel):
        raise Refusal("it drops the channels or the batch")
    if shape[at] != 1:
        raise Refusal("it drops a dimension at some sizes and none at others", "a reshape would fold")
    return Rearranged(x, (Reshape((), at, at + 1),))


@rule(
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    folds=lambda: [
        Case(nn.Sequential(nn.BatchNorm1d(4), nn.AdaptiveAvgPool1d(2), nn.Conv1d(4, 3, 1)), spatial=1),
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d((None, 2)), nn.Conv2d(4, 3, 1))),
        Case(nn.Sequential(nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 3, 1)), spatial=3),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(4, 4, 3))), "neighbours"),
    ],
)
def adaptive_avg_pool(input: Value, output_size: Value) -> View:
    """A mean over a given number of windows: linear in the pixels, the same for every channel."""
    x = affine(input)
    shape = x.shape()
    if not x.axes:
        raise Refusal("it pools over channels")
    sizes = output_size if isinstance(output_size, (tuple, list)) else [output_size] * len(x.axes)
    if len(sizes) != len(x.axes):
        raise Refusal(f"it pools {len(sizes)} axes of a tensor that has no batch", "a batch of one image would fold")
    after = [old if new is None else new for old, new in zip(shape[2:], sizes, strict=True)]
    return View(x, (*shape[:2], *after), 1)


@rule(
    "interpolate",
    folds=lambda: [
        Case(nn.Sequential(nn.Conv2d(4, 6, 1), nn.Upsample(scale_factor=2, mode="nearest"), nn.BatchNorm2d(6))),
        Case(
            nn.Sequential(
                nn.BatchNorm2d(4), Op(lambda m, x: F.interpolate(x, (5, 7), mode="bilinear")), nn.Conv2d(4, 3, 1)
            )
        ),
    ],
    keeps=lambda: [(Case(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3))), "neighbours")],
)
def interpolate(
    input: Value,
    size: Value = None,
    scale_factor: Value = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> View:
    """Every new pixel is a mean of old ones, with weights that are the same for every channel."""
    x = affine(input)
    if not x.axes:
        raise Refusal("it resizes channels")
    old, count = x.shape()[2:], len(x.axes)
    given = size if size is not None else scale_factor
    values = list(given) if isinstance(given, (tuple, list)) else [given] * count
    new = values if size is not None else [math.floor(length * by) for length, by in zip(old, values, strict=True)]
    return View(x, (*x.shape()[:2], *new), 1)
