"""What can be counted, whatever the device: numbers that are stored, and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.plan.cost.price import Price
from reparam.plan.cost.static import CPU, StaticCost
from reparam.plan.cost.work import Work


@dataclass(frozen=True)
class ParamsCost:
    """How many numbers the deployed model holds. A tensor that several operations read is held whatever becomes of one.

    then: what decides between plans that hold equally many.
    """

    then: StaticCost = CPU
    name: str = "params"

    def price(self, work: Work) -> Price:
        return Price(work.stored, self.then.time(work))


@dataclass(frozen=True)
class FlopsCost:
    """Multiply-adds of convolutions, linear layers and products with weights: those that reports count.

    then: what decides between plans that need equally many.
    """

    then: StaticCost = CPU
    name: str = "flops"

    def price(self, work: Work) -> Price:
        return Price(work.macs if work.weights else 0, self.then.time(work))
