"""What a plan is judged by: what runs (`work`), what that costs (`price`), and the costs there are to choose from.

    static    a roofline of the device: microseconds, from constants that `benchmarks.calibrate` can fit
    measured  microseconds that each candidate takes here
    params    how many numbers the model holds
    flops     multiply-adds

Whatever a cost judges by, what is equal by it is decided by the static one.
"""

from reparam.capture.ops import KERNELS
from reparam.plan.cost.choice import NAMES, chosen
from reparam.plan.cost.counted import FlopsCost, ParamsCost
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
    "KERNELS",
    "NAMES",
    "VIEW",
    "Cost",
    "FlopsCost",
    "MeasuredCost",
    "ParamsCost",
    "Price",
    "Setting",
    "StaticCost",
    "TimedCost",
    "Work",
    "chosen",
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
