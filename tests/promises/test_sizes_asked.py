"""Code that asks a tensor for its size gets the right answer, also where folding removes that tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, convs_ran, distance, image, norms_ran, trained, trained_and_converted


class _AsksInBetween(nn.Module):
    """Reads the size of a tensor that a fold removes, and that is as large as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) - self.second(x)
        height, width = y.shape[2:]
        return self.bn(y).relu().mean((2, 3)) * (height / width)


def test_the_size_of_a_folded_tensor_is_asked_of_one_that_is_as_large() -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _AsksInBetween()
    folded = trained_and_converted(model, x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)
    other = torch.randn(1, 4, 5, 7)
    torch.testing.assert_close(folded(other), model(other))


class _AsksInFront(nn.Module):
    """Reads the size of the tensor from which two folds start; one of them keeps nothing there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.narrow = nn.Conv1d(4, 2, 1), nn.Conv1d(2, 2, 1)
        self.wide = nn.Conv1d(2, 2, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        torch._assert(first.shape[1] == 2, "pytest rewrites a plain assertion")
        wide = self.wide(first)
        narrow = self.narrow(first)
        return torch.sigmoid(wide + first + narrow) - narrow * 0.7


def test_a_size_is_not_asked_of_a_tensor_that_comes_later() -> None:
    x = torch.randn(1, 4, 5)
    model = _AsksInFront()
    folded = trained_and_converted(model, x)
    assert convs_ran(folded, x) == 3
    torch.testing.assert_close(folded(x), model(x))


def test_the_size_of_an_output_between_two_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.second(m.first(x))
        return m.norm(y) * y.shape[1], y

    layers = {"first": nn.Conv1d(3, 3, 1), "second": nn.Conv1d(3, 8, 1), "norm": nn.BatchNorm1d(8)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 3, 11))
    for length in (11, 1, 4):
        assert distance(model, folded, image(2, 3, length)) < EXACT


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize(
    "hand_on",
    [
        nn.Identity(),
        nn.Sequential(nn.Dropout()),
        nn.Flatten(3),
        Block(lambda m, x: x.contiguous()),
        Block(lambda m, x: x),
    ],
)
def test_the_size_of_the_output_of_a_module_that_does_nothing(hand_on: nn.Module, kernel: int, late: bool) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = m.hand_on(y)
        return (y if late else z).split([2, 2], 1)[1].reshape(z.shape[0], z.shape[-1], -1)

    model = trained(Block(forward, conv=nn.Conv2d(4, 4, kernel), hand_on=hand_on))
    x = image(1, 4, 3, 5)
    folded = reparam.reparameterize(model, x)
    assert distance(model, folded, image(2, 4, 6, 4)) < EXACT
    assert convs_ran(folded, x) == 1
    assert sum(p.numel() for p in folded.parameters()) <= sum(p.numel() for p in model.parameters())


def size_of_what_is_gone(m: nn.Module, x: Tensor) -> Tensor:
    y = m.narrow(x)
    return m.wide(y).relu() * y.shape[1]


def strided_slice(m: nn.Module, x: Tensor) -> Tensor:
    y = m.narrow(x)
    return m.wide(y[:, :, ::2]).relu() * y.shape[2]


def channels_asserted(m: nn.Module, x: Tensor) -> Tensor:
    y = m.narrow(x)
    assert y.shape[1] == 3
    return m.wide(y).relu()


def rows_as_channels(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mix(x.mean(3).transpose(1, 2))  # as many rows as the next layer reads channels
    return m.rows(y).relu()


def split_beside(m: nn.Module, x: Tensor) -> Tensor:
    y = m.wide(m.narrow(x))
    a, b = y.split([4, 4], 1)
    return torch.cat([m.wide_norm(y).relu(), m.eight(torch.cat([b, a], 1)).relu()])


def scaled_twice(m: nn.Module, x: Tensor) -> Tensor:
    return ((m.norm(x / m.scale)) * 2).relu()


@pytest.mark.parametrize(
    "function", [size_of_what_is_gone, strided_slice, channels_asserted, scaled_twice, rows_as_channels, split_beside]
)
def test_sizes_are_those_of_the_original(function: Callable[[Any, Tensor], Any]) -> None:
    members = {"narrow": nn.Conv2d(4, 3, 1), "wide": nn.Conv2d(3, 8, 1), "norm": nn.BatchNorm2d(4)}
    more = {
        "mix": nn.Linear(4, 8),
        "rows": nn.Conv1d(8, 8, 1),
        "wide_norm": nn.BatchNorm2d(8),
        "eight": nn.Conv2d(8, 8, 1),
    }
    model = trained(Block(function, scale=torch.rand(4, 1, 1) + 0.5, **members, **more))
    assert distance(model, reparam.reparameterize(model, image(2, 4, 8, 9)), image(3, 4, 8, 5)) < EXACT
