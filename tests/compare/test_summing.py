"""The price of adding up in another order is that of float32 itself, and right conversions may pay it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.compare.bounds import NOISE
from reparam.compare.summing import Summing
from reparam.compare.verify import verify
from tests.helpers import Block, image

EPS = torch.finfo(torch.float32).eps
OFFSETS = {"terms around zero": 0.0, "terms of one sign": 3.0, "a sum that cancels": "cancel"}


@pytest.mark.parametrize("terms", [1, 9, 300])
@pytest.mark.parametrize("offset", OFFSETS)
def test_it_is_the_rounding_of_sums_in_a_random_order(offset: str, terms: int) -> None:
    rows = 2000
    generator = torch.Generator().manual_seed(terms)
    w = torch.randn(1, terms, generator=generator)
    x = torch.randn(terms, 1, generator=generator)
    if offset == "terms of one sign":
        w, x = w.abs(), x.abs()
    if offset == "a sum that cancels" and terms > 1:
        x[-1] = -(w[:, :-1] @ x[:-1]) / w[0, -1]
    products = (w.T * x).flatten()
    shuffled = products[torch.rand(rows, terms, generator=generator).argsort(1)]
    total = torch.zeros(rows)
    for term in shuffled.T:  # one after another, in float32
        total = total + term
    rounded = (total.double() - products.double().sum()).square().mean().sqrt()
    with Summing(EPS, torch.Generator().manual_seed(0)):
        sums = w.double().expand(rows, -1) @ x.double()
    predicted = (sums - w.double() @ x.double()).square().mean().sqrt()
    assert rounded <= NOISE * predicted
    if terms > 9:
        assert predicted <= NOISE * rounded


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 31, padding=15),
        nn.Conv2d(8, 8, 31, padding=15, groups=8, bias=False),
        nn.ConvTranspose2d(8, 4, 13, stride=3),
        nn.Linear(64, 3),
        nn.Conv1d(8, 5, 30),
    ],
)
def test_every_sum_is_off_by_little_and_none_by_nothing(layer: nn.Module) -> None:
    layer = layer.double()
    shapes = {nn.Linear: (2, 64), nn.Conv1d: (2, 8, 41)}
    x = image(*shapes.get(type(layer), (2, 8, 33, 35)))
    with torch.no_grad():
        truth = layer(x)
        with Summing(EPS, torch.Generator().manual_seed(0)):
            noisy = layer(x)
    error = (noisy - truth).abs() / truth.abs().max()
    assert error.min() > 0
    assert EPS / 100 < error.max() < 100 * EPS


@pytest.mark.parametrize("right", [True, False])
def test_a_right_conversion_may_round_more_than_an_original_that_hardly_rounds(right: bool) -> None:
    """The original adds up in float64, so it shows no noise of its own."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 4, 13)
    layer.weight.data -= layer.weight.data.mean((1, 2, 3), keepdim=True)  # the terms of a bright image cancel

    def wide(m: nn.Module, x: Tensor) -> Tensor:
        y = F.conv2d(x.double(), m.layer.weight.double(), m.layer.bias.double())
        return y.to(x.dtype)

    original = Block(wide, layer=layer).eval()
    x = image(1, 32, 33, 35, dtype=torch.float32) + 30
    weight = {"layer.weight": layer.weight.detach().double(), "layer.bias": layer.bias.detach().double()}
    candidate = Block(lambda m, x: m.layer(x * (1 if right or x.dtype == torch.float64 else 1.001)), layer=layer).eval()
    found = verify(original, candidate, x, exact=weight, variants=False)
    assert found.ok == right, found
    assert not right or found.own_error > 16 * EPS
