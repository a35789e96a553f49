"""What a conversion costs: its time in forward passes of the same model, its memory in weights of the same model.

    python -m benchmarks.conversion --quick
    python -m benchmarks.conversion --models repvgg_b3 convnext_large stack_1b --batch 1 --rounds 1
    python -m benchmarks.conversion --memory --models repvgg_b3 convnext_large
    python -m benchmarks.conversion --growth 100 1000 10000

Times: forward passes and conversions take turns, and a ratio is formed within each turn, so that other load on the
machine slows both sides. "wall" is time on the clock, "cpu" is the processor time of all threads.

Memory: every way to convert runs in a fresh process, with one image, so that the conversion is measured and not its
recorded run. "extra" is how far the process grows beyond its size with the model in it; this includes the folded model
and what the C library keeps. Beside it stands the float64 copy of the largest layer.

Growth: networks of more and more equal blocks, and how much more each step costs.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from benchmarks.common import forward, in_fresh_process, model_options, printed_table, shown, write_json
from benchmarks.zoo.models import QUICK, ZOO, build, example_input
from reparam.compare.bench import Spread

MIB = 2**20
MEMORY_IS_MEASURABLE = sys.platform == "linux"  # other systems do not reset the peak of a process
# Verification runs the model many times in float64: one round takes longer than all the rest.
VERIFIED_ROUNDS = 1
# Forward passes take time in proportion to the batch, conversions hardly depend on it. docs/performance.md also has
# figures for 1 and 16 images.
BATCH = 32
STACK = "stack_1b"  # a billion parameters in bfloat16, built here
QUICK_GROWTH = (10, 100)
WAYS: dict[str, dict[str, Any]] = {
    "verify=False": {"verify": False},
    "folds": {"verify": "folds"},
    "full": {"verify": "full"},
    "False, inplace": {"verify": False, "inplace": True},
    "folds, inplace": {"verify": "folds", "inplace": True},
}


@dataclass(frozen=True)
class Timing:
    wall: float
    cpu: float


@dataclass(frozen=True)
class Memory:
    """Bytes: the weights, the largest new layer in float64, and what a run and a conversion need beyond the model."""

    weights: int
    largest: int
    forward: int
    extra: int


@dataclass(frozen=True)
class Conversion:
    """One model's costs: seconds, conversions in forward passes, bytes."""

    model: str
    forward: Spread
    converted: Spread
    ratio: Spread
    cpu_ratio: Spread
    verified: dict[str, Spread]
    memory: dict[str, Memory]

    def cells(self) -> list[str]:
        memory = next(iter(self.memory.values()), None)
        return [
            self.model,
            f"{1e3 * self.forward.median:.1f}",
            f"{1e3 * self.converted.median:.1f}",
            shown(self.ratio),
            shown(self.cpu_ratio),
            *(shown(self.verified[way]) if way in self.verified else "" for way in ("folds", "full")),
            *([f"{memory.weights / MIB:.0f}", f"{memory.largest / memory.weights:.2f}"] if memory else ["", ""]),
            *(f"{m.extra / m.weights:.2f}" if (m := self.memory.get(way)) else "" for way in WAYS),
        ]


HEADERS = [
    "model",
    "forward ms",
    "convert ms",
    "convert / forward (wall)",
    "(cpu)",
    "with folds (cpu)",
    "with full (cpu)",
    "weights MiB",
    "largest fp64 / weights",
    *(f"extra / weights: {way}" for way in WAYS),
]


