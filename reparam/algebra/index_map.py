"""Where the entries of a tensor have come from, when it was reshaped and transposed.

A reshape cuts an index into digits, or makes one of several; a transpose puts them in another order. So each dimension
is a row of digits of the dimensions that there were before. How long a dimension is depends on the input, except that
of the channels; a digit is as long always, except the first of its dimension, which grows with it.
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
    """How many entries a dimension has: `scale` times the product of lengths that depend on the input.

    exact: whether it is that; code that divides may have rounded it down.
    """

    scale: Fraction
    of: tuple[Hashable, ...] = ()
    exact: bool = True

    def __mul__(self, other: Length) -> Length:
        return Length(
            self.scale * other.scale, tuple(sorted((*self.of, *other.of), key=repr)), self.exact and other.exact
        )

    def __floordiv__(self, other: Length) -> Length | None:
        """What code gets that divides by it; None where that is no such product."""
        left = list(self.of)
        for length in other.of:
            if length not in left:
                return None
            left.remove(length)
        if not other.exact or other.scale <= 0:
            return None
        scale = self.scale / other.scale
        if not left:
            return Length(Fraction(math.floor(scale)), (), self.exact)
        return Length(scale, tuple(left), self.exact and scale.denominator == 1)

    @staticmethod
    def constant(count: int) -> Length:
        """A length that is the same for every input."""
        return Length(Fraction(count))

    def same(self, other: Length) -> bool:
        """Whether both are equal for every input, where neither is rounded."""
        return (self.scale, self.of) == (other.scale, other.of)


@dataclass(frozen=True)
class Digit:
    """`index // step % size` of an index of dimension `source`.

    grows: it is the first digit of a dimension that is longer for another input; `size` is the recorded one.
    """

    source: int
    step: int
    size: int
    grows: bool = False


@dataclass(frozen=True)
class Reshape:
    """The same entries in the same order: the dimensions from `start` to `stop` made to others of these lengths."""

    lengths: tuple[int, ...]
    start: int
    stop: int

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The whole shape afterwards."""
        return (*before[: self.start], *self.lengths, *before[self.stop :])


@dataclass(frozen=True)
class Permute:
    """The dimensions in another order."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Select:
    """The entries at one place of a dimension, which is dropped."""

    dim: int
    index: int


Move = Reshape | Permute | Select


@dataclass(frozen=True)
class Rearranged:
    """What moves make of a tensor: how a rule says that entries have changed places, and nothing else."""

    input: AffineConv
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class IndexMap:
    """A tensor whose entries are those of another: `dims[d]` are the digits of its index d, the first one outermost.

    picked: digits that have one value, as only the entries there were taken.
    """

    dims: tuple[tuple[Digit, ...], ...]
    picked: tuple[tuple[Digit, int], ...] = ()

    @staticmethod
    def of(value: AffineConv, moves: Sequence[Move] = ()) -> IndexMap:
        """The result of a convolution, moved. Raises Refusal where a move is none of digits."""
        channel = 1 if value.axes else len(value.anchor.shape) - 1
        constant = range(1, len(value.axes) + 2) if value.anchor.fixed and value.axes else [channel]
        dims = ((Digit(i, 1, size, i not in constant),) for i, size in enumerate(value.shape()))
        return reduce(IndexMap.moved, moves, IndexMap(tuple(map(_joined, dims))))

    def moved(self, move: Move) -> IndexMap:
        match move:
            case Reshape(lengths, start, stop):
                cut = _cut([digit for dim in self.dims[start:stop] for digit in dim], lengths)
                return replace(self, dims=(*self.dims[:start], *map(_joined, cut), *self.dims[stop:]))
            case Permute(order):
                return replace(self, dims=tuple(self.dims[dim] for dim in order))
            case Select(dim, index):
                return self._picked(dim, index)

    def _picked(self, dim: int, index: int) -> IndexMap:
        digits = self.dims[dim]
        if any(digit.grows for digit in digits):
            raise Refusal("it picks an entry of the batch or of the pixels, whose channels were cut apart")
        values = zip(digits, _values(digits, index), strict=True)
        return IndexMap((*self.dims[:dim], *self.dims[dim + 1 :]), (*self.picked, *values))

    def channels(self, source: int) -> int | None:
        """The dimension, of those that layers read as channels, that holds nothing but digits of dimension `source`."""
        read = {dim for dim in (1, len(self.dims) - 1) if dim < len(self.dims)}
        places = [i for i in sorted(read) if all(digit.source == source for digit in self.dims[i])]
        return max(places, key=lambda i: bool(self.dims[i]), default=None) if not self.picked else None

    def places(self, dim: int, count: int) -> tuple[int, ...]:
        """Which entry of a dimension each of so many channels has become (or a part of)."""
        digits = self.dims[dim]
        return tuple(
            reduce(lambda place, digit: place * digit.size + channel // digit.step % digit.size, digits, 0)
            for channel in range(count)
        )

    def lengths(self, sources: Sequence[Length]) -> tuple[Length, ...]:
        """How long each dimension is, from how long those are that they were made of."""
        return tuple(
            math.prod((_length(digit, sources) for digit in dim), start=Length.constant(1)) for dim in self.dims
        )

    def convolved(self, value: AffineConv) -> AffineConv | None:
        """The result of the moves as a convolution again; None where it is none.

        Batch and pixels are where they were, and all else is channels: these have changed places, and every so many
        pixels side by side may have become one.
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
        """The channel of space to depth that each of the channels is."""
        for index in range(math.prod(digit.size for digit in digits)):
            found = [0] * (2 + len(blocks))
            for digit, value in (*self.picked, *zip(digits, _values(digits, index), strict=True)):
                found[digit.source] += value * digit.step
            yield reduce(lambda row, each: row * each[0] + each[1], zip(blocks, found[2:], strict=True), found[1])


