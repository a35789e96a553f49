"""Many networks, one seed each, and what came of them."""

from __future__ import annotations

import gc
import linecache
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from tabulate import tabulate

from benchmarks.fuzz.check import Failure, Outcome, check
from benchmarks.fuzz.draw import draw_network
from benchmarks.fuzz.naive_padding import naive_verdicts
from benchmarks.fuzz.shrink import shrink
from reparam.rewrite import code

_MOST_FAILURES = 10
_NAIVE = 5  # the padding law is put to the test on one network in so many
_KEPT_CLASSES = 200  # networks


@dataclass
class Tally:
    """The outcomes of many networks."""

    networks: int = 0
    folded: int = 0
    folds: int = 0
    second: int = 0
    removed: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    naive: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, seed: int, outcome: Outcome) -> None:
        self.networks += 1
        self.folded += bool(outcome.folded)
        self.folds += len(outcome.folded)
        self.second += outcome.second > 0
        self.removed += outcome.removed
        self.refusals.update(outcome.refusals)
        self.rejected.update([outcome.rejected[:100]] if outcome.rejected else [])
        self.failures += [(seed, outcome.failure)] if outcome.failure else []

    def __str__(self) -> str:
        rows = [
            ("networks", self.networks),
            ("of these not converted", sum(self.rejected.values())),
            ("with folds", self.folded),
            ("folds", self.folds),
            ("operations removed", self.removed),
            ("with folds for a second conversion", self.second),
            ("refusals", sum(self.refusals.values())),
            ("failures", len(self.failures)),
            ("seconds", round(self.seconds)),
        ]
        counters = {
            "not converted": self.rejected,
            "refused because": self.refusals,
            "a fold that ignores the padding law": self.naive,
        }
        tables = [
            tabulate([(count, text) for text, count in counter.most_common()], headers=("", title))
            for title, counter in counters.items()
            if counter
        ]
        return "\n\n".join([tabulate(rows), *tables])


def run(seeds: Iterable[int], say: Callable[[str], None] = print, note: Callable[[str], None] | None = None) -> Tally:
    """Check the network of every seed.

    say: takes the script of every failure, made small; after ten failures no more networks are checked.
    note: takes one line per network: its seed and the digest of its outcome.
    """
    tally, start = Tally(), time.monotonic()
    for seed in seeds:
        program = draw_network(seed)
        outcome = check(program)
        tally.add(seed, outcome)
        if note is not None:
            note(f"{seed} {outcome.digest()}")
        if outcome.failure is not None:
            smallest = shrink(program, outcome.failure)
            failure = check(smallest).failure or outcome.failure
            detail = failure.detail.replace("\n", "\n# ")
            say(f"\n# seed {seed}: {failure.kind}\n# {detail}\n{smallest.script()}\n")
            if len(tally.failures) >= _MOST_FAILURES:
                break
        elif not outcome.rejected and seed % _NAIVE == 0 and program.dtype == torch.float64:
            tally.naive.update(naive_verdicts(program))
        if tally.networks % _KEPT_CLASSES == 0:
            _free_classes()
    tally.seconds = time.monotonic() - start
    return tally


def _free_classes() -> None:
    """Free the classes that earlier networks were rewritten to."""
    code._subclass.cache_clear()
    for file in [file for file in linecache.cache if file.startswith(("<reparam forward", "<eval_with_key"))]:
        del linecache.cache[file]
    gc.collect()
