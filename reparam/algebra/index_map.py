"""Index maps: where each entry of a reshaped and transposed tensor comes from.

A reshape splits an index into digits, or joins several digits into one index; a transpose reorders them. So each
dimension of the result is a sequence of digits of the original dimensions. The length of a dimension depends on the
input, except that of the channels. Of the digits of a dimension, only the first one grows with it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce

import torch

from reparam.algebra.affine import AffineConv, Constant
from reparam.algebra.axis import Axis
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal


@dataclass(frozen=True)
class Length:
    """The number of entries of a dimension: `scale` times the product of the lengths `of`, which depend on the input.

    exact: whether it is that number; otherwise a division has rounded it down.
    """

    scale: Fraction
    of: tuple[Hashable, ...] = ()
    exact: bool = True

    def __mul__(self, other: Length) -> Length:
        return Length(
            self.scale * other.scale, tuple(sorted((*self.of, *other.of), key=repr)), self.exact and other.exact
        )

    def __floordiv__(self, other: Length) -> Length | None:
        """The result of an integer division; None where that is no such product."""
        rest = list(self.of)
        for length in other.of:
            if length not in rest:
                return None
            rest.remove(length)
        if not other.exact or other.scale <= 0:
            return None
        scale = self.scale / other.scale
        if not rest:
            return Length(Fraction(math.floor(scale)), (), self.exact)
        return Length(scale, tuple(rest), self.exact and scale.denominator == 1)

    @staticmethod
    def constant(count: int) -> Length:
        """A length that is the same for every input."""
        return Length(Fraction(count))

    def same(self, other: Length) -> bool:
        """Whether both are equal for every input, if neither was rounded."""
        return (self.scale, self.of) == (other.scale, other.of)


@dataclass(frozen=True)
class Digit:
    """`index // step % size` of an index of dimension `source`.

    grows: it is the first digit of a dimension whose length depends on the input; `size` is the recorded one.
    """

    source: int
    step: int
    size: int
    grows: bool = False


@dataclass(frozen=True)
class Reshape:
    """The same entries in the same order: dimensions `start` to `stop` - 1 replaced by dimensions of `lengths`."""

    lengths: tuple[int, ...]
    start: int
    stop: int

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The whole shape afterwards."""
        return (*before[: self.start], *self.lengths, *before[self.stop :])


