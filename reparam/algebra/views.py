"""Maps of channels behind operations that treat all channels alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reparam.algebra.affine import AffineConv, Anchor, Constant
from reparam.algebra.index_map import IndexMap, Move, Permute, Rearranged, Reshape, Select
from reparam.algebra.kernels import repeated
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal


@dataclass(frozen=True)
class View:
    """A map of channels behind `steps` operations that treat all channels alike: steps(inside(anchor)).

    Reshapes and transposes that leave the channels whole, and means over pixels, commute with every map of channels
    (a mean keeps a bias because its weights sum to 1). So a map behind them can be moved in front of them and back.
    steps_before: so many of the steps come before `inside`, which reads neighbours of the pixels that they have rearranged;
    its anchor stands for what these steps make of the anchor proper.
    shape: of the tensor now; channel: which of its dimensions holds the channels (None: none does).
    places: which channel, as they are seen now, each of those of `inside` has become, or a part of; None where they are
    whole and in their order. A map in front of that maps every part by itself.
    moves: the reshapes and transposes, where they are all that the steps do.
    """

    inside: AffineConv
    shape: tuple[int, ...]
    channel: int | None
    steps: int = 1
    places: tuple[int, ...] | None = None
    steps_before: int = 0
    moves: tuple[Move, ...] | None = None

    @staticmethod
    def of(moved: Rearranged) -> View | AffineConv:
        """What a rule has moved; a convolution where all pixels are in their places again, or blocks of them."""
        x, moves = moved.input, moved.moves
        source = 1 if x.axes else len(x.anchor.shape) - 1
        shape, channel = track_channel(x.shape(), source, moves)
        if channel is not None:
            return View(x, shape, channel, moves=moves)
        if not x.axes:
            raise _apart()
        arrangement = IndexMap.of(x, moves)
        if not any(digit.source == source for digits in arrangement.dims for digit in digits):
            raise Refusal("it drops the channels") if arrangement.picked else _apart()
        convolved = arrangement.convolved(x)
        if convolved is not None:
            return convolved
        at = arrangement.channels(source)
        places = None if at is None else arrangement.places(at, x.out_channels)
        return View(x, shape, at, places=places, moves=moves)

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
        """The tensor as if it were an anchor: what the next rule reads."""
        rank = len(self.shape)
        first = self.readable and self.channel != rank - 1
        return AffineConv.of(Anchor(object(), self.shape), rank - 2 if first else 0)

    def require_readable(self) -> None:
        """Raises Refusal where no layer reads the channels."""
        if self.channel is None:
            raise Refusal("it reads what cuts channels apart, or joins them with pixels")
        if not self.readable:
            where = f"dimension {self.channel} of {len(self.shape)}"
            raise Refusal(f"its channels are on {where}, where no layer reads them")

    def then(self, result: object) -> View | AffineConv | tuple[object, ...]:
        """What a rule has made of `seen()`, put behind this."""
        if isinstance(result, tuple):
            return tuple(map(self.then, result))
        if isinstance(result, Rearranged):
            return self._again(result.moves)
        if isinstance(result, AffineConv) and result.identity:
            return self
        self.require_readable()
        made = result.inside if isinstance(result, View) else result
        if isinstance(made, AffineConv) and len(made.axes) != len(self.as_anchor().axes):
            raise Refusal("it reads other dimensions as channels than those that hold them")
        return self._read(result)

    def _read(self, result: object) -> View:
        if isinstance(result, View) and result.inside.pixelwise:
            result.require_readable()
            inside, steps = self._mapped(result.inside), self.steps + result.steps
            places = _one_by_one(self._still(inside), result.places)
            return View(inside, result.shape, result.channel, steps, places, self.steps_before)
        if isinstance(result, AffineConv) and result.mean:
            return replace(self, shape=result.shape(), steps=self.steps + 1, moves=None)
        if isinstance(result, AffineConv) and result.pixelwise:
            inside = self._mapped(result)
            moves = self.moves if inside.out_channels == self.inside.out_channels else None
            return replace(self, inside=inside, shape=result.shape(), places=self._still(inside), moves=moves)
        if isinstance(result, AffineConv) and not result.bias_per_pixel and self._behind:
            inside = result.applied_to(self._moved(len(result.axes)))
            return replace(self, inside=inside, shape=result.shape(), steps_before=self.steps, moves=None)
        raise Refusal(
            "it reads the neighbours of pixels that were rearranged before it",
            "a map of channels (a linear layer, a 1x1 convolution, a scale) would fold",
        )

    @property
    def _behind(self) -> bool:
        """Whether there is something inside that may stand behind all of the steps."""
        movable = self.inside.pixelwise and self.whole
        return not self.inside.identity and (movable or self.steps_before == self.steps)

    def _moved(self, spatial: int) -> AffineConv:
        """What stands inside, behind the steps."""
        if self.steps_before == self.steps:
            return self.inside
        shape = tuple(self.inside.in_channels if i == self.channel else size for i, size in enumerate(self.shape))
        moved = Anchor(object(), shape, self.inside.anchor.fixed and self._of_one_size)
        return replace(self.inside.with_axes(spatial), anchor=moved)

    @property
    def _of_one_size(self) -> bool:
        """Whether nothing that grows is among the pixels: at a fixed size, none of the images of a batch."""
        dims = () if self.moves is None else IndexMap.of(self.inside, self.moves).dims[2:]
        return bool(dims) and not any(digit.grows for dim in dims for digit in dim)

    def _again(self, moves: tuple[Move, ...]) -> View | AffineConv:
        """This with its entries in other places."""
        steps = self.steps + 1
        shape, channel = track_channel(self.shape, self.channel, moves)
        if channel is not None and (self.whole or self.moves is None):
            together = None if self.moves is None else (*self.moves, *moves)
            if together is not None and _in_place(self.inside, together):
                return self.inside
            return replace(self, shape=shape, channel=channel, steps=steps, moves=together)
        if self.moves is not None:
            found = View.of(Rearranged(self.inside, (*self.moves, *moves)))
            return replace(found, steps=steps) if isinstance(found, View) else found
        last = View.of(Rearranged(self.as_anchor(), moves)) if self.readable else None
        if not isinstance(last, View) or last.places is None:
            raise _apart()
        places = _one_by_one(self.places, last.places)
        return replace(self, shape=last.shape, channel=last.channel, steps=steps, places=places)

    def _mapped(self, outer: AffineConv) -> AffineConv:
        """What stands inside, with a map of the channels behind it."""
        if outer.identity:
            return self.inside
        places = self.places
        if places is None:
            return self.inside.then(outer.with_axes(len(self.inside.axes)))
        if outer.pointwise:
            scale = Lazy(lambda: outer.kernel().flatten()[list(places)])
            shift = Lazy(lambda: outer.bias_value()[list(places)])
            return self.inside.scale_shift(scale, None if outer.bias is None else shift)
        if outer.in_channels == 1:  # a dimension that the steps have made: they would make one of length 1 again
            raise Refusal("it makes channels where there was but one entry, and where none of the channels are")
        aside = sorted(range(len(places)), key=places.__getitem__)
        mapped = self.inside.take(aside).then(_repeated(outer.with_axes(len(self.inside.axes)), self._parts))
        if aside == list(range(len(places))):
            return mapped
        if outer.out_channels != outer.in_channels:
            raise Refusal(
                "it makes more or fewer channels of what was put in another order before",
                "a map of as many channels would fold",
            )
        return mapped.take(sorted(range(len(places)), key=aside.__getitem__))

    @property
    def _parts(self) -> int:
        """How many channels of `inside` each of them was."""
        return 1 if self.places is None else len(self.places) // (max(self.places) + 1)

    def _still(self, inside: AffineConv) -> tuple[int, ...] | None:
        """The places of the channels of another map inside."""
        same = self.places is None or len(self.places) == inside.out_channels
        return self.places if same else tuple(i // self._parts for i in range(inside.out_channels))


def _repeated(outer: AffineConv, times: int) -> AffineConv:
    """A map of channels each of which is there so many times, side by side: every copy by itself."""
    groups = outer.groups * times if outer.pointwise else outer.groups
    many = outer.out_channels * times
    shape = (many, outer.in_channels * times // groups, *[1] * len(outer.axes))
    bias = outer.bias
    shift = None if bias is None else Constant((many,), Lazy(lambda: bias().repeat_interleave(times)))
    kernel = Lazy(lambda: repeated(outer.kernel(), times, apart=outer.pointwise).view(shape))
    return AffineConv.conv(Constant(shape, kernel), shift, groups=groups)


def as_views(result: object) -> object:
    """What a rule has made: tensors that it has moved, each with its channels."""
    if isinstance(result, tuple):
        return tuple(map(as_views, result))
    return View.of(result) if isinstance(result, Rearranged) else result


def _one_by_one(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The places of channels that were put in other places twice."""
    return second if first is None else first if second is None else tuple(second[place] for place in first)


