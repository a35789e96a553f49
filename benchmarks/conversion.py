"""What a conversion costs: its time in forward passes of the same model, and its memory in weights of the same model.

    python benchmarks/conversion.py --quick

Each model is measured in a fresh process, since the peak memory of a process never falls. Forward passes and
conversions take turns, so that whatever else the machine does meets both; a ratio is taken within each turn. "wall" is
time on the clock, "cpu" the time of all threads of the process. Extra memory is how far a conversion lifts the peak of
a process that has already run the model.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate

import reparam
from common import chosen_models, parser, shown, write_json
from reparam.bench import Spread
from zoo_models import build, example_input

MIB = 2**20
# Verification runs the model many times in float64: one round of it takes longer than all the rest.
VERIFIED_ROUNDS = 1
# A conversion hardly depends on the size of the batch, a forward pass is proportional to it.
BATCH = 16


@dataclass(frozen=True)
class Timing:
    wall: float
    cpu: float


@dataclass(frozen=True)
class Conversion:
    """One model's costs: seconds, conversions in forward passes, bytes."""

    model: str
    forward: Spread
    converted: Spread
    ratio: Spread
    cpu_ratio: Spread
    verified_ratio: Spread | None
    weights: int
    extra: int
    verified_extra: int

    def row(self) -> list[str]:
        return [
            self.model,
            f"{1e3 * self.forward.median:.1f}",
            f"{1e3 * self.converted.median:.1f}",
            shown(self.ratio),
            shown(self.cpu_ratio),
            shown(self.verified_ratio) if self.verified_ratio else "",
            f"{self.weights / MIB:.1f}",
            f"{self.extra / self.weights:.1f}",
            f"{self.verified_extra / self.weights:.1f}" if self.verified_ratio else "",
        ]


HEADERS = [
    "model",
    "forward ms",
    "convert ms",
    "convert / forward (wall)",
    "(cpu)",
    "with verify (wall)",
    "weights MiB",
    "extra memory / weights",
    "with verify",
]


def timed(action: Callable[[], object]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def peak_memory() -> int:
    """The most bytes this process has ever held."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(name: str, batch: int, threads: int, rounds: int, verified_rounds: int) -> Conversion:
    """Builds and measures one model. Runs in a process of its own."""
    torch.set_num_threads(threads)
    model = build(name)
    x = example_input(model, batch)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def convert() -> None:
        reparam.reparameterize(model, x, verify=False)

    def convert_and_verify() -> None:
        reparam.reparameterize(model, x)

    forward()
    before = peak_memory()
    convert()  # also the warm-up
    extra = peak_memory() - before
    turns = [(timed(forward), timed(convert)) for _ in range(rounds)]
    verified = [(timed(forward), timed(convert_and_verify)) for _ in range(verified_rounds)]

    return Conversion(
        model=name,
        forward=Spread.of([forward.wall for forward, _ in turns]),
        converted=Spread.of([converted.wall for _, converted in turns]),
        ratio=Spread.of([converted.wall / forward.wall for forward, converted in turns]),
        cpu_ratio=Spread.of([converted.cpu / forward.cpu for forward, converted in turns]),
        verified_ratio=Spread.of([made.wall / forward.wall for forward, made in verified]) if verified else None,
        weights=sum(tensor.nbytes for tensor in model.state_dict().values()),
        extra=extra,
        verified_extra=peak_memory() - before,
    )


def in_fresh_process(*arguments: Any) -> Conversion:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def main() -> None:
    arguments = parser(__doc__ or "", rounds=9, batch=BATCH)
    arguments.add_argument("--unverified", action="store_true", help="without the conversions that are verified")
    options = arguments.parse_args()
    rounds = 3 if options.quick else options.rounds
    verified_rounds = 0 if options.unverified or options.quick else VERIFIED_ROUNDS
    results = []
    for name in chosen_models(options):
        results.append(in_fresh_process(name, options.batch, options.threads, rounds, verified_rounds))
        print(f"{name} done", file=sys.stderr)
    aligned = ["left", *["right"] * (len(HEADERS) - 1)]
    print(tabulate([result.row() for result in results], headers=HEADERS, colalign=aligned, disable_numparse=True))
    if options.json:
        write_json(options.json, options, [asdict(result) for result in results])


if __name__ == "__main__":
    main()
