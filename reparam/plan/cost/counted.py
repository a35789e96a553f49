"""Costs that are counts, the same on every device: stored numbers and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.plan.cost.price import Cost, Price
from reparam.plan.cost.static import CPU, StaticCost
from reparam.plan.cost.work import Work


@dataclass(frozen=True)
class ParamsCost:
    """The numbers that the deployed model holds. A tensor that several operations read is charged to none of them.

    tie_breaker: decides between plans that hold equally many.
    """

    tie_breaker: StaticCost = CPU
    name: str = "params"

    def price(self, work: Work) -> Price:
        return Price(work.stored, self.tie_breaker.time(work))


@dataclass(frozen=True)
class FlopsCost:
    """Multiply-adds of convolutions, linear layers and products with weights: those that reports count.

    tie_breaker: decides between plans that need equally many.
    """

    tie_breaker: StaticCost = CPU
    name: str = "flops"

    def price(self, work: Work) -> Price:
        return Price(work.macs if work.weights else 0, self.tie_breaker.time(work))


@dataclass(frozen=True)
class SizeCost:
    """The size of a plan: its multiply-adds (`value`) and the numbers that it stores (in the place of `time`)."""

    name: str = "size"

    def price(self, work: Work) -> Price:
        return Price(work.macs if work.weights else 0, work.stored)


def grows(cost_model: Cost, before: Price, after: Price) -> bool:
    """Whether a plan needs more multiply-adds and more stored numbers, and its saving is no more than a prediction.

    before, after: sizes by `SizeCost`. Times that were measured, and a cost of the user's own, may say that such a plan
    pays.
    """
    return isinstance(cost_model, StaticCost) and after.value > before.value and after.time > before.time