def _in_place(value: AffineConv, moves: Sequence[Move]) -> bool:
    """Whether all entries are where they were after some moves."""
    try:
        return IndexMap.of(value, moves) == IndexMap.of(value)
    except Refusal:
        return False


def _apart() -> Refusal:
    return Refusal("it cuts channels apart, or joins them with pixels")


def track_channel(
    shape: tuple[int, ...], channel: int | None, moves: Sequence[Move]
) -> tuple[tuple[int, ...], int | None]:
    """The shape and where the channels are (as long as they are whole) after some moves."""
    for move in moves:
        match move:
            case Reshape():
                shape, channel = move.shape(shape), _kept(shape, channel, move)
            case Permute(order):
                shape, channel = tuple(shape[dim] for dim in order), None if channel is None else order.index(channel)
            case Select(dim):
                shape = (*shape[:dim], *shape[dim + 1 :])
                channel = None if channel is None or channel == dim else channel - (dim < channel)
    return shape, channel


def _kept(before: Sequence[int], channel: int | None, move: Reshape) -> int | None:
    """Where the channels are after a reshape: they stay whole where equally many elements stand before them."""
    if channel is None or channel < move.start:
        return channel
    if channel >= move.stop:
        return channel - move.stop + move.start + len(move.lengths)
    ahead = math.prod(before[move.start : channel])
    kept = (i for i, size in enumerate(move.lengths) if size == before[channel])
    return next((move.start + i for i in kept if math.prod(move.lengths[:i]) == ahead), None)
