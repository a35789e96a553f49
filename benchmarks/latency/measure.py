"""How long a forward pass takes, against everything that a user could deploy instead, and how far it is from the truth.

    python benchmarks/latency.py --quick
    python benchmarks/latency.py --json latency.json               # what the file holds is not measured anew
    python benchmarks/latency.py --json latency.json --page docs   # writes the page, measures nothing

Each network, batch and memory format is a case with a process of its own; within it all forms take turns, in another
order each time, and a ratio is formed within each turn, so that whatever else the machine does meets all of them. A
form that cannot be made, or that does not compute what the original computes, is not timed, and the reason is printed.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import reparam
from benchmarks.common import parser, shown, write_json
from benchmarks.latency.forms import FORMS, ORIGINAL, Run, equal
from benchmarks.latency.models import MODELS, build
from benchmarks.latency.page import write_page
from benchmarks.latency.rounding import rounding
from reparam.compare.bench import Comparison, Spread

QUICK = ("mobileone_s0", "ecbsr_m4c16")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FEWEST = 7  # rounds: below, quartiles say nothing
NETWORKS = 5  # whose rounding is measured: how that of one works out is luck


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    model: str
    batch: int
    memory_format: str
    forms: tuple[str, ...]
    threads: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        """What it is called by in a file of results: one of each network, batch and memory format."""
        return f"{self.model}, batch {self.batch}, {self.memory_format}"


@dataclass(frozen=True)
class Measured:
    """One form of a case: its time over that of the original, over that of the original in the same runtime, seconds.

    The ratios are formed round by round, on the clock ("wall") and in processor time ("cpu").
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
    """One case: its forms, those that are missing, and what reparam takes of each form that it is to beat."""

    case: Case
    rounds: int
    forms: list[Measured]
    against: dict[str, Share]
    missing: dict[str, str]
    rounding: dict[str, dict[str, float]]


def measure(case: Case) -> Result:
    """Builds, converts, checks and times. Runs in a process of its own."""
    torch.set_num_threads(case.threads)
    torch.backends.mkldnn.set_flags(True)
    model, x = build(case.model, case.batch)
    layout = FORMATS[case.memory_format]
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)  # type: ignore[call-overload]
    with torch.inference_mode():
        made = {form.name: form.made(model, x) for form in FORMS if form.name in case.forms}
        missing = {name: run for name, run in made.items() if isinstance(run, str)}
        runs: dict[str, Run] = {name: run for name, run in made.items() if not isinstance(run, str)}
    missing |= equal(runs, x)
    runs = {name: run for name, run in runs.items() if name not in missing}
    began = time.perf_counter()
    reparam.benchmark(runs, x, rounds=1, warmup=0, check=False)
    lasts = time.perf_counter() - began
    rounds = max(FEWEST, min(case.rounds, math.ceil(case.seconds / lasts)))
    comparison = reparam.benchmark(runs, x, rounds=rounds, warmup=1, threads=case.threads, check=False)
    forms = [
        Measured(each.name, comparison.ratio(each.name), comparison.cpu_ratio(each.name), each.wall, each.cpu)
        for each in comparison.timings
    ]
    first = (case.batch, case.memory_format) == (1, "contiguous")
    rounded = rounding(build(case.model, 1, seed) for seed in range(NETWORKS)) if first else {}
    return Result(case, rounds, forms, against(comparison), missing, rounded)


def against(comparison: Comparison) -> dict[str, Share]:
    """The time of reparam over that of each form that it is to beat, in the same runtime."""
    names = {timing.name for timing in comparison.timings}
    pairs = {"own conversion": "reparam", "torch.fx fuse": "reparam"}
    pairs |= {form.name: form.name.replace(ORIGINAL.name, "reparam") for form in FORMS if ORIGINAL.name in form.name}
    return {
        theirs: Share(comparison.ratio(ours, theirs), comparison.cpu_ratio(ours, theirs))
        for theirs, ours in pairs.items()
        if {theirs, ours} <= names
    }


def in_fresh_process(case: Case) -> Result:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case,))


def rows(result: dict[str, Any]) -> list[list[str]]:
    named = named_case(result)
    return [
        ["" if i else named, form["form"], shown(Spread(**form["ratio"])), shown(Spread(**form["cpu_ratio"]))]
        for i, form in enumerate(result["forms"])
    ]


def named_case(result: dict[str, Any]) -> str:
    case: dict[str, Any] = result["case"]
    return str(Case(**case))


def results_in(file: Path | None) -> list[dict[str, Any]]:
    """What an earlier run, perhaps one that was interrupted, has written."""
    if file is None or not file.exists():
        return []
    results: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return results


def cases(options: Any) -> list[Case]:
    models = options.models or (QUICK if options.quick else MODELS)
    batches = [options.batch] if options.quick else options.batches
    formats = ["contiguous"] if options.quick else options.formats
    forms = tuple(form.name for form in FORMS)
    rest = (options.threads, FEWEST if options.quick else options.rounds, 5.0 if options.quick else options.seconds)
    return [Case(m, b, f, forms, *rest) for m in models for b in batches for f in formats]


def main() -> None:
    arguments = parser(__doc__ or "", rounds=30)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sizes of batches (default: 1 8)")
    arguments.add_argument(
        "--formats", choices=list(FORMATS), nargs="+", default=list(FORMATS), help="of memory (both)"
    )
    arguments.add_argument("--seconds", type=float, default=45.0, help="timed per case, about (default: %(default)s)")
    arguments.add_argument("--page", type=Path, metavar="FOLDER", help="only write the page of what --json holds there")
    options = arguments.parse_args()
    if options.page:
        write_page(options.json, options.page)
        return
    there = {named_case(result): result for result in results_in(options.json)}
    for case in cases(options):
        if str(case) not in there:
            there[str(case)] = asdict(in_fresh_process(case))
            print(f"{case}: {there[str(case)]['rounds']} rounds", file=sys.stderr)
        if options.json:
            write_json(options.json, options, list(there.values()))
    results = [there[str(case)] for case in cases(options)]
    headers = ["network", "form", "time / original (wall)", "(cpu)"]
    table = [row for result in results for row in rows(result)]
    print(tabulate(table, headers=headers, colalign=("left", "left", "right", "right"), disable_numparse=True))
    errors = [
        [result["case"]["model"], dtype, f"{each['original']:.2g}", f"{each['reparam']:.2g}"]
        for result in results
        for dtype, each in result["rounding"].items()
    ]
    print("", tabulate(errors, headers=["network", "dtype", "error of the original", "folded"]), sep="\n")
    notes = [f"{named_case(each)}: {form}: {why}" for each in results for form, why in each["missing"].items()]
    print("", *notes, sep="\n")
