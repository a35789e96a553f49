"""Maps of channels behind operations that treat all channels alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reparam.affine import AffineConv, Anchor
from reparam.errors import Refusal


@dataclass(frozen=True)
class Viewed:
    """A map of channels behind `steps` operations that treat all channels alike: steps(inside(anchor)).

    Reshapes and transposes that leave the channels whole, and means over pixels, commute with every map of channels
    (a mean keeps a bias because its weights sum to 1). So a map behind them can be moved in front of them and back.
    shape: of the tensor now; channel: which of its dimensions holds the channels.
    """

    inside: AffineConv
    shape: tuple[int, ...]
    channel: int
    steps: int = 1

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
            inside = self.inside.then(result.inside.with_axes(len(self.inside.axes)))
            return Viewed(inside, result.shape, result.channel, self.steps + result.steps)
        if isinstance(result, AffineConv) and result.mean:
            return replace(self, shape=result.shape(), steps=self.steps + 1)
        if isinstance(result, AffineConv) and result.pixelwise:
            inside = self.inside.then(result.with_axes(len(self.inside.axes)))
            return replace(self, inside=self.inside if result.identity else inside, shape=result.shape())
        raise Refusal(
            "it reads the neighbours of pixels that were rearranged before it",
            "a map of channels (a linear layer, a 1x1 convolution, a scale) would fold",
        )
