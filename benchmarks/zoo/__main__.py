"""The command line: `python -m benchmarks.zoo`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

import benchmarks.zoo
from benchmarks.common import options
from benchmarks.zoo import rows as results
from benchmarks.zoo import sets
from benchmarks.zoo.convert import source
from benchmarks.zoo.page import page
from benchmarks.zoo.processes import convert_all
from benchmarks.zoo.rows import Row

SEVERAL_VERSIONS = 2  # exit status: the rows were made by more than one version of the code


def _options() -> argparse.Namespace:
    parser = options(benchmarks.zoo.__doc__ or "", quick="four small networks")
    parser.add_argument("--set", choices=sets.SETS, nargs="+", default=["timm"], help="which networks (default: timm)")
    parser.add_argument(
        "--models", metavar="PATTERN", nargs="+", default=["*"], help='such as "repvgg*" (default: all)'
    )
    parser.add_argument("--limit-seconds", type=float, default=600.0, help="for one network (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="for all networks; then no other is started (default: none)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="add one line of JSON per network to this file")
    parser.add_argument("--table", action="store_true", help="print the page of the rows in the file, convert nothing")
    parser.add_argument("--choose", action="store_true", help="print a new timm.txt: the names of the timm set")
    return parser.parse_args()


def main() -> int:
    given = _options()
    if given.choose:
        print(sets.choose(), end="")
        return 0
    rows = results.read(given.out) if given.out else []
    if given.table:
        return _print_page(rows)
    # torchvision compiles the Python of its detectors, and the recorder with it: a minute for each.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    torch.set_num_threads(1)
    rows = [row for row in rows if row.get("source") == source()]
    done = {(row["set"], row["model"]) for row in rows}
    set_names = ["quick"] if given.quick else given.set
    networks = [
        (set_name, name)
        for set_name in set_names
        for name in sets.names(set_name)
        if (set_name, name) not in done and any(fnmatchcase(name, pattern) for pattern in given.models)
    ]
    sets.load(set_names)
    for row in convert_all(networks, given.jobs, given.limit_seconds, 60 * given.minutes):
        rows.append(row)
        print(f"{row['model']}: {row['outcome']} {row.get('error', '')}", file=sys.stderr, flush=True)
        if given.out:
            results.append(given.out, row)
    print(page(rows))
    return int(results.any_failed(rows))


def _print_page(rows: Sequence[Row]) -> int:
    versions = Counter(row.get("source", "unknown") for row in rows)
    if len(versions) > 1:
        listed = ", ".join(f"{count} by {version}" for version, count in versions.most_common())
        print(
            f"the rows were made by several versions of the code: {listed}; run again without --table", file=sys.stderr
        )
        return SEVERAL_VERSIONS
    print(page(rows))
    return int(results.any_failed(rows))


if __name__ == "__main__":
    sys.exit(main())
