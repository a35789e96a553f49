"""Channels and pixels: concatenated, split, selected, reordered, repeated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import nn

from reparam.algebra.affine import AffineConv, Constant
from reparam.algebra.index_map import Rearranged, Select
from reparam.algebra.views import View
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, as_ints, channel_dimension, constant, dimension, rule


def _along_channels(x: AffineConv, dim: int, what: str) -> AffineConv:
    """x. Raises Refusal if `dim` does not hold its channels."""
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
    """Convolutions of one tensor, concatenated, are one convolution with more output channels."""
    items = [affine(x) for x in tensors]
    # The anchor can be read in either layout: it takes that of the first other item.
    spatial = next((len(x.axes) for x in items if not x.identity), len(items[0].axes))
    return reduce(AffineConv.cat, [_along_channels(x.with_layout(spatial), dim, "concatenates") for x in items])


def _sections(count: int, sizes: Value) -> list[int]:
    """The length of each part; a single number is the length of all but the last."""
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
    """Each part is a range of channels."""
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
    """Parts of equal length, the last one shorter."""
    x = _along_channels(affine(input), dim, "splits")
    return split(x, -(-x.out_channels // chunks), dim)


@rule(
    "getitem",
    folds=lambda: [
        Case(Op(lambda m, x: x[:, 1:3])),
        Case(Op(lambda m, x: m.inner[0](x)[:, ::2, 1:-1, 1:-1], nn.Conv2d(4, 4, 3, padding=2))),
        Case(Op(lambda m, x: m.inner[0](x[..., ::2, 1::2]), nn.Conv2d(4, 3, 3, padding=1)), smallest=2),
        Case(Op(lambda m, x: m.inner[0](x)[:, [2, 0, -1]], nn.Conv2d(4, 6, 3, groups=2)), smallest=3),
        Case(Op(lambda m, x: x[:, m.index, 1:], index=torch.tensor([3, 1, 1])), smallest=2),
        Case(
            Op(lambda m, x: m.inner[0](x)[..., m.mask], nn.Linear(4, 3), mask=torch.tensor([True, False, True])),
            spatial=1,
            channels_last=True,
        ),
        Case(
            Op(lambda m, x: m.inner[1](m.inner[0](x)[:, 0]), nn.Linear(4, 3), nn.Linear(3, 2)),
            spatial=1,
            channels_last=True,
        ),
        Case(
            Op(lambda m, x: m.inner[1](m.inner[0](x)[:, 1:, None]), nn.Linear(4, 3), nn.Linear(3, 2)),
            spatial=1,
            smallest=2,
            channels_last=True,
        ),
        Case(
            Op(lambda m, x: m.inner[1](m.inner[0](x)[..., -2:, 0]), nn.Conv2d(4, 3, 3), nn.BatchNorm1d(3)), smallest=4
        ),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(Op(lambda m, x: x[0]), nn.Conv2d(4, 4, 1))), "dimension 0 of 3"),
        (Case(nn.Sequential(Op(lambda m, x: x[:, :, :2]), nn.Conv2d(4, 4, (2, 1))), smallest=3), "neighbours"),
        (Case(Op(lambda m, x: x[:, :, :0])), "empty"),
        (Case(Op(lambda m, x: x[:, 0])), "drops the channels"),
        (Case(Op(lambda m, x: x[:, 0, 1:]), smallest=2), "drops the channels"),
        (Case(Op(lambda m, x: x[:, :, [2, 0]]), smallest=3), "picks pixels"),
        (Case(Op(lambda m, x: x[:, [0, 1], [0, 1]]), smallest=3), "together with pixels"),
        (Case(Op(lambda m, x: x[:, m.index], index=torch.tensor(2))), "flat list"),
        (Case(Op(lambda m, x: x[:, :, : torch.tensor(3)])), "computed"),
    ],
)
def getitem(x: Value, index: Value) -> AffineConv | View | Rearranged:
    """An entry of a tuple, some channels, a crop, or pixels, tokens or groups of channels by their index."""
    if isinstance(x, tuple):
        return cast(AffineConv | View, x[index])
    value = affine(x)
    entries = list(index) if isinstance(index, tuple) else [index]
    rank = len(value.anchor.shape)
    named = sum(entry is not None and entry is not Ellipsis for entry in entries)
    at = next((i for i, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    entries[at : at + 1] = [slice(None)] * (rank - named)
    bounds = [bound for part in entries if isinstance(part, slice) for bound in (part.start, part.stop, part.step)]
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise Refusal("it slices at a position that is computed from a tensor", "a constant position would fold")
    picks = [dim for dim, part in enumerate(entries) if type(part) is int]
    if picks and all(part == slice(None) for part in entries if type(part) is not int):
        return Rearranged(value, tuple(Select(dim, entries[dim] % value.shape()[dim]) for dim in reversed(picks)))
    if not all(_is_slice_of_value(value, dim, part) for dim, part in enumerate(entries)):
        return _selected(value, entries)
    for dim, part in enumerate(entries):
        value = _slice_dim(value, dim, part)
    return value


def _is_slice_of_value(x: AffineConv, dim: int, part: Value) -> bool:
    """Whether the index of a dimension selects channels, or crops and strides pixels in the same way at every size."""
    if dim == channel_dimension(x):
        return isinstance(part, (slice, list, Constant))
    if not isinstance(part, slice):
        return False
    ends = (part.start or 0) >= 0 and (part.stop is None or part.stop < 0)
    return part == slice(None) or (dim > 1 and bool(x.axes) and ends)


def _selected(x: AffineConv, entries: Sequence[Value]) -> View:
    """Some pixels, tokens or entries of the batch: dimensions may be dropped or added, the channels stay whole."""
    shape: list[int] = []
    dims, channel = iter(enumerate(x.shape())), 0
    for part in entries:
        if part is None:
            shape.append(1)
            continue
        dim, size = next(dims)
        if dim == channel_dimension(x):
            channel = len(shape)
            if part != slice(None):
                raise Refusal("it drops the channels, or selects some of them together with pixels")
        if isinstance(part, slice):
            shape.append(len(range(size)[part]))
        elif type(part) is not int:
            raise Refusal(
                "its index is computed, or picks pixels by a list",
                "numbers, slices, or a list or constant tensor of channels would fold",
            )
    if 0 in shape:
        raise Refusal("its result is empty at this size")
    return View(x, tuple(shape), channel)


@rule(
    "select",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x).unflatten(1, (3, 2)).select(1, 1), nn.Conv2d(4, 6, 3, padding=1))),
        Case(Op(lambda m, x: x.unflatten(1, (2, 2)).select(dim=2, index=-1))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.select(1, 0))), "drops the channels")],
)
def select(input: Value, dim: int, index: Value) -> Rearranged:
    """One index of a dimension that channels were split into."""
    x = affine(input)
    if not isinstance(index, int):
        raise Refusal("it selects an index that is computed from a tensor", "a constant index would fold")
    at = dimension(dim, x)
    return Rearranged(x, (Select(at, index % x.shape()[at]),))


@rule(
    "unbind",
    folds=lambda: [
        Case(Op(lambda m, x: torch.cat(x.unflatten(1, (2, 2)).unbind(2)[::-1], 1))),
        Case(Op(lambda m, x: torch.unbind(m.inner[0](x).unflatten(1, (2, 3)), dim=1)[0], nn.Conv2d(4, 6, 1))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.unbind(1)[0])), "drops the channels")],
)
def unbind(input: Value, dim: int = 0) -> tuple[Rearranged, ...]:
    """Every index of a dimension that channels were split into."""
    x = affine(input)
    at = dimension(dim, x)
    return tuple(Rearranged(x, (Select(at, entry),)) for entry in range(x.shape()[at]))


def _channel_list(index: Value, count: int) -> list[int]:
    """The channels in an index: a list, or a constant tensor of numbers or of a mask."""
    if isinstance(index, list) and not all(isinstance(channel, int) for channel in index):
        raise Refusal("its index is computed", "literal numbers, or a buffer, would fold")
    tensor = index.value() if isinstance(index, Constant) else torch.tensor(index)
    if tensor.dim() != 1:
        raise Refusal("its index is not a flat list of channels", "an index or mask of one dimension would fold")
    channels = tensor.nonzero().flatten() if tensor.dtype == torch.bool else tensor
    return [int(channel) % count for channel in channels.tolist()]


def _slice_dim(x: AffineConv, dim: int, part: Value) -> AffineConv:
    if dim == channel_dimension(x):
        return x.take(range(x.out_channels)[part] if isinstance(part, slice) else _channel_list(part, x.out_channels))
    return x.slice(dim - 2, part.start or 0, -(part.stop or 0), part.step or 1) if part != slice(None) else x


# --- channels reordered or repeated


@rule(
    "narrow",
    folds=lambda: [Case(Op(lambda m, x: m.inner[0](x).narrow(1, 2, 3), nn.Conv2d(4, 6, 3, padding=1)))],
    keeps=lambda: [(Case(Op(lambda m, x: x.narrow(2, 0, 1))), "not the channels")],
)
def narrow(input: Value, dim: int, start: int, length: int) -> AffineConv:
    """A range of channels."""
    x = _along_channels(affine(input), dim, "takes a range")
    if not isinstance(start, int):
        raise Refusal("it starts at a position that is computed from a tensor", "a constant position would fold")
    return x.take(range(x.out_channels)[start % x.out_channels :][:length])


@rule(
    "index_select",
    folds=lambda: [
        Case(Op(lambda m, x: torch.index_select(x, 1, m.index), index=torch.tensor([3, 0, 2, 0]))),
        Case(Op(lambda m, x: m.inner[0](x).index_select(-1, m.index), nn.Linear(4, 3), index=torch.tensor([2, 1])),
             spatial=2, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.index_select(2, m.index), index=torch.tensor([0]))), "not the channels"),
    ],
)  # fmt: skip
def index_select(input: Value, dim: int, index: Value) -> AffineConv:
    """Channels in the order of a constant index."""
    x = _along_channels(affine(input), dim, "selects entries")
    return x.take(_channel_list(constant(index, "index"), x.out_channels))


@rule(
    "flip",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x).flip(1), nn.Conv2d(4, 6, 3, padding=1, groups=2))),
        Case(Op(lambda m, x: torch.flip(m.inner[0](x), [-1]), nn.Linear(4, 3)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.flip(3))), "not the channels"),
        (Case(Op(lambda m, x: x.flip([1, 2]))), "not the channels"),
        (Case(Op(lambda m, x: x.flip((0,)))), "not the channels"),
    ],
)
def flip(input: Value, *dims: Value) -> AffineConv:
    """Channels in reverse order."""
    x = affine(input)
    for dim in dims if isinstance(dims[0], int) else dims[0]:
        x = _along_channels(x, dim, "reverses entries")
    return x.take(range(x.out_channels)[::-1])


@rule(
    "fliplr",
    folds=lambda: [Case(Op(lambda m, x: torch.fliplr(m.inner[0](x)), nn.Linear(4, 3)), spatial=0)],
    keeps=lambda: [
        (Case(Op(lambda m, x: torch.fliplr(m.inner[0](x)), nn.Linear(4, 3)), spatial=1, channels_last=True), "not the")
    ],
)
def fliplr(input: Value) -> AffineConv:
    """Dimension 1 in reverse order."""
    return flip(input, 1)


@rule(
    "roll",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x).roll(1, 1), nn.Conv2d(4, 6, 3, padding=1))),
        Case(Op(lambda m, x: torch.roll(x, shifts=(-2,), dims=(1,)))),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.roll(1, 2))), "not the channels"),
        (Case(Op(lambda m, x: x.roll((1, 1), (1, 3)))), "not the channels"),
        (Case(Op(lambda m, x: x.roll(1))), "whole tensor"),
    ],
)
def roll(input: Value, shifts: Value, dims: Value = ()) -> AffineConv:
    """Channels shifted, the last ones to the front."""
    x = affine(input)
    rolled = as_ints(dims, 1)
    if not rolled:
        raise Refusal("it rolls the whole tensor as one row of entries", "rolling channels (dims=1) would fold")
    for dim, shift in zip(rolled, as_ints(shifts, len(rolled)), strict=True):
        x = _along_channels(x, dim, "rolls entries")
        x = x.take([(row - shift) % x.out_channels for row in range(x.out_channels)])
    return x


@rule(
    "tensor_split",
    folds=lambda: [
        Case(Op(lambda m, x: torch.cat(m.inner[0](x).tensor_split(4, 1)[::-1], 1), nn.Conv2d(4, 6, 1))),
        Case(Op(lambda m, x: torch.cat(torch.tensor_split(x, (1, 3), dim=1)[1:], 1))),
    ],
    keeps=lambda: [(Case(Op(lambda m, x: x.tensor_split(2, 2)[0]), smallest=4), "not the channels")],
)
def tensor_split(
    input: Value, indices_or_sections: Value = None, dim: int = 0, *, indices: Value = None, sections: Value = None
) -> tuple[AffineConv, ...]:
    """Parts of almost equal length, or split at the given positions."""
    x = _along_channels(affine(input), dim, "splits")
    given = next((g for g in (indices_or_sections, indices, sections) if g is not None), None)
    if isinstance(given, int):
        longer, short = x.out_channels % given, x.out_channels // given
        given = [i * short + min(i, longer) for i in range(1, given)]
    if not isinstance(given, (tuple, list)):
        raise Refusal("it splits at positions that are computed from a tensor", "constant positions would fold")
    return tuple(x.take(range(x.out_channels)[a:b]) for a, b in zip([0, *given], [*given, None], strict=True))


def _repeated_channels(x: AffineConv, times: Value) -> AffineConv:
    """All channels several times, one copy after another; `times` holds a number for each dimension."""
    counts = list(times[0] if isinstance(times[0], (tuple, list)) else times)
    counts = [1] * (len(x.anchor.shape) - len(counts)) + counts
    channel = channel_dimension(x)
    if len(counts) > len(x.anchor.shape) or any(n != 1 for i, n in enumerate(counts) if i != channel):
        raise Refusal("it repeats along a dimension that is not the channels")
    return x.take([*range(x.out_channels)] * counts[channel])


@rule(
    "repeat",
    "tile",
    folds=lambda: [
        Case(Op(lambda m, x: m.inner[0](x).repeat(1, 3, 1, 1), nn.Conv2d(4, 2, 3, padding=1))),
        Case(Op(lambda m, x: m.inner[0](x.tile((2, 1, 1))), nn.Conv2d(8, 3, 1))),
        Case(Op(lambda m, x: m.inner[0](x).tile(2), nn.Linear(4, 3)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.repeat(1, 1, 2, 1))), "not the channels"),
        (Case(Op(lambda m, x: x.repeat(2, 1, 1, 1, 1))), "not the channels"),
    ],
)
def repeat(input: Value, *repeats: Value) -> AffineConv:
    """All channels several times, one copy after another."""
    return _repeated_channels(affine(input), repeats)


@rule(
    "repeat_interleave",
    folds=lambda: [Case(Op(lambda m, x: m.inner[0](x).repeat_interleave(3, 1), nn.Conv2d(4, 2, 3, padding=1)))],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.repeat_interleave(2, dim=3))), "not the channels"),
        (Case(Op(lambda m, x: x.repeat_interleave(2))), "whole tensor"),
        (Case(Op(lambda m, x: x.repeat_interleave(m.n, dim=1), n=torch.tensor([1, 2, 0, 1]))), "more often"),
    ],
)
def repeat_interleave(
    input: Value, repeats: Value, dim: int | None = None, *, output_size: int | None = None
) -> AffineConv:
    """Each channel several times, one after another."""
    if dim is None:
        raise Refusal("it repeats the whole tensor as one row of entries", "repeating channels (dim=1) would fold")
    x = _along_channels(affine(input), dim, "repeats")
    if not isinstance(repeats, int):
        raise Refusal("it may repeat some channels more often than others", "one number of repeats would fold")
    return x.take([row for row in range(x.out_channels) for _ in range(repeats)])


@rule(
    "expand",
    folds=lambda: [Case(Op(lambda m, x: m.inner[0](x).expand(-1, 3, -1, -1), nn.Conv2d(4, 1, 3, padding=1)))],
    keeps=lambda: [
        (Case(Op(lambda m, x: x.expand(len(x), 4, x.shape[2], x.shape[3])), channels=1), "literals"),
        (Case(Op(lambda m, x: x.expand(2, -1, -1, -1, -1))), "dimension"),
    ],
)
def expand(input: Value, *sizes: Value) -> AffineConv:
    """A single channel several times."""
    x = affine(input)
    wanted = list(sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes)
    channel = channel_dimension(x)
    if len(wanted) > len(x.anchor.shape):
        raise Refusal("it adds a dimension")
    if any(size != -1 for i, size in enumerate(wanted) if i != channel):
        raise Refusal(
            "its sizes are literals, so it is another function for other inputs",
            "-1 for every dimension but the channels would fold",
        )
    count = wanted[channel]
    return x if count in (-1, x.out_channels) else x.take([0] * count)


@rule(
    "channel_shuffle",
    "native_channel_shuffle",
    folds=lambda: [
        Case(nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(6, 4, 1, groups=2))),
        Case(Op(lambda m, x: torch.native_channel_shuffle(x, 2))),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Linear(4, 4), nn.ChannelShuffle(2)), smallest=4, fixed=True), "on the last"),
    ],
)  # fmt: skip
def channel_shuffle(input: Value, groups: int) -> AffineConv:
    """Channels as a matrix of `groups` rows, transposed."""
    x = affine(input)
    if not x.axes:
        raise Refusal("it shuffles dimension 1, but the channels are on the last")
    width = x.out_channels // groups
    return x.take([row for first in range(width) for row in range(first, x.out_channels, width)])
