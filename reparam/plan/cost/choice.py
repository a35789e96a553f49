"""The costs by name."""

from __future__ import annotations

from reparam.errors import InputError
from reparam.plan.cost.counted import FlopsCost, ParamsCost
from reparam.plan.cost.measured import MeasuredCost
from reparam.plan.cost.price import Cost
from reparam.plan.cost.static import CPU, DEVICES

NAMES = ("static", "measured", "params", "flops")


def chosen(cost: object, device: str) -> Cost | MeasuredCost:
    """The cost of that name for a kind of device ("cpu", "cuda"), or the one that was given.

    Raises InputError for a name that is not known, and for what is no cost.
    """
    then = DEVICES.get(device, CPU)
    named: dict[str, Cost | MeasuredCost] = {
        "static": then,
        "measured": MeasuredCost(),
        "params": ParamsCost(then),
        "flops": FlopsCost(then),
    }
    if isinstance(cost, str):
        if cost not in named:
            raise InputError(f"cost={cost!r} is not known; choose one of {', '.join(map(repr, NAMES))}")
        return named[cost]
    if not isinstance(cost, (Cost, MeasuredCost)):
        kind = type(cost).__name__
        raise InputError(f"cost: a {kind} has no name and price; give one of {', '.join(NAMES)}, or a cost")
    return cost
