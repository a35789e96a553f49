"""Timing: samples take turns within a time limit, so that other load on the machine meets all of them alike."""

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
    """The device, dtype and memory format that a model runs in."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @staticmethod
    def of(model: nn.Module, inputs: Inputs) -> Setting:
        """The setting of a model, or of its inputs where it has no parameters."""
        given = [tensor for _, tensor in inputs.tensors()]
        tensors = [tensor for tensor in (*model.parameters(), *given) if tensor.is_floating_point()] or given
        strided = [tensor for tensor in tensors if tensor.dim() in _LAST and not tensor.is_contiguous()]
        channels_last = any(tensor.is_contiguous(memory_format=_LAST[tensor.dim()]) for tensor in strided)
        return Setting(tensors[0].device, tensors[0].dtype, channels_last)

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}{layout}{threads}"

    def tensor(self, shaped: Shaped) -> Tensor:
        """A tensor for a placeholder: ones (denormal numbers would be slow), or zeros of an integer dtype."""
        dtype = shaped.dtype or self.dtype
        factory = torch.ones if dtype.is_floating_point else torch.zeros
        tensor = factory(shaped.shape, dtype=dtype, device=self.device)
        last = self.channels_last and tensor.dim() in _LAST
        return tensor.contiguous(memory_format=_LAST[tensor.dim()]) if last else tensor

    def finish(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Stopwatch:
    """Measures a call: seconds per call over `repeats` calls in a row, by `clock`."""

    clock: Callable[[], float] = time.perf_counter

    def __call__(self, call: Callable[[], Any], repeats: int, finish: Callable[[], None]) -> float:
        finish()
        start = self.clock()
        for _ in range(repeats):
            call()
        finish()
        return (self.clock() - start) / repeats


_SAMPLE = 1e-3  # the least seconds that a sample lasts, far above the resolution of clocks


def timed(
    samples: Mapping[str, Sample],
    setting: Setting,
    seconds: float,
    rounds: int,
    stopwatch: Stopwatch,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, float]:
    """The median microseconds of each sample over `rounds`, in the order of the samples, within about `seconds`.

    The first half of the time goes to a first call of each. Samples that cannot be called or are not reached are left
    out.
    """
    start = stopwatch.clock()
    times: dict[str, list[float]] = {}
    calls: dict[str, tuple[Callable[[], Any], int]] = {}
    tensors = _Pool(setting)
    with torch.inference_mode():
        for key, sample in samples.items():
            if stopwatch.clock() - start > seconds / 2:
                break
            try:
                call = sample.call(tensors)
                first = min(stopwatch(call, 1, setting.finish) for _ in range(3))
            except Exception:  # noqa: BLE001 a call that fails on ones is not timed
                continue
            calls[key] = call, max(1, math.ceil(_SAMPLE / max(first, 1e-7)))
            times[key] = [first] if calls[key][1] == 1 else []
        for turn in range(rounds):
            say(f"timing {len(calls)} of {len(samples)} candidates, round {turn + 1} of {rounds}")
            for key, (call, repeats) in calls.items():
                if times[key] and stopwatch.clock() - start > seconds:
                    break
                times[key].append(stopwatch(call, repeats, setting.finish))
    return {key: 1e6 * median(measured) for key, measured in times.items() if measured}


class _Pool:
    """One tensor for each placeholder: samples run one at a time, so they can share them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.made: dict[Shaped, Tensor] = {}

    def __call__(self, shaped: Shaped) -> Tensor:
        if shaped not in self.made:
            self.made[shaped] = self.setting.tensor(shaped)
        return self.made[shaped]
