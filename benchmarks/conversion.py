"""What a conversion costs: its time in forward passes of the same model, and its memory in weights of the same model.

    python benchmarks/conversion.py --quick
    python benchmarks/conversion.py --models repvgg_b3 convnext_large stack_1b --batch 1 --rounds 1
    python benchmarks/conversion.py --memory --models repvgg_b3 convnext_large
    python benchmarks/conversion.py --growth 100 1000 10000

Times: forward passes and conversions take turns, so that whatever else the machine does meets both; a ratio is taken
within each turn. "wall" is time on the clock, "cpu" the time of all threads of the process.

Memory: every way to convert in a fresh process, with one image, so that what is measured is the conversion and not its
recorded run. "extra" is how far the process grows beyond what it holds with the model in it, the folded model included
and all that the C library keeps; the float64 copy of the largest layer is named beside it.

Growth: networks of more and more equal blocks; by how much a step to more blocks costs more than the blocks are more.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tabulate import tabulate
from torch import Tensor, nn

import reparam
from benchmarks.common import chosen_models, parser, shown, write_json
from benchmarks.zoo.models import build, example_input
from reparam.compare.bench import Spread

T = TypeVar("T")

MIB = 2**20
MEASURABLE = sys.platform == "linux"  # elsewhere nobody says what a process has held at most since a moment
# Verification runs the model many times in float64: one round of it takes longer than all the rest.
VERIFIED_ROUNDS = 1
# A conversion hardly depends on the size of the batch, a forward pass is proportional to it. docs/performance.md has 1
# and 16 images as well.
BATCH = 32
STACK = "stack_1b"  # a billion parameters in bfloat16, built on the spot
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
    """Bytes: of the weights, of the largest new layer in float64, and by how much a run and a conversion need more."""

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

    def row(self) -> list[str]:
        held = next(iter(self.memory.values()), None)
        return [
            self.model,
            f"{1e3 * self.forward.median:.1f}",
            f"{1e3 * self.converted.median:.1f}",
            shown(self.ratio),
            shown(self.cpu_ratio),
            *(shown(self.verified[way]) if way in self.verified else "" for way in ("folds", "full")),
            *([f"{held.weights / MIB:.0f}", f"{held.largest / held.weights:.2f}"] if held else ["", ""]),
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


def held_memory(what: str) -> int:
    """Bytes that this process holds ("VmRSS"), or has held at most since `reset_peak` ("VmHWM")."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def extra_memory(action: Callable[[], object]) -> int:
    """How far the process grows beyond what it holds."""
    gc.collect()
    before = held_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now what is held
    action()
    return held_memory("VmHWM") - before


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


