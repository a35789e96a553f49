"""The command line: `python -m benchmarks.latency`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import benchmarks.latency
from benchmarks.common import in_fresh_process, model_options, printed_table, shown, write_json
from benchmarks.latency.forms import FORMS
from benchmarks.latency.measure import FEWEST_ROUNDS, FORMATS, Case, measure
from benchmarks.latency.models import MODELS
from benchmarks.latency.page import write_page
from reparam.compare.bench import Spread

QUICK = ("mobileone_s0", "ecbsr_m4c16")

Saved = dict[str, Any]
"""A `Result` as it stands in the file."""


def _options() -> argparse.Namespace:
    parser = model_options(benchmarks.latency.__doc__ or "", rounds=30, models=MODELS, quick=QUICK)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images in a batch (default: 1 8)")
    parser.add_argument(
        "--formats", choices=FORMATS, nargs="+", default=list(FORMATS), help="of memory (default: both)"
    )
    parser.add_argument("--seconds", type=float, default=45.0, help="timed per case, about (default: %(default)s)")
    parser.add_argument(
        "--page", type=Path, metavar="FOLDER", help="only write the page and the plots of --json into this folder"
    )
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> list[Case]:
    forms = tuple(form.name for form in FORMS)
    if options.quick:
        return [Case(m, 1, "contiguous", forms, options.threads, FEWEST_ROUNDS, 5.0) for m in options.models or QUICK]
    return [
        Case(model, batch, memory_format, forms, options.threads, options.rounds, options.seconds)
        for model in options.models or MODELS
        for batch in options.batches
        for memory_format in options.formats
    ]


def _case_name(result: Saved) -> str:
    return str(Case(**result["case"]))


def _saved_results(file: Path | None) -> list[Saved]:
    """What an earlier run has written, even if it was interrupted."""
    if file is None or not file.exists():
        return []
    results: list[Saved] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return results


def _print_tables(results: Sequence[Saved]) -> None:
    times = [
        ["" if i else _case_name(result), form["form"], *(shown(Spread(**form[key])) for key in ("ratio", "cpu_ratio"))]
        for result in results
        for i, form in enumerate(result["forms"])
    ]
    print(printed_table(["network", "form", "time / original (wall)", "(cpu)"], times, left=2))
    errors = [
        [result["case"]["model"], dtype, f"{error['original']:.2g}", f"{error['reparam']:.2g}"]
        for result in results
        for dtype, error in result["rounding"].items()
    ]
    print("", printed_table(["network", "dtype", "error of the original", "folded"], errors, left=2), sep="\n")
    for result in results:
        for form, why in result["missing"].items():
            print(f"{_case_name(result)}: {form}: {why}")


def main() -> None:
    options = _options()
    if options.page:
        write_page(options.json, options.page)
        return
    results = {_case_name(result): result for result in _saved_results(options.json)}
    cases = _cases(options)
    for case in cases:
        if str(case) not in results:
            results[str(case)] = asdict(in_fresh_process(measure, case))
            print(f"{case}: {results[str(case)]['rounds']} rounds", file=sys.stderr)
        if options.json:
            write_json(options.json, options, list(results.values()))
    _print_tables([results[str(case)] for case in cases])


if __name__ == "__main__":
    main()
