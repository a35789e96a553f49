"""Fits the constants of the static cost to this machine: how long convolutions and other operations take.

    python benchmarks/calibrate.py --quick
    python benchmarks/calibrate.py --save my_machine.json      # for cost=reparam.StaticCost.load("my_machine.json")
    python benchmarks/calibrate.py --device cuda --dtype float16 --save gpu.json

Operations of each class are timed in turns at several sizes, and the constants are those for which the logarithms of
the times are least wrong, in absolute value: a few times that a busy machine has spoilt do not move them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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

from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.plan.cost import DEVICES, StaticCost, Work
from reparam.plan.cost.timing import Setting, Stopwatch, timed
from reparam.plan.cost.work import of_node

SIZES = (
    (16, 14),
    (16, 112),
    (32, 56),
    (64, 112),
    (64, 56),
    (128, 28),
    (256, 14),
    (512, 7),
)  # channels, pixels of a side
QUICK = ((16, 28), (64, 14))
CONSTANTS = tuple(each.name for each in dataclasses.fields(StaticCost) if each.name not in ("device", "element"))


@dataclass(frozen=True)
class Case:
    """One operation that is timed."""

    name: str
    work: Work


def cases(sizes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """Every class of operation at every size, as the recorder sees it."""
    for channels, side in sizes:
        x = torch.empty(1, channels, side, side)
        for name, module in _modules(channels).items():
            recorded = record(module.eval(), Inputs.of(x))
            (work,) = of_node(recorded.nodes[-1])
            yield Case(f"{name}, {channels} channels, {side}x{side}", work)


def _modules(channels: int) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {
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
    return made


class _Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function(x)  # type: ignore[operator]
        return result


def fitted(start: StaticCost, measured: Mapping[Case, float]) -> StaticCost:
    """The constants nearest to the times (microseconds): one after the other is moved while that helps."""
    found, step = start, 2.0
    best = error(found, measured)
    while step > 1.01:
        moved = False
        for name in CONSTANTS:
            for factor in (step, 1 / step):
                changed: dict[str, Any] = {name: getattr(found, name) * factor}
                tried = dataclasses.replace(found, **changed)
                if (wrong := error(tried, measured)) < best - 1e-9:
                    found, best, moved = tried, wrong, True
        step = step if moved else math.sqrt(step)
    return found


def error(cost: StaticCost, measured: Mapping[Case, float]) -> float:
    """How far times are off: the mean of |log|, which few outliers do not decide."""
    return float(np.mean([abs(math.log(cost.time(case.work) / time)) for case, time in measured.items()]))


def typical_error(cost: StaticCost, measured: Mapping[Case, float]) -> float:
    """The factor by which half of the times are off at most."""
    return math.exp(float(np.median([abs(math.log(cost.time(case.work) / time)) for case, time in measured.items()])))


def measure(setting: Setting, sizes: Sequence[tuple[int, int]], seconds: float, rounds: int) -> dict[Case, float]:
    """Microseconds of every case that could be timed."""
    found = {case.name: case for case in cases(sizes)}
    samples = {name: case.work.sample() for name, case in found.items() if case.work.sample is not None}
    times = timed(samples, setting, seconds, rounds, Stopwatch())
    return {found[name]: time for name, time in times.items()}


def rounded(cost: StaticCost) -> StaticCost:
    """Constants of two digits, which is as much as they are good for."""
    digits: dict[str, Any] = {name: float(f"{getattr(cost, name):.2g}") for name in CONSTANTS}
    return dataclasses.replace(cost, **digits)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="few sizes and rounds, within a minute")
    options.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    options.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16", "float64"])
    options.add_argument("--channels-last", action="store_true")
    options.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--seconds", type=float, default=120.0, help="in all, about (default: %(default)s)")
    options.add_argument("--save", type=Path, metavar="FILE", help="write the constants there")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the times there, too")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(torch.device(given.device), getattr(torch, given.dtype), given.channels_last)
    sizes, seconds, rounds = (QUICK, 10.0, 3) if given.quick else (SIZES, given.seconds, given.rounds)
    measured = measure(setting, sizes, seconds, rounds)
    kind = DEVICES.get(setting.device.type, DEVICES["cpu"])
    start = dataclasses.replace(kind, device=str(setting), element=float(setting.dtype.itemsize))
    found = rounded(fitted(start, measured))
    rows = [[case.name, case.work.kind, time, found.time(case.work)] for case, time in measured.items()]
    print(tabulate(rows, headers=["operation", "class", "measured, us", "fitted, us"], floatfmt=".1f"))
    constants = [[name, getattr(start, name), getattr(found, name)] for name in CONSTANTS]
    print("\n" + tabulate(constants, headers=["constant", "default", "fitted"]))
    print(f"\n{setting}: half of the times are off by at most a factor of {typical_error(found, measured):.2f} "
          f"(by the default constants: {typical_error(start, measured):.2f})")  # fmt: skip
    if given.save:
        found.save(given.save)
    if given.json:
        times = {case.name: {"measured": time, "fitted": found.time(case.work)} for case, time in measured.items()}
        given.json.write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