def space_to_depth(value: AffineConv, blocks: Sequence[int]) -> AffineConv:
    """Every block of pixels as channels, those of one channel side by side, in the order of the pixels.

    Only whole blocks are taken, so it is as good as padded up to the next whole one.
    """
    count = math.prod(blocks)
    if count == 1:
        return value
    shape = (value.out_channels * count, 1, *blocks)
    kernel = Lazy(lambda: torch.eye(count, dtype=torch.float64).repeat(value.out_channels, 1).view(shape))
    cut = value.then(AffineConv.conv(Constant(shape, kernel), stride=blocks, groups=value.out_channels))
    return replace(cut, axes=tuple(map(_up_to_whole, cut.axes, value.axes, blocks)))


def _up_to_whole(axis: Axis, before: Axis, block: int) -> Axis:
    """The axis with as much more padding as a block may lack; where it lacks any, there is no output."""
    more = 0 if axis.copies_pixels else before.stride * (block - 1)
    return replace(axis, hi=axis.hi + more, spare=axis.spare + more)


def lengths_of(value: AffineConv) -> tuple[Length, ...]:
    """How long the dimensions of a convolution's result are; equal where they are so for every size of its anchor."""
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


def _length(digit: Digit, sources: Sequence[Length]) -> Length:
    if not digit.grows:
        return Length.constant(digit.size)
    whole = sources[digit.source]
    return replace(whole, scale=whole.scale / digit.step)


def _values(digits: Sequence[Digit], index: int) -> list[int]:
    """The values of the digits of an index."""
    found = []
    for digit in reversed(digits):
        found.append(index % digit.size)
        index //= digit.size
    return found[::-1]


def _joined(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """Neighbouring digits of one index as one; none for an index that is 0 always."""
    found: list[Digit] = []
    for digit in digits:
        last = found[-1] if found else None
        if last is not None and last.source == digit.source and last.step == digit.step * digit.size:
            found[-1] = replace(last, step=digit.step, size=last.size * digit.size)
        elif digit.size > 1 or digit.grows:
            found.append(digit)
    return tuple(found)


def _cut(left: list[Digit], shape: Sequence[int]) -> list[list[Digit]]:
    """The digits, in their order, under a shape. A digit of length 1 that grows is the next dimension's."""
    if 0 in shape:
        raise Refusal("it has no entries")
    made: list[list[Digit]] = []
    for length in shape:
        dim = [left.pop(0)] if left and left[0].size == length == 1 else []
        while length > 1:
            digit = left.pop(0)
            if length % digit.size == 0:
                length //= digit.size
            elif digit.size % length == 0:
                left.insert(0, Digit(digit.source, digit.step, digit.size // length))
                digit = replace(digit, step=digit.step * (digit.size // length), size=length)
                length = 1
            else:
                raise Refusal("it cuts rows of channels and pixels at places where none of them ends")
            dim.append(digit)
        made.append(dim)
    if left and not made:
        raise Refusal("it drops a dimension that may be longer for another input")
    made[-1:] = [last + left for last in made[-1:]]
    return made
