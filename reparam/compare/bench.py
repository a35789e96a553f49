"""Which of several equal models is fastest on this machine.

They are timed in turns in one process, so that whatever else the machine does slows all of them alike.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from reparam.capture.caches import cached_functions, emptied
from reparam.capture.float64 import Float64, double
from reparam.capture.inputs import Inputs
from reparam.capture.preconditions import require_eval
from reparam.capture.process import exclusive
from reparam.capture.tree import tensors
from reparam.compare.bounds import Bounds
from reparam.compare.error import compare, is_floating
from reparam.compare.weights import eps, rerounded, state
from reparam.errors import InputError, VerificationError

SAMPLE = 0.01
"""Seconds that one sample lasts at least: far above the resolution of the clocks, longer than a tick of the kernel."""

_DRAWS = 4  # on which outputs are compared: the noise of a single one may be small by luck


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The quartiles of at least one value."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))

    @property
    def iqr(self) -> float:
        """The distance between the quartiles."""
        return self.high - self.low

    def cells(self, unit: float = 1.0) -> tuple[str, str]:
        """Median and distance between the quartiles for a table, multiplied by `unit`."""
        return f"{self.median * unit:.3f}", f"{self.iqr * unit:.3f}"


@dataclass(frozen=True)
class Timing:
    """The seconds per call of one model: one value per round, the mean of `repeats` calls."""

    name: str
    repeats: int
    wall_samples: tuple[float, ...]
    cpu_samples: tuple[float, ...]

    @property
    def wall(self) -> Spread:
        """Seconds on the clock."""
        return Spread.of(self.wall_samples)

    @property
    def cpu(self) -> Spread:
        """Seconds of processor time, summed over all threads."""
        return Spread.of(self.cpu_samples)


@dataclass(frozen=True)
class Comparison:
    """The timings in the order of the models; the first is the baseline. Prints as a table."""

    timings: tuple[Timing, ...]
    inputs: str
    device: str
    threads: int
    checked: bool

    def ratio(self, name: str, to: str | None = None) -> Spread:
        """The wall time of a model divided by that of `to` (the baseline, if not given); below 1 is faster.

        It is formed round by round, so that what slows a whole round cancels. Raises KeyError for a name that was not
        timed.
        """
        return _ratio(self._timing(name).wall_samples, self._timing(to).wall_samples)

    def cpu_ratio(self, name: str, to: str | None = None) -> Spread:
        """The same for processor time, which other processes do not add to."""
        return _ratio(self._timing(name).cpu_samples, self._timing(to).cpu_samples)

    def _timing(self, name: str | None) -> Timing:
        return self.timings[0] if name is None else {timing.name: timing for timing in self.timings}[name]

    def __str__(self) -> str:
        headers = ("model", "wall ms", "IQR", "CPU ms", "IQR", "x baseline", "IQR", "repeats")
        rows = [
            (
                timing.name,
                *timing.wall.cells(1e3),
                *timing.cpu.cells(1e3),
                *self.ratio(timing.name).cells(),
                timing.repeats,
            )
            for timing in self.timings
        ]
        rounds = len(self.timings[0].wall_samples)
        outputs = "outputs checked equal" if self.checked else "outputs NOT checked"
        table = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left",) + ("right",) * 7)
        return (
            f"{table}\n\nper call, median of {rounds} interleaved rounds; inputs {self.inputs} on {self.device}, "
            f"{self.threads} thread{'s' if self.threads != 1 else ''}, torch {torch.__version__}; {outputs}"
        )


def _ratio(samples: Sequence[float], baseline: Sequence[float]) -> Spread:
    return Spread.of([sample / base for sample, base in zip(samples, baseline, strict=True)])


@exclusive
def benchmark(
    models: Mapping[str, Callable[..., Any]],
    example_inputs: Any,
    *,
    rounds: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    check: bool = True,
) -> Comparison:
    """Time all models in turns. A sample repeats the call for at least a hundredth of a second.

    Every round has an order of its own, and every sample begins with a call that is not timed: the model before leaves
    caches and the allocator in a state that can be worth a twentieth to the next.

    models: modules in eval mode or any other callables, by name; the first is the baseline.
    example_inputs: a tensor, a tuple or a dict, as for `verify`. They choose the device; on CUDA every sample is
        synchronised.
    rounds: samples of each model.
    warmup: calls of each model before the first sample.
    threads: of torch, for the time of the call; None leaves them as they are.
    check: refuse models whose outputs differ by more than the noise of their dtype, because a faster wrong answer is no
        result. One model has to be a module, for the float64 truth. Other runtimes (a compiled model, a function) may
        have 3 times the noise of a conversion.

    Raises VerificationError where outputs differ, TrainModeError, and InputError for arguments that cannot be used.
    """
    inputs = Inputs.of(example_inputs)
    if not models or rounds < 1 or warmup < 0 or (threads is not None and threads < 1):
        raise InputError(
            f"benchmark: {len(models)} models, rounds={rounds}, warmup={warmup}, threads={threads} cannot be timed; "
            "give at least 1, 1, 0 and 1"
        )
    for name, model in models.items():
        if isinstance(model, nn.Module):
            require_eval(model, name)
    if check:
        _require_equal(models, inputs)
    on_cuda = any(tensor.is_cuda for _, tensor in inputs.tensors())
    with _threads(threads), torch.inference_mode():
        timings = _timed(models, inputs, rounds, warmup, torch.cuda.synchronize if on_cuda else _no_wait)
        threads = torch.get_num_threads()
    return Comparison(timings, str(inputs), str(inputs.tensors()[0][1].device), threads, check)


def _timed(
    models: Mapping[str, Callable[..., Any]], inputs: Inputs, rounds: int, warmup: int, finish: Callable[[], None]
) -> tuple[Timing, ...]:
    repeats = {name: _repeats(model, inputs, warmup, finish) for name, model in models.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    orders = random.Random(0)
    for _ in range(rounds):
        for name in orders.sample(list(models), len(models)):
            _sample(models[name], inputs, 1, finish)
            samples[name].append(_sample(models[name], inputs, repeats[name], finish))
    return tuple(
        Timing(name, repeats[name], tuple(wall for wall, _ in taken), tuple(cpu for _, cpu in taken))
        for name, taken in samples.items()
    )


def _repeats(model: Callable[..., Any], inputs: Inputs, warmup: int, finish: Callable[[], None]) -> int:
    """The calls in one sample, from the shortest of a few single calls: the first ones may compile."""
    wall = min(_sample(model, inputs, 1, finish)[0] for _ in range(warmup + 1))
    return max(1, math.ceil(SAMPLE / max(wall, 1e-7)))


def _sample(model: Callable[..., Any], inputs: Inputs, repeats: int, finish: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds per call."""
    finish()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        model(*inputs.args, **inputs.kwargs)
    finish()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def _no_wait() -> None:
    """On the CPU a call is done when it returns."""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _require_equal(models: Mapping[str, Callable[..., Any]], inputs: Inputs) -> None:
    """Raises VerificationError for the first model that is further from the float64 truth than rounding explains."""
    reference = next((_uncompiled(model) for model in models.values() if isinstance(model, nn.Module)), None)
    if reference is None:
        raise InputError(
            "benchmark: none of the models is an nn.Module, so there is no float64 truth to check the outputs against; "
            "add the module that they were made from, or pass check=False"
        )
    generator = torch.Generator().manual_seed(0)
    draws = [inputs, *(inputs.drawn(generator) for _ in range(_DRAWS - 1))]
    truths = [_output(double(reference), draw.as_float64(), Float64()) for draw in draws]
    reweighted = [_output(rerounded(reference, generator), draw.as_float64(), Float64()) for draw in draws]
    plain = [_output(reference, draw) for draw in draws]
    noise = max(_worst(truths, plain)[0], _worst(truths, reweighted)[0])
    bounds = Bounds(max(eps(tensor) for _, tensor in (*state(reference), *inputs.tensors())))
    for name, model in models.items():
        other_runtime = not isinstance(model, nn.Module) or model is not _uncompiled(model)
        bound = bounds.timed(noise, other_runtime)
        error, form = _worst(truths, [_output(model, draw) for draw in draws])
        if not error <= bound < float("inf"):
            why = f"its error is {error:.2g} of the largest output in float64, and rounding explains {bound:.2g}"
            raise VerificationError(f"{name}: {form or why}; compare models that compute the same, or pass check=False")


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module behind torch.compile: compiled code is for one dtype."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _output(
    model: Callable[..., Any], inputs: Inputs, mode: AbstractContextManager[Any] | None = None
) -> dict[str, Tensor]:
    """The tensors that a model returns, called on clones of the inputs."""
    clones = inputs.map(Tensor.clone)
    with emptied(cached_functions(model) if mode else ()), mode or nullcontext():
        return dict(tensors(clones.call(model)))


def _worst(truths: Sequence[dict[str, Tensor]], outputs: Sequence[dict[str, Tensor]]) -> tuple[float, str]:
    """The largest error of a floating tensor, or inf and the difference where the outputs have another form."""
    worst = 0.0
    for truth, output in zip(truths, outputs, strict=True):
        difference = compare(truth, output, dtypes=False)
        if difference.form:
            return float("inf"), difference.form
        worst = max(worst, *(difference.errors[path] for path, tensor in truth.items() if is_floating(tensor)), 0.0)
    return worst, ""
