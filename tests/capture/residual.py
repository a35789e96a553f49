"""Residual blocks, and a conversion that is compared at every size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, conv, distance, image, norms_ran, trained

# The conversion sees the first.
SIZES = ((2, 4, 9, 7), (1, 4, 9, 7), (3, 4, 12, 5), (2, 4, 16, 17))


class Layer(nn.Sequential):
    """A convolution and its batch norm."""

    def __init__(self, before: int = 4, after: int = 4, taps: int = 3) -> None:
        super().__init__(conv(before, after, taps, padding=taps // 2), nn.BatchNorm2d(after))


class Residual(nn.Module):
    """Two branches and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()
        self.point = Layer(taps=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + self.point(x) + x).relu()


class PassesOn(nn.Module):
    """A container that passes all its arguments on."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for block in self.blocks:
            args = (block(*args, **kwargs), *args[1:])
        return args[0]


def fold_at(model: nn.Module, sizes: Any = SIZES, *, norms: int = 0, given: Any = lambda x: (x,)) -> nn.Module:
    """The model converted at the first size: it computes the same at every size, and `norms` batch norms are left.

    `given` makes the arguments of the model from an image.
    """
    inputs = given(image(*sizes[0]))
    model = trained(model, *inputs)
    folded = reparam.reparameterize(model, inputs)
    assert norms_ran(folded, *inputs) == norms
    for size in sizes:
        inputs = given(image(*size, seed=1))
        assert distance(model, folded, *inputs) < EXACT
    return folded
