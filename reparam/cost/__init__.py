"""What a plan is judged by: what runs (`work`), what that costs (`price`), and the costs there are to choose from.

    static    a roofline of the device: microseconds, from constants that `benchmarks/calibrate.py` can fit
    params    how many numbers the model holds
    flops     multiply-adds

Whatever a cost judges by, what is equal by it is decided by the static one.
"""

from reparam.cost.counted import FlopsCost, ParamsCost
from reparam.cost.price import FREE, Cost, Price, of_fold, of_map, of_node, of_view, total
from reparam.cost.static import CPU, CUDA, StaticCost
from reparam.cost.work import KERNELS, VIEW, Work, macs_of, macs_of_fold, product_channels

__all__ = [
    "CPU",
    "CUDA",
    "FREE",
    "KERNELS",
    "VIEW",
    "Cost",
    "FlopsCost",
    "ParamsCost",
    "Price",
    "StaticCost",
    "Work",
    "macs_of",
    "macs_of_fold",
    "of_fold",
    "of_map",
    "of_node",
    "of_view",
    "product_channels",
    "total",
]
