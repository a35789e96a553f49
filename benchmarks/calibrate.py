"""Fits the constants of the static cost to this machine.

    python -m benchmarks.calibrate --quick
    python -m benchmarks.calibrate --save my_machine.json      # for cost=reparam.StaticCost.load("my_machine.json")
    python -m benchmarks.calibrate --device cuda --dtype float16 --save gpu.json

Operations of each class are timed in turns at several sizes. The constants minimise the mean absolute error of the
logarithms of the times, so that a few times which other load on the machine has spoilt change little.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from benchmarks.common import timing_options, write_json
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan.cost import DEVICES, StaticCost, Work
from reparam.plan.cost.timing import Setting, Stopwatch, timed
from reparam.plan.cost.work import of_node

# Channels, and pixels along each side.
SIZES = ((16, 14), (16, 112), (32, 56), (64, 112), (64, 56), (128, 28), (256, 14), (512, 7))
QUICK = ((16, 28), (64, 14))
CONSTANTS = tuple(field.name for field in dataclasses.fields(StaticCost) if field.name not in ("device", "element"))


@dataclass(frozen=True)
class Case:
    """One operation that is timed."""

    name: str
    work: Work


def cases(sizes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """Every class of operation at every size, as it is recorded."""
    for channels, side in sizes:
        x = torch.empty(1, channels, side, side)
        for name, module in _modules(channels).items():
            recorded = record(module.eval(), Inputs.of(x))
            (work,) = of_node(recorded.nodes[-1])
            yield Case(f"{name}, {channels} channels, {side}x{side}", work)


def _modules(channels: int) -> dict[str, nn.Module]:
    return {
        **{f"convolution {k}x{k}": nn.Conv2d(channels, channels, k, padding=k // 2) for k in (1, 3, 5, 7)},
        **{
            f"depthwise {k}x{k}": nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels)
            for k in (3, 5, 7, 13)
        },
        **{
            f"{channels // inner} groups, 3x3": nn.Conv2d(channels, channels, 3, padding=1, groups=channels // inner)
            for inner in (4, 8, 16)
            if inner < channels
        },
        "convolution 1x1, half the channels": nn.Conv2d(channels, channels // 2, 1),
        "batch norm": nn.BatchNorm2d(channels),
        "sum": _Function(lambda x: x + x.relu()),
        "activation": _Function(F.relu),
        "concatenation": _Function(lambda x: torch.cat([x, x.relu()], 1)),
        "average of 3x3": nn.AvgPool2d(3, 1, 1),
        "view": _Function(lambda x: x.view(x.shape[0], -1)),
    }


class _Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function(x)  # type: ignore[operator]
        return result


def fitted(start: StaticCost, measured: Mapping[Case, float]) -> StaticCost:
    """The constants nearest to the times (microseconds): each constant in turn is changed while that helps."""
    best, step = start, 2.0
    best_error = error(best, measured)
    while step > 1.01:
        improved = False
        for name in CONSTANTS:
            for factor in (step, 1 / step):
                changed: dict[str, Any] = {name: getattr(best, name) * factor}
                candidate = dataclasses.replace(best, **changed)
                candidate_error = error(candidate, measured)
                if candidate_error < best_error - 1e-9:
                    best, best_error, improved = candidate, candidate_error, True
        step = step if improved else math.sqrt(step)
    return best


def _log_errors(cost: StaticCost, measured: Mapping[Case, float]) -> list[float]:
    return [abs(math.log(cost.time(case.work) / time)) for case, time in measured.items()]


def error(cost: StaticCost, measured: Mapping[Case, float]) -> float:
    """The mean of |log(predicted / measured)|, which outliers hardly change."""
    return float(np.mean(_log_errors(cost, measured)))


def typical_error(cost: StaticCost, measured: Mapping[Case, float]) -> float:
    """The factor by which half of the predicted times are off at most."""
    return math.exp(float(np.median(_log_errors(cost, measured))))


def measure(setting: Setting, sizes: Sequence[tuple[int, int]], seconds: float, rounds: int) -> dict[Case, float]:
    """Microseconds of every case that can be timed."""
    by_name = {case.name: case for case in cases(sizes)}
    samples = {name: case.work.sample() for name, case in by_name.items() if case.work.sample is not None}
    times = timed(samples, setting, seconds, rounds, Stopwatch())
    return {by_name[name]: time for name, time in times.items()}


def rounded(cost: StaticCost) -> StaticCost:
    """The constants, rounded to two digits: they are not more precise than that."""
    digits: dict[str, Any] = {name: float(f"{getattr(cost, name):.2g}") for name in CONSTANTS}
    return dataclasses.replace(cost, **digits)


def main() -> None:
    parser = timing_options(__doc__ or "", quick="few sizes and rounds")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16", "float64"])
    parser.add_argument("--channels-last", action="store_true", help="the memory format (default: contiguous)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each operation (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="in all, about (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the constants there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(torch.device(given.device), getattr(torch, given.dtype), given.channels_last)
    sizes, seconds, rounds = (QUICK, 10.0, 3) if given.quick else (SIZES, given.seconds, given.rounds)
    measured = measure(setting, sizes, seconds, rounds)
    default = DEVICES.get(setting.device.type, DEVICES["cpu"])
    start = dataclasses.replace(default, device=str(setting), element=float(setting.dtype.itemsize))
    cost = rounded(fitted(start, measured))
    times = [[case.name, case.work.kind, time, cost.time(case.work)] for case, time in measured.items()]
    print(tabulate(times, headers=["operation", "class", "measured, us", "fitted, us"], floatfmt=".1f"))
    constants = [[name, getattr(start, name), getattr(cost, name)] for name in CONSTANTS]
    print("\n" + tabulate(constants, headers=["constant", "default", "fitted"]))
    print(
        f"\n{setting}: half of the times are off by at most a factor of {typical_error(cost, measured):.2f} "
        f"(with the default constants: {typical_error(start, measured):.2f})"
    )
    if given.save:
        cost.save(given.save)
    if given.json:
        keys = ("operation", "class", "measured", "fitted")
        write_json(given.json, given, [dict(zip(keys, row, strict=True)) for row in times])


if __name__ == "__main__":
    main()
