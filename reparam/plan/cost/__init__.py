"""Cost models: what an operation or a fold costs.

Takes an operation of the record, or the value that a fold computes. Describes what runs (`work`) and gives it a
`Price`. Never runs the model, and never chooses: that is the plan's job.

    static    microseconds, predicted by a roofline of the device; `benchmarks.calibrate` fits its constants
    measured  microseconds, timed on this device
    params    the numbers that the model holds
    flops     multiply-adds

Ties are broken by the static cost.
"""

from reparam.plan.cost.choice import NAMES, chosen
from reparam.plan.cost.counted import FlopsCost, ParamsCost, SizeCost, grows
from reparam.plan.cost.measured import MeasuredCost, TimedCost
from reparam.plan.cost.price import FREE, Cost, Price, of_copy, of_fold, of_map, of_node, of_view, total
from reparam.plan.cost.static import CPU, CUDA, DEVICES, StaticCost
from reparam.plan.cost.timing import Setting
from reparam.plan.cost.work import VIEW, Work, macs_of, macs_of_fold, product_channels

__all__ = [
    "CPU",
    "CUDA",
    "DEVICES",
    "FREE",
    "NAMES",
    "VIEW",
    "Cost",
    "FlopsCost",
    "MeasuredCost",
    "ParamsCost",
    "Price",
    "Setting",
    "SizeCost",
    "StaticCost",
    "TimedCost",
    "Work",
    "chosen",
    "grows",
    "macs_of",
    "macs_of_fold",
    "of_copy",
    "of_fold",
    "of_map",
    "of_node",
    "of_view",
    "product_channels",
    "total",
]
