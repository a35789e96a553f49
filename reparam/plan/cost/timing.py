"""Samples timed in turns, so that whatever else the machine does meets all of them, within a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.plan.cost.sample import Sample, Shaped

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Setting:
    """Where and how a model runs."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @staticmethod
    def of(model: nn.Module, inputs: Inputs) -> Setting:
        """Those of a model, and of inputs where it has no parameters."""
        given = [tensor for _, tensor in inputs.tensors()]
        held = [each for each in (*model.parameters(), *given) if each.is_floating_point()] or given
        last = [each for each in held if each.dim() in _LAST and not each.is_contiguous()]
        order = any(each.is_contiguous(memory_format=_LAST[each.dim()]) for each in last)
        return Setting(held[0].device, held[0].dtype, order)

    def __str__(self) -> str:
        order = ", channels last" if self.channels_last else ""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}{order}{threads}"

    def tensor(self, shaped: Shaped) -> Tensor:
        """Ones: no calculation with them gets slow, as it may with numbers that are hardly any."""
        dtype = shaped.dtype or self.dtype
        made = torch.ones if dtype.is_floating_point else torch.zeros
        tensor = made(shaped.shape, dtype=dtype, device=self.device)
        last = self.channels_last and tensor.dim() in _LAST
        return tensor.contiguous(memory_format=_LAST[tensor.dim()]) if last else tensor

    def finish(self) -> None:
        """Wait for what has been launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Stopwatch:
    """How long a call takes, in seconds: `repeats` calls in a row, by `clock`."""

    clock: Callable[[], float] = time.perf_counter

    def __call__(self, call: Callable[[], Any], repeats: int, finish: Callable[[], None]) -> float:
        finish()
        start = self.clock()
        for _ in range(repeats):
            call()
        finish()
        return (self.clock() - start) / repeats


_SAMPLE = 1e-3  # seconds that a sample lasts at least: far above the resolution of clocks


def timed(
    samples: Mapping[str, Sample],
    setting: Setting,
    seconds: float,
    rounds: int,
    stopwatch: Stopwatch,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, float]:
    """The median microseconds of each sample, in turns over `rounds`; those that come first, where the time is short.

    Half of the time is for calling each of them first; what cannot be called, or is not reached, is left out.
    """
    began = stopwatch.clock()
    found: dict[str, list[float]] = {}
    calls: dict[str, tuple[Callable[[], Any], int]] = {}
    tensors = _Pool(setting)
    with torch.inference_mode():
        for key, sample in samples.items():
            if stopwatch.clock() - began > seconds / 2:
                break
            try:
                call = sample.call(tensors)
                first = min(stopwatch(call, 1, setting.finish) for _ in range(3))
            except Exception:  # noqa: BLE001 what cannot be called on ones alone is not timed
                continue
            calls[key] = call, max(1, math.ceil(_SAMPLE / max(first, 1e-7)))
            found[key] = [first] if calls[key][1] == 1 else []
        for turn in range(rounds):
            say(f"timing {len(calls)} of {len(samples)} candidates, round {turn + 1} of {rounds}")
            for key, (call, repeats) in calls.items():
                if found[key] and stopwatch.clock() - began > seconds:
                    break
                found[key].append(stopwatch(call, repeats, setting.finish))
    return {key: 1e6 * median(each) for key, each in found.items() if each}


class _Pool:
    """One tensor for each kind, as samples that run in turns may share them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.held: dict[Shaped, Tensor] = {}

    def __call__(self, shaped: Shaped) -> Tensor:
        if shaped not in self.held:
            self.held[shaped] = self.setting.tensor(shaped)
        return self.held[shaped]
