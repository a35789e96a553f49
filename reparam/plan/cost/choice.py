"""The cost models by name."""

from __future__ import annotations

from reparam.errors import InputError
from reparam.plan.cost.counted import FlopsCost, ParamsCost
from reparam.plan.cost.measured import MeasuredCost
from reparam.plan.cost.price import Cost
from reparam.plan.cost.static import CPU, DEVICES

NAMES = ("static", "measured", "params", "flops")


def chosen(cost: object, device: str) -> Cost | MeasuredCost:
    """The cost model of that name for a type of device ("cpu", "cuda"), or the one that was given.

    Raises InputError for an unknown name, and for an object that is not a cost model.
    """
    static = DEVICES.get(device, CPU)
    named: dict[str, Cost | MeasuredCost] = {
        "static": static,
        "measured": MeasuredCost(),
        "params": ParamsCost(static),
        "flops": FlopsCost(static),
    }
    if isinstance(cost, str):
        if cost not in named:
            raise InputError(f"cost={cost!r} is not known; choose one of {', '.join(map(repr, NAMES))}")
        return named[cost]
    if not isinstance(cost, (Cost, MeasuredCost)):
        kind = type(cost).__name__
        raise InputError(f"cost: a {kind} has no `name` and `price`; give one of {', '.join(NAMES)}, or a cost model")
    return cost
