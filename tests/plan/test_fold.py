"""The five kinds of folds: each computes what its operations compute, prices itself, and says what it has become."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan import cost
from reparam.plan.fold import Fold, HorizontalFold, JoinFold, SideFold, ViewedFold
from reparam.plan.horizontal import fused
from reparam.plan.plan import Plan, plan
from tests.helpers import EXACT, Block, bn, conv, image, trained


def _plain(m: Block, x: Tensor) -> Tensor:
    return m.norm(m.a(x))


def _behind_views(m: Block, x: Tensor) -> Tensor:
    return m.linear(m.norm(x).flatten(2).transpose(1, 2)).relu()


def _join(m: Block, x: Tensor) -> Tensor:
    return m.norm(m.a(x.relu()) + m.b(x.tanh()))


def _several(m: Block, x: Tensor) -> tuple[Tensor, ...]:
    return m.a(x).relu(), m.b(x).tanh(), m.c(x).sigmoid()


CASES: dict[type[Fold], Callable[[], nn.Module]] = {
    Fold: lambda: Block(_plain, a=conv(4, 4, 3), norm=bn(4)),
    ViewedFold: lambda: Block(_behind_views, norm=bn(4), linear=nn.Linear(4, 5)),
    SideFold: lambda: Block(_join, a=conv(4, 4, 3), b=conv(4, 4, 3), norm=bn(4)),
    JoinFold: lambda: Block(_join, a=conv(4, 4, 3), b=conv(4, 4, 3), norm=bn(4)),
    HorizontalFold: lambda: Block(_several, a=conv(4, 4, 1), b=conv(4, 3, 1), c=conv(4, 5, 1)),
}


def planned(kind: type[Fold]) -> Plan:
    recorded = record(trained(CASES[kind]()), Inputs.of(image(1, 4, 5, 7)))
    basis = plan(recorded)
    return fused(recorded, basis, cost.CPU, ()) or basis


def of_kind(kind: type[Fold]) -> list[Fold]:
    return [fold for fold in planned(kind).folds if type(fold) is kind]


def drawn(fold: Fold) -> dict:
    return {node: torch.randn(node.shape, dtype=torch.float64) for node in fold.inputs}


@pytest.mark.parametrize("kind", CASES)
def test_a_fold_computes_what_its_operations_compute(kind: type[Fold]) -> None:
    folds = of_kind(kind)
    assert folds
    for fold in folds:
        inputs = drawn(fold)
        truth, value = fold.original(inputs), fold.apply(inputs)
        assert value.shape == truth.shape
        assert (value - truth).abs().max() <= EXACT * truth.abs().max()
        other = {node: x + 1 for node, x in inputs.items()}
        assert not torch.allclose(fold.apply(other), truth)


@pytest.mark.parametrize("kind", CASES)
def test_the_search_that_made_it(kind: type[Fold]) -> None:
    searches = {SideFold: "distribute", JoinFold: "distribute", HorizontalFold: "horizontal"}
    assert {fold.made_by for fold in of_kind(kind)} == {searches.get(kind, "region")}


def test_nothing_is_left_of_what_stood_behind_a_join() -> None:
    (fold,) = of_kind(JoinFold)
    assert fold.price(cost.CPU) == cost.FREE
    assert (fold.macs, fold.describe()) == (0, "nothing")
    assert set(fold.shares) == {side.sink for side in of_kind(SideFold)} or len(fold.shares) == 2


def test_folds_of_one_convolution_share_its_price() -> None:
    folds = of_kind(HorizontalFold)
    (fusion,) = {fusion for fold in folds for fusion in fold.shared}
    assert len(folds) == 3
    assert all(fold.price(cost.CPU) == cost.of_view(cost.CPU) for fold in folds)
    assert fusion.price(cost.CPU) == cost.of_fold(cost.CPU, fusion.value) + cost.of_view(cost.CPU)
    assert [fold.describe().split(", ")[1] for fold in folds] == ["channels 0-3", "channels 4-6", "channels 7-11"]


def test_a_map_behind_views_is_priced_where_it_stands() -> None:
    (fold,) = of_kind(ViewedFold)
    assert fold.steps
    assert fold.place not in fold.steps
    assert fold.macs == 5 * 7 * 4 * 5
