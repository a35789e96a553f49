"""Which of several equal models is faster here: timed in turns in one process, so that all are disturbed alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from reparam.capture.float64 import Float64, double
from reparam.capture.inputs import Inputs
from reparam.capture.preconditions import require_eval
from reparam.capture.tree import tensors
from reparam.compare.error import relative_error
from reparam.compare.verification import EXACT
from reparam.compare.verify import FLOOR, NOISE, rerounded
from reparam.errors import InputError, VerificationError

SAMPLE = 0.01
"""Seconds that one sample lasts at least: far above the resolution of the clocks, and past a scheduler's tick."""

_RUNTIME = NOISE
"""How many times the noise of a model another runtime may have: convolutions by other algorithms, again by `NOISE`."""

_CHECKED_DRAWS = 4  # as in verify, the noise of a single draw may be small by luck


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

    def shown(self, unit: float = 1.0) -> tuple[str, str]:
        """Median and distance for a table, multiplied by `unit`."""
        return f"{self.median * unit:.3f}", f"{self.iqr * unit:.3f}"


@dataclass(frozen=True)
class Timing:
    """One model: seconds per call, one value a round, each the mean of `repeats` calls."""

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
        """Seconds of processor time, of all threads together."""
        return Spread.of(self.cpu_samples)


@dataclass(frozen=True)
class Comparison:
    """Timings in the order of the models, the first being the baseline; prints as a table."""

    timings: tuple[Timing, ...]
    inputs: str
    device: str
    threads: int
    checked: bool

    def ratio(self, name: str, to: str | None = None) -> Spread:
        """Wall time over that of `to` (the baseline's), formed round by round: what slows a whole round cancels.

        Below 1 is faster. Raises KeyError for a name that was not timed.
        """
        return _ratio(self._timing(name).wall_samples, self._timing(to).wall_samples)

    def cpu_ratio(self, name: str, to: str | None = None) -> Spread:
        """The same of processor time, which does not count the time that others take away."""
        return _ratio(self._timing(name).cpu_samples, self._timing(to).cpu_samples)

    def _timing(self, name: str | None) -> Timing:
        return self.timings[0] if name is None else {timing.name: timing for timing in self.timings}[name]

    def __str__(self) -> str:
        headers = ("model", "wall ms", "IQR", "CPU ms", "IQR", "x baseline", "IQR", "repeats")
        rows = [
            (
                timing.name,
                *timing.wall.shown(1e3),
                *timing.cpu.shown(1e3),
                *self.ratio(timing.name).shown(),
                timing.repeats,
            )
            for timing in self.timings
        ]
        rounds = len(self.timings[0].wall_samples)
        outputs = "outputs checked equal" if self.checked else "outputs NOT checked"
        table = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left",) + ("right",) * 7)
        return (
            f"{table}\n\nper call, median of {rounds} interleaved rounds; inputs {self.inputs} on {self.device}, "
            f"{self.threads} threads, torch {torch.__version__}; {outputs}"
        )


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of([one / other for one, other in zip(mine, theirs, strict=True)])


def benchmark(
    models: Mapping[str, Callable[..., Any]],
    example_inputs: Any,
    *,
    rounds: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    check: bool = True,
) -> Comparison:
    """Time all models in turns, `rounds` times, each sample repeating the call for at least `SAMPLE`.

    Every round has an order of its own, and a sample begins with a call that does not count: caches and the allocator
    are as the model before has left them, which can be worth a twentieth to the next.

    `models` maps names to modules in eval mode or to any other callables; the first is the baseline. `example_inputs`
    is a tensor, a tuple or a dict, as for `verify`, and decides the device: on CUDA every sample is synchronised.
    `threads` is set for the time of the call. With `check`, models whose outputs differ by more than the noise of their
    own dtype are not compared, for a faster wrong answer is no result; one has to be a module, for the float64 truth.
    What another runtime computes, a compiled model or a function, may be off by as many times more as a conversion may.

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
        timings = _timed(models, inputs, rounds, warmup, torch.cuda.synchronize if on_cuda else _nothing)
        used = torch.get_num_threads()
    return Comparison(timings, str(inputs), str(inputs.tensors()[0][1].device), used, check)


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
    """How often to call within one sample, by the shortest of a few single calls (the first of them compile)."""
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


def _nothing() -> None:
    """On the CPU a call that has returned is done."""


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
    draws = [inputs, *(inputs.drawn(generator) for _ in range(_CHECKED_DRAWS - 1))]
    eps = max(torch.finfo(t.dtype).eps for t in _floating(reference, inputs))
    truths = [_called(double(reference), draw.as_float64(), exactly=True) for draw in draws]
    shaken = [_called(rerounded(reference, generator), draw.as_float64(), exactly=True) for draw in draws]
    own = [_called(reference, draw) for draw in draws]
    noise = max(_worst(truths, own), _worst(truths, shaken))
    for name, model in models.items():
        elsewhere = not isinstance(model, nn.Module) or model is not _uncompiled(model)
        bound = max(EXACT, FLOOR * eps, (_RUNTIME if elsewhere else 1) * NOISE * noise)
        error = _worst(truths, [_called(model, draw) for draw in draws])
        if not error <= bound < float("inf"):
            raise VerificationError(
                f"{name}: its output is {error:.2g} of its largest value away from the float64 truth; the noise of its "
                f"dtype explains {bound:.2g} (inf: another structure or shape, or non-finite); compare models that "
                "compute the same, or pass check=False"
            )


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module behind torch.compile: compiled code is for one dtype."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _floating(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    every = [*model.parameters(), *model.buffers(), *(tensor for _, tensor in inputs.tensors())]
    return [tensor for tensor in every if tensor.is_floating_point() or tensor.is_complex()]


def _called(model: Callable[..., Any], inputs: Inputs, exactly: bool = False) -> list[tuple[str, Tensor]]:
    fresh = inputs.map(Tensor.clone)
    if not exactly:
        return tensors(fresh.call(model))
    with Float64():
        return tensors(fresh.call(model))


def _worst(truths: Sequence[list[tuple[str, Tensor]]], values: Sequence[list[tuple[str, Tensor]]]) -> float:
    return max(_distance(truth, value) for truth, value in zip(truths, values, strict=True))


def _distance(truth: list[tuple[str, Tensor]], value: list[tuple[str, Tensor]]) -> float:
    """The largest relative error over all floating tensors; inf where the outputs are not of the same form."""
    if [(path, tensor.shape) for path, tensor in truth] != [(path, tensor.shape) for path, tensor in value]:
        return float("inf")
    floating = [(t, v) for (_, t), (_, v) in zip(truth, value, strict=True) if t.is_floating_point() or t.is_complex()]
    return max((relative_error(t, v) for t, v in floating), default=0.0)
