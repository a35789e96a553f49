"""Code that does what neither a record nor a trace shows: what depends on it is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

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


# --- exceptions that are caught


def _another_way(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    try:
        m.large(y)
        y = m.bn(y)
    except RuntimeError:
        pass
    return y


def _in_a_helper(m: nn.Module, x: Tensor) -> Tensor:
    def normed(y: Tensor) -> Tensor:
        try:
            return m.bn(F.max_pool2d(y, 5))
        except (ValueError, RuntimeError):
            return y

    return normed(m.conv(x))


def _by_a_size(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    height = y.shape[2]
    try:
        y = y * (1 / (height - 3) / (1 / (height - 3)))
    except ZeroDivisionError:
        return y
    return m.bn(y)


def _suppressed(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    with suppress(RuntimeError):
        m.large(y)
        y = m.bn(y)
    return y


@pytest.mark.parametrize("forward", [_another_way, _in_a_helper, _by_a_size, _suppressed])
def test_code_that_goes_on_after_an_exception_goes_other_ways_at_other_sizes(forward: Forward) -> None:
    members = {"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4), "large": nn.Conv2d(4, 4, 4)}
    assert equal(trained(Block(forward, **members))) == 0


def test_what_does_not_depend_on_the_exception_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        try:
            return m.block(x)
        except RuntimeError:
            return x

    block = nn.Sequential(nn.Conv2d(4, 4, 4), nn.BatchNorm2d(4))
    assert equal(trained(Block(forward, block=block))) == 1


def test_exceptions_that_no_size_raises_are_none_of_its_ways() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        try:
            y = m.conv(x)
        except TypeError:
            y = m.conv(x, None)
        try:
            y = y * 1
        except (AttributeError, TypeError):
            y = y + 1
        try:
            with torch.no_grad():
                return m.bn(sum([each * 1 for each in (y,)]))
        finally:
            m.eval()

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))) == 1
