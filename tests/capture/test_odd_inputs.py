"""Inputs and buffers of forms that few models have: sparse tensors, dataclasses with slots, no images at all."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, conv, distance, image, trained

X = image(2, 4, 5, 7)
FORMATS = [torch.sparse_coo, torch.sparse_csr]


@dataclass(slots=True)
class Features:
    x: Tensor
    flag: bool = True


@dataclass(slots=True, frozen=True)
class FrozenFeatures:
    x: Tensor
    flag: bool = True


@pytest.mark.parametrize("kind", [Features, FrozenFeatures])
def test_dataclasses_with_slots(kind: type) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, features: Features) -> object:
            return kind(self.norm(self.conv(features.x)) * 2, features.flag)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(kind(x)).x
            return result

    model = trained(Outer(), X)
    folded = reparam.reparameterize(model, X)
    assert len(folded.reparam_report.folds) == 1
    assert distance(model, folded, image(3, 4, 2, 9, seed=1)) < EXACT


class Graph(nn.Module):
    """A convolution over features, and a product with the sparse adjacency of a graph."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        dense = torch.eye(7, dtype=torch.float64).roll(1, 0)
        self.register_buffer("own", dense.to_sparse(layout=layout))

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        edges = self.own if given is None else given
        return torch.sparse.mm(edges, y.flatten(0, 2).t()).t().reshape(y.shape)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("is_given", [False, True])
def test_sparse_tensors(layout: torch.layout, is_given: bool) -> None:
    given = torch.rand(7, 7, dtype=torch.float64).to_sparse(layout=layout)
    inputs = (X, given) if is_given else (X,)
    model = trained(Graph(layout), *inputs)
    folded = reparam.reparameterize(model, inputs)
    assert len(folded.reparam_report.folds) == 1
    assert distance(model, folded, image(3, 4, 6, 7, seed=1), *inputs[1:]) < EXACT


@pytest.mark.parametrize("verify", [True, "folds", False])
def test_a_batch_without_images(verify: bool | str) -> None:
    model = trained(nn.Sequential(conv(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()), X)
    folded = reparam.reparameterize(model, torch.randn(0, 4, 5, 7, dtype=torch.float64), verify=verify)  # type: ignore[arg-type]
    assert len(folded.reparam_report.folds) == 1
    assert distance(model, folded, X) < EXACT


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((2, 3)), nn.AvgPool2d(2)])
def test_images_without_a_batch(pool: nn.Module) -> None:
    x = image(4, 5, 7)
    model = trained(nn.Sequential(conv(4, 4, 3, padding=1), nn.Conv2d(4, 6, 1), pool).double())
    folded = reparam.reparameterize(model, x)
    assert distance(model, folded, image(4, 6, 9, seed=1)) < EXACT
