"""Channels (and pixels) put together and taken apart."""

from __future__ import annotations

from functools import reduce

import torch
from torch import nn

from reparam.affine import AffineConv
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, channel_dimension, dimension, rule


def _along_channels(x: AffineConv, dim: int, what: str) -> AffineConv:
    """x, refused where `dim` is not its channels."""
    if dimension(dim, x) != channel_dimension(x):
        raise Refusal(f"it {what} along a dimension that is not the channels")
    return x


@rule(
    "cat",
    folds=lambda: [
        Case(
            Op(
                lambda m, x: torch.cat([b(x) for b in m.inner], 1),
                nn.Conv2d(4, 2, 3, padding=1),
                nn.Conv2d(4, 6, 1, groups=2),
                nn.Identity(),
            )
        ),
        Case(Op(lambda m, x: m.inner[0](torch.cat((x, x), dim=-3)), nn.Conv2d(8, 4, 3, padding=1))),
        Case(Op(lambda m, x: torch.cat([m.inner[0](x), x], -1), nn.Linear(4, 2)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: torch.cat([x, x.relu()], 1))), "different tensors"),
        (Case(Op(lambda m, x: torch.cat([x, x], 2))), "not the channels"),
        (Case(Op(lambda m, x: torch.cat([x, x], 3))), "not the channels"),
    ],
)
def cat(tensors: Value, dim: int = 0) -> AffineConv:
    """Convolutions of one anchor side by side are one convolution with more rows."""
    items = [affine(x) for x in tensors]
    # The anchor itself has no layout of its own: it takes that of the first other item.
    spatial = next((len(x.axes) for x in items if not x.identity), len(items[0].axes))
    return reduce(AffineConv.cat, [_along_channels(x.seen_with(spatial), dim, "concatenates") for x in items])


def _sections(count: int, sizes: Value) -> list[int]:
    """The length of each part; a single number is that of all but the last."""
    if isinstance(sizes, int):
        return [min(sizes, count - start) for start in range(0, count, sizes)]
    return list(sizes)


@rule(
    "split",
    "split_with_sizes",
    folds=lambda: [
        Case(Op(lambda m, x: sum(m.inner[0](x).split(2, 1)), nn.Conv2d(4, 6, 3, padding=1))),
        Case(Op(lambda m, x: torch.cat(torch.split(x, [1, 3], dim=1)[::-1], 1))),
        Case(
            Op(lambda m, x: m.inner[0](x).split_with_sizes([1, 2], -1)[1], nn.Linear(4, 3)),
            spatial=1,
            channels_last=True,
        ),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.split(2, 2)[0]), smallest=4), "not the channels")],
)
def split(tensor: Value, split_size_or_sections: Value, dim: int = 0) -> tuple[AffineConv, ...]:
    """Each part takes its rows."""
    x = _along_channels(affine(tensor), dim, "splits")
    sizes = _sections(x.out_channels, split_size_or_sections)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(x.take(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


@rule(
    "chunk",
    folds=lambda: [
        Case(
            Op(
                lambda m, x: torch.cat([m.inner[0](x.chunk(2, 1)[0]), x.chunk(2, dim=1)[1]], 1),
                nn.Conv2d(2, 2, 3, padding=1),
            )
        )
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.chunk(2, 3)[0]), smallest=4), "not the channels")],
)
def chunk(input: Value, chunks: int, dim: int = 0) -> tuple[AffineConv, ...]:
    """Equal parts, the last one smaller."""
    x = _along_channels(affine(input), dim, "splits")
    return split(x, -(-x.out_channels // chunks), dim)


@rule(
    "getitem",
    folds=lambda: [
        Case(Op(lambda m, x: x[:, 1:3])),
        Case(Op(lambda m, x: m.inner[0](x)[:, ::2, 1:-1, 1:-1], nn.Conv2d(4, 4, 3, padding=2))),
        Case(Op(lambda m, x: m.inner[0](x[..., ::2, 1::2]), nn.Conv2d(4, 3, 3, padding=1)), smallest=2),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x[0])), "index"),
        (Case(Op(lambda m, x: x[:, :, :2]), smallest=3), "fixed pixel"),
        (Case(Op(lambda m, x: x[:, :, :0])), "fixed pixel"),
        (Case(Op(lambda m, x: x[..., -2:]), smallest=2), "far end"),
        (Case(Op(lambda m, x: x[:1])), "neither"),
        (Case(Op(lambda m, x: x[:, :, : torch.tensor(3)])), "computed"),
    ],
)
def getitem(x: Value, index: Value) -> AffineConv:
    """An entry of a tuple, a range of channels, a strided crop."""
    if isinstance(x, tuple):
        return affine(x[index])
    value = affine(x)
    entries = list(index) if isinstance(index, tuple) else [index]
    rank = len(value.anchor.shape)
    if any(entry is Ellipsis for entry in entries):
        at = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
        entries[at : at + 1] = [slice(None)] * (rank + 1 - len(entries))
    if not all(isinstance(entry, slice) for entry in entries):
        raise Refusal(
            "its index is more than slices, which drops a dimension or picks pixels", "a slice of length 1 would fold"
        )
    for dim, part in enumerate(entries):
        value = _sliced(value, dim, part)
    return value


def _sliced(x: AffineConv, dim: int, part: slice) -> AffineConv:
    if part == slice(None):
        return x
    if not all(bound is None or isinstance(bound, int) for bound in (part.start, part.stop, part.step)):
        raise Refusal("it slices at a position that is computed from a tensor", "a fixed position would fold")
    if dim == channel_dimension(x):
        return x.take(range(x.out_channels)[part])
    if not x.axes or dim < 2:
        raise Refusal("it slices a dimension that is neither channels nor space")
    start, step = part.start or 0, part.step or 1
    if start < 0 or (part.stop is not None and part.stop >= 0):
        raise Refusal(
            "it counts from the far end or stops at a fixed pixel, so what it takes depends on the size of the input",
            "a start counted from the front and a stop counted from the end would fold",
        )
    return x.slice(dim - 2, start, -(part.stop or 0), step)
