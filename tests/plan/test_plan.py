"""The plan is the cheapest there is, by the price of single operations: held against every set of tensors."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.capture.graph import Node
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan import plan as plan_module
from reparam.plan.cost import Price, total
from reparam.plan.region import Region
from tests.helpers import image, trained

Step = tuple[str, int, int, int]
STEPS = st.tuples(
    st.sampled_from(["conv", "pointwise", "pointwise", "depthwise", "norm", "join", "join"]),
    st.integers(0, 11),
    st.integers(0, 11),
    st.sampled_from([2, 6, 24]),
)
CHANNELS = 6


class Network(nn.Module):
    """Linear steps between activations, each (kind, first operand, second operand, width) of what was there before.

    The last tensor and those in `sinks` go through an activation, so they have to exist.
    """

    def __init__(self, steps: list[Step], sinks: list[int]) -> None:
        super().__init__()
        self.layers, self.read, widths = nn.ModuleList(), list[list[int]](), [CHANNELS]
        for kind, first, second, width in steps:
            a, b = first % len(widths), second % len(widths)
            here = widths[a]
            layer: nn.Module = {
                "conv": nn.Conv2d(here, width, 3, padding=1, bias=False),
                "pointwise": nn.Conv2d(here, width, 1, bias=False),
                "depthwise": nn.Conv2d(here, here, 3, padding=1, groups=here, bias=False),
                "norm": nn.BatchNorm2d(here),
                "join": nn.Identity(),
            }[kind]
            self.layers.append(layer)
            self.read.append([a, b] if kind == "join" else [a])
            joined = here if here == widths[b] else here + widths[b]
            widths.append({"join": joined, "norm": here, "depthwise": here}.get(kind, width))
        self.sinks = sorted({1 + sink % len(steps) for sink in (*sinks, len(steps) - 1)})

    def forward(self, x: Tensor) -> list[Tensor]:
        there = [torch.relu(x)]
        for layer, read in zip(self.layers, self.read, strict=True):
            first, *others = (there[i] for i in read)
            for other in others:
                first = first + other if first.shape == other.shape else torch.cat([first, other], 1)
            there.append(layer(first))
        return [torch.relu(there[i]) for i in self.sinks]


def exhaustive(region: Region) -> Price:
    """The price of the cheapest set of tensors that exist, each computed in the cheapest way from others of the set."""
    free = [node for node in region.nodes if node not in region.sinks]
    sets = [(*region.sinks, *chosen) for count in range(len(free) + 1) for chosen in combinations(free, count)]
    return min(total(_cheapest(region, node, {region.anchor, *there}) for node in there) for there in sets)


def _cheapest(region: Region, node: Node, there: set[Node]) -> Price:
    ways = [region.prices[node]] if there.issuperset(node.operands) else []
    for base in there - {node}:
        if region.walk.dominates(base, node) and (value := region.value(base, node)) is not None:
            ways.append(region.price(base, node, value))
    return min(ways, default=Price(float("inf"), float("inf")))


def regions(model: nn.Module, x: Tensor) -> list[Region]:
    """Every region for which a plan is made."""
    met: list[Region] = []

    class Noted(Region):
        def best(self) -> Any:
            met.append(self)
            return super().best()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan_module, "Region", Noted)
        plan_module.plan(record(model, Inputs.of(x)))
    return list(met)


DEPTHWISE, NORM = ("depthwise", 0, 0, 2), ("norm", 1, 0, 2)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=9), st.lists(st.integers(0, 8), max_size=3), st.sampled_from([3, 17, 64]))
@example(
    [DEPTHWISE, NORM, ("pointwise", 2, 0, 6), ("pointwise", 1, 0, 6), NORM], [2, 3], 64
)  # a tensor for others' sake
def test_no_set_of_tensors_is_cheaper(steps: list[Step], sinks: list[int], size: int) -> None:
    model = trained(Network(steps, sinks))
    for region in regions(model, image(1, CHANNELS, size, size + 2)):
        after, chosen = region.cheapest()
        assert after.time <= min(region.before, exhaustive(region)).time * (1 + 1e-9)
        assert region.total(chosen).time == pytest.approx(after.time)


def test_in_a_large_region_no_plan_costs_more_than_what_came_in() -> None:
    steps = [
        step for i in range(16) for step in (("depthwise", i, 0, 2), ("pointwise", 3 * i, 0, 6), ("join", -1, -3, 6))
    ]
    (region,) = regions(trained(Network(steps, [3, 7, 20, 33])), image(1, CHANNELS, 17, 19))
    assert len(region.nodes) > 12
    plan = region.best()
    assert plan.folds()
    assert plan.price < region.before
