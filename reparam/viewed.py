"""Maps of channels behind operations that treat all channels alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reparam.affine import AffineConv, Anchor, Constant, Deferred
from reparam.errors import Refusal
from reparam.kernels import repeated


@dataclass(frozen=True)
class Viewed:
    """A map of channels behind `steps` operations that treat all channels alike: steps(inside(anchor)).

    Reshapes and transposes that leave the channels whole, and means over pixels, commute with every map of channels
    (a mean keeps a bias because its weights sum to 1). So a map behind them can be moved in front of them and back.
    ahead: so many of the steps come before `inside`, which reads neighbours of the pixels that they have rearranged;
    its anchor stands for what these steps make of the anchor proper.
    shape: of the tensor now; channel: which of its dimensions holds the channels.
    spread: how many channels of `inside` each of them was, side by side, before they were moved into pixels. A map in
    front of that maps every copy by itself.
    """

    inside: AffineConv
    shape: tuple[int, ...]
    channel: int
    steps: int = 1
    spread: int = 1
    ahead: int = 0

    def seen(self) -> AffineConv:
        """The tensor as if it were an anchor: what the next rule reads."""
        rank = len(self.shape)
        if self.channel == rank - 1:
            return AffineConv.of(Anchor(object(), self.shape), 0)
        if self.channel == 1 and rank <= 5:
            return AffineConv.of(Anchor(object(), self.shape), rank - 2)
        raise Refusal(f"its channels are on dimension {self.channel} of {rank}, where no layer reads them")

    def then(self, result: object) -> Viewed:
        """What a rule has made of `seen()`, put behind this."""
        made = result.inside if isinstance(result, Viewed) else result
        if isinstance(made, AffineConv) and len(made.axes) != len(self.seen().axes):
            raise Refusal("it reads other dimensions as channels than those that hold them")
        if isinstance(result, Viewed) and result.inside.pixelwise:
            steps, spread = self.steps + result.steps, self.spread * result.spread
            return Viewed(self._mapped(result.inside), result.shape, result.channel, steps, spread, self.ahead)
        if isinstance(result, AffineConv) and result.mean:
            return replace(self, shape=result.shape(), steps=self.steps + 1)
        if isinstance(result, AffineConv) and result.pixelwise:
            return replace(self, inside=self._mapped(result), shape=result.shape())
        if isinstance(result, AffineConv) and not result.mapped and self._behind:
            return replace(
                self, inside=result.fed(self._moved(len(result.axes))), shape=result.shape(), ahead=self.steps
            )
        raise Refusal(
            "it reads the neighbours of pixels that were rearranged before it",
            "a map of channels (a linear layer, a 1x1 convolution, a scale) would fold",
        )

    @property
    def _behind(self) -> bool:
        """Whether there is something inside that may stand behind all of the steps."""
        movable = self.inside.pixelwise and self.spread == 1
        return not self.inside.identity and (movable or self.ahead == self.steps)

    def _moved(self, spatial: int) -> AffineConv:
        """What stands inside, behind the steps."""
        if self.ahead == self.steps:
            return self.inside
        shape = (*self.shape[: self.channel], self.inside.in_channels, *self.shape[self.channel + 1 :])
        return replace(self.inside.with_axes(spatial), anchor=replace(self.inside.anchor, key=object(), shape=shape))

    def _mapped(self, outer: AffineConv) -> AffineConv:
        """What stands inside, with a map of the channels behind it."""
        if outer.identity:
            return self.inside
        return self.inside.then(_repeated(outer.with_axes(len(self.inside.axes)), self.spread))


def _repeated(outer: AffineConv, times: int) -> AffineConv:
    """A map of channels each of which is there so many times, side by side: every copy by itself."""
    groups = outer.groups * times if outer.pointwise else outer.groups
    many = outer.out_channels * times
    shape = (many, outer.in_channels * times // groups, *[1] * len(outer.axes))
    bias = outer.bias
    shift = None if bias is None else Constant((many,), Deferred(lambda: bias().repeat_interleave(times)))
    kernel = Deferred(lambda: repeated(outer.kernel(), times, apart=outer.pointwise).view(shape))
    return AffineConv.conv(Constant(shape, kernel), shift, groups=groups)