def made(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A model and its input."""
    if name == STACK:
        return stack(), torch.randn(batch, 1024, 8, 8, dtype=torch.bfloat16)
    model = build(name)
    return model, example_input(model, batch)


def run(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def measured_memory(name: str, way: str, threads: int) -> Memory:
    """Runs in a process of its own: what one conversion leaves to the allocator, another would find."""
    torch.set_num_threads(threads)
    model, x = made(name, 1)
    held = {id(each): each for each in (*model.parameters(), *model.buffers())}
    weights = sum(each.nbytes for each in held.values())
    del held
    run(model, x)
    forward = extra_memory(lambda: run(model, x))
    folded: list[nn.Module] = []
    extra = extra_memory(lambda: folded.append(reparam.reparameterize(model, x, **WAYS[way])))
    largest = max(8 * each.numel() for each in folded[0].parameters())
    return Memory(weights, largest, forward, extra)


def measured_times(name: str, batch: int, threads: int, rounds: int, ways: Sequence[str]) -> Conversion:
    """Builds and measures one model. Runs in a process of its own."""
    torch.set_num_threads(threads)
    model, x = made(name, batch)

    def forward() -> None:
        run(model, x)

    def convert(way: str) -> None:
        reparam.reparameterize(model, x, **WAYS[way])

    forward()
    convert("verify=False")  # the warm-up
    turns = [(timed(forward), timed(lambda: convert("verify=False"))) for _ in range(rounds)]
    verified = {way: [(timed(forward), timed(partial(convert, way))) for _ in range(VERIFIED_ROUNDS)] for way in ways}
    return Conversion(
        model=name,
        forward=Spread.of([forward.wall for forward, _ in turns]),
        converted=Spread.of([converted.wall for _, converted in turns]),
        ratio=Spread.of([converted.wall / forward.wall for forward, converted in turns]),
        cpu_ratio=Spread.of([converted.cpu / forward.cpu for forward, converted in turns]),
        verified={way: Spread.of([each.cpu / forward.cpu for forward, each in runs]) for way, runs in verified.items()},
        memory={},
    )


def blocks_of(kind: str, count: int) -> nn.Module:
    """A network of equal blocks, small ones: what is measured is the bookkeeping."""
    if kind == "branches":
        return nn.Sequential(*(reparam.nn.RepVGGBlock(4, 4) for _ in range(count))).eval()
    plain = (nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(count))
    return nn.Sequential(*plain).eval()


def measured_growth(kind: str, count: int, threads: int) -> float:
    """Seconds of processor time of one conversion. Runs in a process of its own."""
    torch.set_num_threads(threads)
    x = torch.randn(1, 4, 8, 8)
    reparam.reparameterize(blocks_of(kind, 2), x, verify=False)
    model = blocks_of(kind, count)
    return timed(lambda: reparam.reparameterize(model, x, verify=False)).cpu


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def growth(counts: Sequence[int], threads: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in ("plain", "branches"):
        before: tuple[int, float] | None = None
        for count in counts:
            seconds = in_fresh_process(measured_growth, kind, count, threads)
            more = "" if before is None else f"{count / before[0]:g} times the blocks: {seconds / before[1]:.1f} times"
            rows.append({"blocks": f"{count:,} {kind}", "cpu s": f"{seconds:.2f}", "growth": more})
            before = count, seconds
            print(f"{count} {kind} done", file=sys.stderr)
    return rows


def memory_alone(names: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """Of every way but the one that holds both models in float64."""
    rows: list[dict[str, Any]] = []
    for name in names:
        found = {way: in_fresh_process(measured_memory, name, way, threads) for way in WAYS if way != "full"}
        one = next(iter(found.values()))
        held = {"weights MiB": f"{one.weights / MIB:,.0f}", "largest fp64": f"{one.largest / one.weights:.2f}"}
        extra = {f"extra: {way}": f"{each.extra / each.weights:.2f}" for way, each in found.items()}
        rows.append({"model": name, **held, "forward": f"{one.forward / one.weights:.2f}", **extra})
        print(f"{name} done", file=sys.stderr)
    return rows


def main() -> None:
    arguments = parser(__doc__ or "", rounds=9, batch=BATCH)
    arguments.add_argument("--unverified", action="store_true", help="without the conversions that are verified")
    arguments.add_argument("--growth", nargs="+", type=int, metavar="BLOCKS", help="networks of so many blocks alone")
    arguments.add_argument("--memory", action="store_true", help="memory alone, in times the weights")
    options = arguments.parse_args()
    rounds = 3 if options.quick else options.rounds
    ways = [] if options.unverified else ["folds"] if options.quick else ["folds", "full"]
    results = []
    for name in [] if options.growth or options.memory else chosen_models(options):
        timing = in_fresh_process(measured_times, name, options.batch, options.threads, rounds, ways)
        kept = [way for way in WAYS if way.removesuffix(", inplace") in ("verify=False", "False", *ways)]
        kept = [kept[0], kept[-1]] if options.quick else kept
        memory = {way: in_fresh_process(measured_memory, name, way, options.threads) for way in kept if MEASURABLE}
        results.append(replace(timing, memory=memory))
        print(f"{name} done", file=sys.stderr)
    held = memory_alone(chosen_models(options), options.threads) if options.memory else []
    grown = (
        growth(options.growth or QUICK_GROWTH, options.threads)
        if options.growth or (options.quick and not options.memory)
        else []
    )
    if results:
        aligned = ["left", *["right"] * (len(HEADERS) - 1)]
        print(tabulate([result.row() for result in results], headers=HEADERS, colalign=aligned, disable_numparse=True))
    if held:
        print(tabulate(held, headers="keys", colalign=["left", *["right"] * (len(held[0]) - 1)], disable_numparse=True))
    if grown:
        print(tabulate(grown, headers="keys", colalign=("left", "right", "left"), disable_numparse=True))
    if options.json:
        write_json(options.json, options, [*map(asdict, results), *held, *grown])


if __name__ == "__main__":
    main()
