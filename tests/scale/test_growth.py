"""Ten times the blocks cost ten times the work: counted in calls of functions, which no other process can slow down."""

from __future__ import annotations

import cProfile
import gc
import pstats
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.nn import RepVGGBlock
from reparam.plan.cost.work import of_node
from reparam.plan.plan import plan
from tests.helpers import EXACT, Block, distance, image, trained

FEW, MANY = 16, 160
SLACK = 1.05
X = torch.randn(2, 4, 8, 9)


class Residual(nn.Module):
    """A block that adds to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(torch.relu(self.norm(x)))


class Wide(nn.Module):
    """Branches that all read one tensor, each with an output of its own."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(plain_block() for _ in range(branches))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


def plain_block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())


def chain_of(block: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    return lambda count: nn.Sequential(*(block() for _ in range(count)))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "plain": chain_of(plain_block),
    "branches": chain_of(lambda: RepVGGBlock(4, 4)),
    "residual": chain_of(Residual),
    "wide": Wide,
    "transformer": chain_of(lambda: nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 9), nn.GELU())),
}


def calls(model: nn.Module, verify: bool | str) -> int:
    profile = cProfile.Profile()
    gc.disable()
    try:
        profile.enable()
        reparam.reparameterize(model, X, verify=verify)  # type: ignore[arg-type]
    finally:
        profile.disable()
        gc.enable()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


class Inside(nn.Module):
    """A module around another, to which it hands on a flag."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        return self.inner(x, flag)


class Innermost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = plain_block()

    def forward(self, x: Tensor, flag: bool) -> Tensor:
        return self.block(x)


def nested(depth: int) -> nn.Module:
    model: nn.Module = Innermost()
    for _ in range(depth):
        model = Inside(model)
    return model.eval()


def test_work_grows_with_the_depth_of_the_modules() -> None:
    """Modules inside modules: an argument is looked up in every call around it."""
    calls(nested(2), False)  # what is done once per process
    assert calls(nested(40), False) < 4 * SLACK * calls(nested(10), False)


@pytest.mark.parametrize(("name", "verify"), [*((name, False) for name in NETWORKS), ("plain", "folds")])
def test_work_grows_with_the_number_of_blocks(name: str, verify: bool | str) -> None:
    make = NETWORKS[name]
    calls(make(2).eval(), verify)  # what is done once per process
    few, many = (calls(make(count).eval(), verify) for count in (FEW, MANY))
    assert many <= SLACK * MANY / FEW * few


class Sum(nn.Module):
    """The sum of branches that all read one tensor."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(1, 1, 1 + 2 * (i % 2), padding=i % 2) for i in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class PartialSums(Sum):
    """The same, and every partial sum is read as well."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        sums = [self.branches[0](x)]
        for branch in self.branches[1:]:
            sums.append(sums[-1] + branch(x))
        return sums


def _planning(branches: int) -> int:
    found = record(PartialSums(branches).double().eval(), Inputs((image(1, 1, 5, 7),)))
    profile = cProfile.Profile()
    profile.runcall(plan, found)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_planning_partial_sums_does_not_grow_with_the_square() -> None:
    few, many = _planning(40), _planning(160)
    assert many <= 10 * few  # it was sixteen times: that of the square


def test_a_thousand_branches_of_one_sum_fold() -> None:
    model = Sum(1000).double().eval()
    folded = reparam.reparameterize(model, image(1, 1, 5, 7), verify=False)
    assert len(list(folded.parameters())) == 2
    for size in ((1, 1), (6, 3)):
        x = image(2, 1, *size, seed=1)
        assert distance(model, folded, x) < EXACT


def _summed(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.conv.weight
    for _ in range(2000):
        weight = weight + m.other
    return m.norm(F.conv2d(x, weight))


def _shaped(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.other
    for _ in range(2000):
        weight = weight + m.other
    return F.conv2d(x, weight.view(weight.shape)) + m.conv(x)


def _halved(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.conv.weight
    for _ in range(200):
        weight = weight / 2 + weight / 2
    return m.norm(F.conv2d(x, weight))


@pytest.mark.parametrize("forward", [_summed, _shaped, _halved])
def test_a_weight_of_thousands_of_steps_folds(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    members = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "other": torch.randn(4, 4, 1, 1)}
    model = trained(Block(forward, **members))
    folded = reparam.reparameterize(model, image(2, 4, 5, 7), verify="folds")
    assert len(folded.reparam_report.folds) == 1
    assert distance(model, folded, image(1, 4, 3, 6)) < EXACT


def test_a_constant_is_priced_once_however_often_it_is_read() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        weight = m.weight * 2
        return F.conv2d(x, weight + weight)

    found = record(Block(forward, weight=nn.Parameter(torch.randn(4, 4, 1, 1))).double(), Inputs((image(1, 4, 3, 3),)))
    (conv,) = [node for node in found.nodes if node.name == "conv2d"]
    assert len(list(of_node(conv))) == 3
