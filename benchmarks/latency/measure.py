"""Times all forms of one network in turns."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

import reparam
from benchmarks.latency.forms import FORMS, ORIGINAL, Run, unequal
from benchmarks.latency.models import build
from benchmarks.latency.rounding import rounding_errors
from reparam.compare.bench import Comparison, Spread

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FEWEST_ROUNDS = 7  # quartiles of fewer say nothing
_DRAWS = 5  # networks whose rounding errors are averaged: those of a single one depend on luck


@dataclass(frozen=True)
class Case:
    """What one process measures; `seconds` is about how long it times."""

    model: str
    batch: int
    memory_format: str
    forms: tuple[str, ...]
    threads: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        """Its name in a file of results, unique for network, batch and memory format."""
        return f"{self.model}, batch {self.batch}, {self.memory_format}"


@dataclass(frozen=True)
class Measured:
    """One form of a case: its time over that of the original, round by round, and its time in seconds.

    Each on the clock ("wall") and in processor time ("cpu").
    """

    form: str
    ratio: Spread
    cpu_ratio: Spread
    wall: Spread
    cpu: Spread


@dataclass(frozen=True)
class Share:
    """The time of reparam over that of another form in the same runtime, on the clock and in processor time."""

    wall: Spread
    cpu: Spread


@dataclass(frozen=True)
class Result:
    """One case: its forms, reparam against each alternative, the forms that are missing and why, rounding errors."""

    case: Case
    rounds: int
    forms: list[Measured]
    against: dict[str, Share]
    missing: dict[str, str]
    rounding: dict[str, dict[str, float]]


def measure(case: Case) -> Result:
    """Builds, converts, checks and times; runs in a process of its own."""
    torch.set_num_threads(case.threads)
    torch.backends.mkldnn.set_flags(True)
    model, x = build(case.model, case.batch)
    layout = FORMATS[case.memory_format]
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)  # type: ignore[call-overload]
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    with torch.inference_mode():
        for form in FORMS:
            if form.name in case.forms:
                run = form.make(model, x)
                if isinstance(run, str):
                    missing[form.name] = run
                else:
                    runs[form.name] = run
    missing |= unequal(runs, x)
    runs = {name: run for name, run in runs.items() if name not in missing}
    start = time.perf_counter()
    reparam.benchmark(runs, x, rounds=1, warmup=0, check=False)
    seconds = time.perf_counter() - start
    rounds = max(FEWEST_ROUNDS, min(case.rounds, math.ceil(case.seconds / seconds)))
    comparison = reparam.benchmark(runs, x, rounds=rounds, warmup=1, threads=case.threads, check=False)
    forms = [
        Measured(t.name, comparison.ratio(t.name), comparison.cpu_ratio(t.name), t.wall, t.cpu)
        for t in comparison.timings
    ]
    is_first = (case.batch, case.memory_format) == (1, "contiguous")
    rounding = rounding_errors(build(case.model, 1, seed) for seed in range(_DRAWS)) if is_first else {}
    return Result(case, rounds, forms, _against(comparison), missing, rounding)


def _against(comparison: Comparison) -> dict[str, Share]:
    """The time of reparam over that of each alternative, in the same runtime."""
    names = {timing.name for timing in comparison.timings}
    pairs = {"own conversion": "reparam", "torch.fx fuse": "reparam"}
    pairs |= {form.name: form.name.replace(ORIGINAL.name, "reparam") for form in FORMS if ORIGINAL.name in form.name}
    return {
        theirs: Share(comparison.ratio(ours, theirs), comparison.cpu_ratio(ours, theirs))
        for theirs, ours in pairs.items()
        if {theirs, ours} <= names
    }
