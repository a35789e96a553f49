"""The command line: `python -m benchmarks.fuzz`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

from benchmarks.common import timing_options, write_json
from benchmarks.fuzz.naive_padding import RIGHT
from benchmarks.fuzz.run import run

QUICK = 100


def main() -> int:
    parser = timing_options("Convert random networks and compare them with themselves.", quick=f"{QUICK} networks")
    parser.add_argument("--nets", type=int, default=1000, help="how many networks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; the others follow it (default: 0)")
    parser.add_argument(
        "--digest",
        type=Path,
        metavar="FILE",
        help="write one line per network there: seed, folds, removed operations, a hash of what was folded, refusals; "
        "two versions of the code fold alike where their files are equal",
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    seeds = range(given.seed, given.seed + (QUICK if given.quick else given.nets))
    with contextlib.ExitStack() as stack:
        digest = stack.enter_context(given.digest.open("w", encoding="utf-8")) if given.digest else None
        tally = run(seeds, note=None if digest is None else lambda line: print(line, file=digest, flush=True))
    print(tally)
    if given.json:
        failures = [(seed, failure.kind) for seed, failure in tally.failures]
        write_json(given.json, given, [{**vars(tally), "failures": failures}])
    return int(bool(tally.failures or tally.naive[RIGHT]))


if __name__ == "__main__":
    sys.exit(main())
