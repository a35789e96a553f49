"""Code that does what neither a record nor a trace shows: what depends on it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import reparam
from helpers import EXACT, Block, distance, image, trained

Forward = Callable[[nn.Module, Tensor], Tensor]
SIZES = [(2, 4, 5, 6), (1, 4, 3, 3), (2, 4, 7, 9)]


def equal(model: nn.Module) -> int:
    """How many folds are made, all of them exact at every size."""
    folded = reparam.reparameterize(model, image(*SIZES[0]), verify=False)
    for size in SIZES:
        assert distance(model, folded, image(*size)) < EXACT, size
    return len(folded.reparam_report.folds)


# --- tensors in the place of a module's own, for one call


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class _Scaled(_Own):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _parametrized() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    parametrize.register_parametrization(conv, "weight", _Scaled())
    return conv


def _by_hand(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.conv.weight
    del m.conv.weight
    m.conv.weight = weight * 2
    y = m.conv(x)
    del m.conv.weight
    m.conv.weight = weight
    return m.bn(y)


LENT: dict[str, Forward] = {
    "to a layer": lambda m, x: m.bn(functional_call(m.conv, {"weight": m.conv.weight * 2}, (x,))),
    "to a norm": lambda m, x: m.conv(functional_call(m.bn, {"weight": m.bn.weight * 2}, (x,))),
    "to a layer inside": lambda m, x: functional_call(m.both, {"0.weight": m.conv.weight * 2}, (x,)),
    "to code": lambda m, x: m.bn(functional_call(m.own, {"weight": m.own.weight * 2}, (x,))),
    "to a parametrization": lambda m, x: m.bn(
        functional_call(m.made, {"parametrizations.weight.0.weight": m.own.weight * 3}, (x,))
    ),
    "before code that is rewritten": lambda m, x: m.bn(
        functional_call(m.conv, {"weight": m.conv.weight * 2}, (x,)) + m.other(x)
    ),
    "by hand": _by_hand,
}


@pytest.mark.parametrize("name", LENT)
def test_what_is_lent_to_a_module_for_a_call_is_no_weight_of_its_own(name: str) -> None:
    conv, bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    members = {"conv": conv, "bn": bn, "both": nn.Sequential(conv, bn), "other": nn.Conv2d(4, 4, 1)}
    assert equal(trained(Block(LENT[name], own=_Own(), made=_parametrized(), **members))) == 0


def test_a_module_that_is_lent_its_own_weights_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.bn(functional_call(m.conv, dict(m.conv.named_parameters()), (x,)))

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))) == 1