def timed(action: Callable[[], object]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def process_memory(field: str) -> int:
    """Bytes of this process: "VmRSS" is what it has now, "VmHWM" the peak since `extra_memory` has reset it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def extra_memory(action: Callable[[], object]) -> int:
    """How far the process grows while the action runs, in bytes."""
    gc.collect()
    before = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    action()
    return process_memory("VmHWM") - before


def stack(blocks: int = 106, channels: int = 1024) -> nn.Module:
    """A plain stack of 3x3 convolutions and batch norms: a billion parameters."""
    with torch.device("meta"):
        layers = [nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
                  for _ in range(blocks)]  # fmt: skip
    model = nn.Sequential(*layers).to(torch.bfloat16).to_empty(device="cpu").eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.uniform_(-0.01, 0.01)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
    return reparam.nn.draw_statistics(model).eval()


def build_with_input(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    if name == STACK:
        return stack(), torch.randn(batch, 1024, 8, 8, dtype=torch.bfloat16)
    model = build(name)
    return model, example_input(model, batch)


def measure_memory(name: str, way: str, threads: int) -> Memory:
    """Runs in a process of its own: a second conversion would find memory that the first one has left."""
    torch.set_num_threads(threads)
    model, x = build_with_input(name, 1)
    weights = sum({id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}.values())
    forward(model, x)
    forward_extra = extra_memory(lambda: forward(model, x))
    folded: list[nn.Module] = []
    extra = extra_memory(lambda: folded.append(reparam.reparameterize(model, x, **WAYS[way])))
    largest = max(8 * parameter.numel() for parameter in folded[0].parameters())
    return Memory(weights, largest, forward_extra, extra)


def measure_times(name: str, batch: int, threads: int, rounds: int, verified_ways: Sequence[str]) -> Conversion:
    """Runs in a process of its own."""
    torch.set_num_threads(threads)
    model, x = build_with_input(name, batch)

    def turn(way: str) -> tuple[Timing, Timing]:
        """A forward pass and a conversion."""
        return timed(partial(forward, model, x)), timed(partial(reparam.reparameterize, model, x, **WAYS[way]))

    turn("verify=False")  # warm-up
    turns = [turn("verify=False") for _ in range(rounds)]
    verified = {way: [turn(way) for _ in range(VERIFIED_ROUNDS)] for way in verified_ways}
    return Conversion(
        model=name,
        forward=Spread.of([run.wall for run, _ in turns]),
        converted=Spread.of([conversion.wall for _, conversion in turns]),
        ratio=Spread.of([conversion.wall / run.wall for run, conversion in turns]),
        cpu_ratio=Spread.of([conversion.cpu / run.cpu for run, conversion in turns]),
        verified={
            way: Spread.of([conversion.cpu / run.cpu for run, conversion in way_turns])
            for way, way_turns in verified.items()
        },
        memory={},
    )


def blocks_of(kind: str, count: int) -> nn.Module:
    """A network of small equal blocks: their conversion is bookkeeping."""
    if kind == "branches":
        return nn.Sequential(*(reparam.nn.RepVGGBlock(4, 4) for _ in range(count))).eval()
    plain = (nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(count))
    return nn.Sequential(*plain).eval()


def measure_growth(kind: str, count: int, threads: int) -> float:
    """Seconds of processor time of one conversion; runs in a process of its own."""
    torch.set_num_threads(threads)
    x = torch.randn(1, 4, 8, 8)
    reparam.reparameterize(blocks_of(kind, 2), x, verify=False)  # warm-up
    model = blocks_of(kind, count)
    return timed(lambda: reparam.reparameterize(model, x, verify=False)).cpu


def growth_rows(counts: Sequence[int], threads: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in ("plain", "branches"):
        before: tuple[int, float] | None = None
        for count in counts:
            seconds = in_fresh_process(measure_growth, kind, count, threads)
            more = "" if before is None else f"{count / before[0]:g} times the blocks: {seconds / before[1]:.1f} times"
            rows.append({"blocks": f"{count:,} {kind}", "cpu s": f"{seconds:.2f}", "growth": more})
            before = count, seconds
            print(f"{count} {kind} done", file=sys.stderr)
    return rows


def memory_rows(models: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """The memory of every way but "full", which needs both models in float64."""
    rows: list[dict[str, Any]] = []
    for name in models:
        memory = {way: in_fresh_process(measure_memory, name, way, threads) for way in WAYS if way != "full"}
        first = next(iter(memory.values()))
        rows.append(
            {
                "model": name,
                "weights MiB": f"{first.weights / MIB:,.0f}",
                "largest fp64": f"{first.largest / first.weights:.2f}",
                "forward": f"{first.forward / first.weights:.2f}",
                **{f"extra: {way}": f"{m.extra / m.weights:.2f}" for way, m in memory.items()},
            }
        )
        print(f"{name} done", file=sys.stderr)
    return rows


def conversions(models: Sequence[str], options: argparse.Namespace) -> list[Conversion]:
    rounds = 3 if options.quick else options.rounds
    verified_ways = [] if options.unverified else ["folds"] if options.quick else ["folds", "full"]
    memory_ways = [way for way in WAYS if way.removesuffix(", inplace") in ("verify=False", "False", *verified_ways)]
    memory_ways = [memory_ways[0], memory_ways[-1]] if options.quick else memory_ways
    results = []
    for name in models:
        times = in_fresh_process(measure_times, name, options.batch, options.threads, rounds, verified_ways)
        memory = {
            way: in_fresh_process(measure_memory, name, way, options.threads)
            for way in memory_ways
            if MEMORY_IS_MEASURABLE
        }
        results.append(replace(times, memory=memory))
        print(f"{name} done", file=sys.stderr)
    return results


def main() -> None:
    parser = model_options(__doc__ or "", rounds=9, models=ZOO, quick=QUICK)
    parser.add_argument("--batch", type=int, default=BATCH, help="images in a batch (default: %(default)s)")
    parser.add_argument("--unverified", action="store_true", help="leave out the conversions that are verified")
    parser.add_argument("--growth", nargs="+", type=int, metavar="BLOCKS", help="only networks of so many blocks")
    parser.add_argument("--memory", action="store_true", help="only memory, in multiples of the weights")
    options = parser.parse_args()
    models = options.models or (QUICK if options.quick else ZOO)
    counts = options.growth or (QUICK_GROWTH if options.quick and not options.memory else ())
    results = [] if options.growth or options.memory else conversions(models, options)
    memory = memory_rows(models, options.threads) if options.memory else []
    growth = growth_rows(counts, options.threads) if counts else []
    if results:
        print(printed_table(HEADERS, [result.cells() for result in results]))
    for rows in (memory, growth):
        if rows:
            print(printed_table(list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        write_json(options.json, options, [*map(asdict, results), *memory, *growth])


if __name__ == "__main__":
    main()
