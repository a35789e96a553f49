"""Costs that are counts, the same on every device: stored numbers and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.plan.cost.price import Price
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
