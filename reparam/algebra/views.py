"""Maps of channels behind operations that do the same to every channel: reshapes, transposes, means over pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reparam.algebra.affine import AffineConv, Anchor, Constant
from reparam.algebra.index_map import IndexMap, Move, Permute, Rearranged, Reshape, Select
from reparam.algebra.kernels import repeat_channels
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal


@dataclass(frozen=True)
class View:
    """`inside(anchor)`, seen through `steps` operations that do the same to every channel.

    Reshapes and transposes that keep channels whole, and means over pixels, commute with every map of channels (a mean
    keeps a bias, because its weights sum to 1). So a map behind the steps can be moved in front of them, and back.

    inside: a map of channels before the steps. It may also read neighbouring pixels: then it stands behind the first
        `steps_before` steps, and its anchor is the tensor that they give.
    shape: of the tensor now, at the recorded size.
    channel: its dimension that holds the channels; None if no dimension does.
    places: for each channel of `inside`, the channel that it has become, or is a part of; None if the channels are
        whole and in their order. A map in front of the steps maps each part by itself.
    moves: the reshapes and transposes, if the steps are nothing else.
    """

    inside: AffineConv
    shape: tuple[int, ...]
    channel: int | None
    steps: int = 1
    places: tuple[int, ...] | None = None
    steps_before: int = 0
    moves: tuple[Move, ...] | None = None

    @staticmethod
    def of(rearranged: Rearranged) -> View | AffineConv:
        """What a rule has rearranged; a convolution if all pixels, or blocks of them, are in their places again."""
        x, moves = rearranged.input, rearranged.moves
        source = 1 if x.axes else len(x.anchor.shape) - 1
        shape, channel = track_channel(x.shape(), source, moves)
        if channel is not None:
            return View(x, shape, channel, moves=moves)
        if not x.axes:
            raise _channels_split()
        index_map = IndexMap.of(x, moves)
        if not any(digit.source == source for digits in index_map.dims for digit in digits):
            raise Refusal("it drops the channels") if index_map.selected else _channels_split()
        convolution = index_map.as_convolution(x)
        if convolution is not None:
            return convolution
        dim = index_map.channel_dim(source)
        places = None if dim is None else index_map.positions(dim, x.out_channels)
        return View(x, shape, dim, places=places, moves=moves)

    @property
    def readable(self) -> bool:
        """Whether a layer may read the channels where they are."""
        rank = len(self.shape)
        return self.channel == rank - 1 or (self.channel == 1 and rank <= 5)

    @property
    def whole(self) -> bool:
        """Whether the channels are one dimension, in their order."""
        return self.channel is not None and self.places is None

    def as_anchor(self) -> AffineConv:
        """The tensor as an anchor of its own: what the next rule reads."""
        rank = len(self.shape)
        channels_first = self.readable and self.channel != rank - 1
        return AffineConv.of(Anchor(object(), self.shape), rank - 2 if channels_first else 0)

    def require_readable(self) -> None:
        """Raise Refusal if no layer can read the channels."""
        if self.channel is None:
            raise Refusal("it reads a tensor whose channels were split up, or merged with pixels")
        if not self.readable:
            where = f"dimension {self.channel} of {len(self.shape)}"
            raise Refusal(f"its channels are on {where}, where no layer reads them")

    def then(self, result: object) -> View | AffineConv | tuple[object, ...]:
        """What a rule has made of `as_anchor()`, as a value of the anchor of this."""
        if isinstance(result, tuple):
            return tuple(map(self.then, result))
        if isinstance(result, Rearranged):
            return self._rearranged(result.moves)
        if isinstance(result, AffineConv) and result.identity:
            return self
        self.require_readable()
        outer = result.inside if isinstance(result, View) else result
        if isinstance(outer, AffineConv) and len(outer.axes) != len(self.as_anchor().axes):
            raise Refusal("it reads another dimension as channels than the one that holds them")
        return self._followed_by(result)

    def _followed_by(self, result: object) -> View:
        if isinstance(result, View) and result.inside.pixelwise:
            result.require_readable()
            inside, steps = self._with_map(result.inside), self.steps + result.steps
            places = _composed(self._places_for(inside), result.places)
            return View(inside, result.shape, result.channel, steps, places, self.steps_before)
        if isinstance(result, AffineConv) and result.mean:
            return replace(self, shape=result.shape(), steps=self.steps + 1, moves=None)
        if isinstance(result, AffineConv) and result.pixelwise:
            inside = self._with_map(result)
            moves = self.moves if inside.out_channels == self.inside.out_channels else None
            return replace(self, inside=inside, shape=result.shape(), places=self._places_for(inside), moves=moves)
        if isinstance(result, AffineConv) and not result.bias_per_pixel and self._can_stand_behind:
            inside = result.applied_to(self._behind_steps(len(result.axes)))
            return replace(self, inside=inside, shape=result.shape(), steps_before=self.steps, moves=None)
        raise Refusal(
            "it reads neighbours of pixels that were rearranged before it",
            "a map of channels (a linear layer, a 1x1 convolution, a scale) would fold",
        )

    @property
    def _can_stand_behind(self) -> bool:
        """Whether `inside` is more than the anchor, and may be computed behind all of the steps."""
        movable = self.inside.pixelwise and self.whole
        return not self.inside.identity and (movable or self.steps_before == self.steps)

    def _behind_steps(self, spatial: int) -> AffineConv:
        """`inside`, computed behind all of the steps."""
        if self.steps_before == self.steps:
            return self.inside
        shape = tuple(self.inside.in_channels if i == self.channel else size for i, size in enumerate(self.shape))
        anchor = Anchor(object(), shape, self.inside.anchor.fixed and self._has_fixed_pixels)
        return replace(self.inside.with_axes(spatial), anchor=anchor)

    @property
    def _has_fixed_pixels(self) -> bool:
        """Whether no pixel dimension holds a part of the batch, which grows even at a fixed image size."""
        dims = () if self.moves is None else IndexMap.of(self.inside, self.moves).dims[2:]
        return bool(dims) and not any(digit.grows for dim in dims for digit in dim)

    def _rearranged(self, moves: tuple[Move, ...]) -> View | AffineConv:
        """This after some more moves."""
        steps = self.steps + 1
        shape, channel = track_channel(self.shape, self.channel, moves)
        if channel is not None and (self.whole or self.moves is None):
            all_moves = None if self.moves is None else (*self.moves, *moves)
            if all_moves is not None and _all_in_place(self.inside, all_moves):
                return self.inside
            return replace(self, shape=shape, channel=channel, steps=steps, moves=all_moves)
        if self.moves is not None:
            result = View.of(Rearranged(self.inside, (*self.moves, *moves)))
            return replace(result, steps=steps) if isinstance(result, View) else result
        last = View.of(Rearranged(self.as_anchor(), moves)) if self.readable else None
        if not isinstance(last, View) or last.places is None:
            raise _channels_split()
        places = _composed(self.places, last.places)
        return replace(self, shape=last.shape, channel=last.channel, steps=steps, places=places)

    def _with_map(self, outer: AffineConv) -> AffineConv:
        """`inside` with a map behind it that does to its channels what `outer` does to the channels as seen now."""
        if outer.identity:
            return self.inside
        places = self.places
        if places is None:
            return self.inside.then(outer.with_axes(len(self.inside.axes)))
        if outer.pointwise:
            scale = Lazy(lambda: outer.kernel().flatten()[list(places)])
            shift = Lazy(lambda: outer.bias_value()[list(places)])
            return self.inside.scale_shift(scale, None if outer.bias is None else shift)
        if outer.in_channels == 1:  # the steps made this dimension of length 1: behind them it would be 1 again
            raise Refusal("it reads as channels a dimension of length 1 that holds none of the channels")
        order = sorted(range(len(places)), key=places.__getitem__)
        mapped = self.inside.take(order).then(_repeat_each_channel(outer.with_axes(len(self.inside.axes)), self._parts))
        if order == list(range(len(places))):
            return mapped
        if outer.out_channels != outer.in_channels:
            raise Refusal(
                "it changes the number of channels after they were reordered",
                "a map that keeps their number would fold",
            )
        return mapped.take(sorted(range(len(places)), key=order.__getitem__))

    @property
    def _parts(self) -> int:
        """How many channels of `inside` make up one channel as seen now."""
        return 1 if self.places is None else len(self.places) // (max(self.places) + 1)

    def _places_for(self, inside: AffineConv) -> tuple[int, ...] | None:
        """The places of the channels of another map inside."""
        same = self.places is None or len(self.places) == inside.out_channels
        return self.places if same else tuple(i // self._parts for i in range(inside.out_channels))


def as_views(result: object) -> object:
    """What a rule has made, with `Rearranged` tensors as views."""
    if isinstance(result, tuple):
        return tuple(map(as_views, result))
    return View.of(result) if isinstance(result, Rearranged) else result


def track_channel(
    shape: tuple[int, ...], channel: int | None, moves: Sequence[Move]
) -> tuple[tuple[int, ...], int | None]:
    """The shape after some moves, and the dimension that then holds the channels; None if they do not stay whole."""
    for move in moves:
        match move:
            case Reshape():
                shape, channel = move.shape(shape), _channel_after_reshape(shape, channel, move)
            case Permute(order):
                shape, channel = tuple(shape[dim] for dim in order), None if channel is None else order.index(channel)
            case Select(dim):
                shape = (*shape[:dim], *shape[dim + 1 :])
                channel = None if channel is None or channel == dim else channel - (dim < channel)
    return shape, channel


def _channel_after_reshape(before: Sequence[int], channel: int | None, move: Reshape) -> int | None:
    """The dimension of the channels after a reshape: they stay whole if equally many entries stand before them."""
    if channel is None or channel < move.start:
        return channel
    if channel >= move.stop:
        return channel - move.stop + move.start + len(move.lengths)
    outer = math.prod(before[move.start : channel])
    candidates = (i for i, size in enumerate(move.lengths) if size == before[channel])
    return next((move.start + i for i in candidates if math.prod(move.lengths[:i]) == outer), None)


def _repeat_each_channel(outer: AffineConv, times: int) -> AffineConv:
    """A map of channels of which each comes `times` times, side by side: it maps every copy by itself."""
    groups = outer.groups * times if outer.pointwise else outer.groups
    channels = outer.out_channels * times
    shape = (channels, outer.in_channels * times // groups, *[1] * len(outer.axes))
    bias = outer.bias
    shift = None if bias is None else Constant((channels,), Lazy(lambda: bias().repeat_interleave(times)))
    kernel = Lazy(lambda: repeat_channels(outer.kernel(), times, grouped=outer.pointwise).view(shape))
    return AffineConv.conv(Constant(shape, kernel), shift, groups=groups)


def _composed(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The places of channels that were moved twice."""
    return second if first is None else first if second is None else tuple(second[place] for place in first)


def _all_in_place(value: AffineConv, moves: Sequence[Move]) -> bool:
    """Whether all entries are back in their places after some moves."""
    try:
        return IndexMap.of(value, moves) == IndexMap.of(value)
    except Refusal:
        return False


def _channels_split() -> Refusal:
    return Refusal("it splits channels up, or merges them with pixels")