@dataclass(frozen=True)
class Permute:
    """The dimensions in another order, as in torch.permute."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Select:
    """The entries at one index of a dimension, which is dropped, as in torch.select."""

    dim: int
    index: int


Move = Reshape | Permute | Select


@dataclass(frozen=True)
class Rearranged:
    """A tensor whose entries have been moved and not changed: what the rule of a reshape or transpose returns."""

    input: AffineConv
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class IndexMap:
    """Where the entries of a tensor come from: `dims[d]` are the digits of its index d, outermost first.

    selected: digits with a single value, because only the entries there were taken.
    """

    dims: tuple[tuple[Digit, ...], ...]
    selected: tuple[tuple[Digit, int], ...] = ()

    @staticmethod
    def of(value: AffineConv, moves: Sequence[Move] = ()) -> IndexMap:
        """The result of a convolution after `moves`. Raises Refusal if a move splits a dimension between two digits."""
        channel = 1 if value.axes else len(value.anchor.shape) - 1
        constant = range(1, len(value.axes) + 2) if value.anchor.fixed and value.axes else [channel]
        dims = ((Digit(i, 1, size, i not in constant),) for i, size in enumerate(value.shape()))
        return reduce(IndexMap.after, moves, IndexMap(tuple(map(_merged, dims))))

    def after(self, move: Move) -> IndexMap:
        """The map after one more move."""
        match move:
            case Reshape(lengths, start, stop):
                dims = _split_digits([digit for dim in self.dims[start:stop] for digit in dim], lengths)
                return replace(self, dims=(*self.dims[:start], *map(_merged, dims), *self.dims[stop:]))
            case Permute(order):
                return replace(self, dims=tuple(self.dims[dim] for dim in order))
            case Select(dim, index):
                return self._select(dim, index)

    def _select(self, dim: int, index: int) -> IndexMap:
        digits = self.dims[dim]
        if any(digit.grows for digit in digits):
            raise Refusal("it selects an entry of the batch or of the pixels after channels were split up")
        values = zip(digits, _values(digits, index), strict=True)
        return IndexMap((*self.dims[:dim], *self.dims[dim + 1 :]), (*self.selected, *values))

    def channel_dim(self, source: int) -> int | None:
        """The dimension 1 or -1, where layers read channels, if it holds digits of dimension `source` alone."""
        candidates = {dim for dim in (1, len(self.dims) - 1) if dim < len(self.dims)}
        pure = [dim for dim in sorted(candidates) if all(digit.source == source for digit in self.dims[dim])]
        return max(pure, key=lambda dim: bool(self.dims[dim]), default=None) if not self.selected else None

    def positions(self, dim: int, count: int) -> tuple[int, ...]:
        """For each of `count` channels, the entry of dimension `dim` that it has become, or is a part of."""
        digits = self.dims[dim]
        return tuple(
            reduce(lambda position, digit: position * digit.size + channel // digit.step % digit.size, digits, 0)
            for channel in range(count)
        )

    def lengths(self, sources: Sequence[Length]) -> tuple[Length, ...]:
        """The lengths of the dimensions, from those of the original ones."""
        return tuple(
            math.prod((_digit_length(digit, sources) for digit in dim), start=Length.constant(1)) for dim in self.dims
        )

    def as_convolution(self, value: AffineConv) -> AffineConv | None:
        """The moved result of `value` as a convolution; None where it is none.

        It is one if batch and pixels are where they were and all else is channels: these were reordered, or blocks of
        pixels were moved into them.
        """
        batch, *rest = self.dims
        first = [dim[0] for dim in rest[1:] if len(dim) == 1]
        wanted = [2 + i for i in range(len(value.axes))]
        if not wanted or len(rest) != len(wanted) + 1 or [digit.source for digit in first] != wanted:
            return None
        if [digit.source for digit in batch] != [0] or any(digit.source == 0 for digit in rest[0]):
            return None
        sizes = value.shape()
        if any(digit.step * digit.size != sizes[digit.source] for digit in first):
            return None
        blocks = [digit.step for digit in first]
        rows = list(self._rows(rest[0], blocks))
        return space_to_depth(value, blocks).take(rows)

    def _rows(self, digits: Sequence[Digit], blocks: Sequence[int]) -> Iterator[int]:
        """For each channel of the result, its channel in `space_to_depth`."""
        for index in range(math.prod(digit.size for digit in digits)):
            source = [0] * (2 + len(blocks))
            for digit, value in (*self.selected, *zip(digits, _values(digits, index), strict=True)):
                source[digit.source] += value * digit.step
            row = source[1]
            for block, pixel in zip(blocks, source[2:], strict=True):
                row = row * block + pixel
            yield row


def space_to_depth(value: AffineConv, blocks: Sequence[int]) -> AffineConv:
    """Every block of pixels moved into channels: those of one channel side by side, in the order of the pixels.

    Sizes that are not a multiple of the block have no result, so the padding may reach up to the next multiple.
    """
    count = math.prod(blocks)
    if count == 1:
        return value
    shape = (value.out_channels * count, 1, *blocks)
    kernel = Lazy(lambda: torch.eye(count, dtype=torch.float64).repeat(value.out_channels, 1).view(shape))
    strided = value.then(AffineConv.conv(Constant(shape, kernel), stride=blocks, groups=value.out_channels))
    return replace(strided, axes=tuple(map(_with_spare, strided.axes, value.axes, blocks)))


def _with_spare(axis: Axis, before: Axis, block: int) -> Axis:
    """The axis with spare padding for an incomplete block at the end."""
    more = 0 if axis.copies_pixels else before.stride * (block - 1)
    return replace(axis, hi=axis.hi + more, spare=axis.spare + more)


def lengths_of(value: AffineConv) -> tuple[Length, ...]:
    """The lengths of the dimensions of a convolution's result: two are equal only if they are at every anchor size."""
    rank = len(value.anchor.shape)
    if not value.axes:
        return (*(Length(Fraction(1), (dim,)) for dim in range(rank - 1)), Length.constant(value.out_channels))
    if value.anchor.fixed:
        return (Length(Fraction(1), (0,)), *map(Length.constant, value.shape()[1:]))
    own = Axis().size_key
    spatial = ((dim,) if axis.size_key == own else ((dim, axis.size_key),) for dim, axis in enumerate(value.axes, 2))
    return (
        Length(Fraction(1), (0,)),
        Length.constant(value.out_channels),
        *(Length(Fraction(1), of) for of in spatial),
    )


def _digit_length(digit: Digit, sources: Sequence[Length]) -> Length:
    if not digit.grows:
        return Length.constant(digit.size)
    whole = sources[digit.source]
    return replace(whole, scale=whole.scale / digit.step)


def _values(digits: Sequence[Digit], index: int) -> list[int]:
    """The values of the digits of an index."""
    values = []
    for digit in reversed(digits):
        values.append(index % digit.size)
        index //= digit.size
    return values[::-1]


def _merged(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """The same with neighbours that are one number merged, and without digits that are always 0."""
    result: list[Digit] = []
    for digit in digits:
        last = result[-1] if result else None
        if last is not None and last.source == digit.source and last.step == digit.step * digit.size:
            result[-1] = replace(last, step=digit.step, size=last.size * digit.size)
        elif digit.size > 1 or digit.grows:
            result.append(digit)
    return tuple(result)


def _split_digits(digits: list[Digit], shape: Sequence[int]) -> list[list[Digit]]:
    """The digits in their order, dealt out to the dimensions of a shape.

    A growing digit of recorded length 1 goes to the dimension that follows it.
    """
    if 0 in shape:
        raise Refusal("its result has no entries")
    dims: list[list[Digit]] = []
    for length in shape:
        dim = [digits.pop(0)] if digits and digits[0].size == length == 1 else []
        while length > 1:
            digit = digits.pop(0)
            if length % digit.size == 0:
                length //= digit.size
            elif digit.size % length == 0:
                digits.insert(0, Digit(digit.source, digit.step, digit.size // length))
                digit = replace(digit, step=digit.step * (digit.size // length), size=length)
                length = 1
            else:
                raise Refusal("it splits a dimension where neither channels nor pixels end")
            dim.append(digit)
        dims.append(dim)
    if digits and not dims:
        raise Refusal("it drops a dimension that may be longer than 1 for another input")
    dims[-1:] = [last + digits for last in dims[-1:]]
    return dims
