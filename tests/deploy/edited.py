"""Random edits of an artefact's .json. Run as a script to try many: `python -m tests.deploy.edited 20000`."""

from __future__ import annotations

import copy
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import reparam
from reparam.errors import ReparamError
from tests.deploy.attacks import make, saved_target
from tests.helpers import distance

SECONDS = 2.0  # the longest that one file may take
WRONG = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1 << 31, 1 << 62, 1 << 70, 0.5, -1.5, 1e300, "", "x", "self", "a.b", "eval",
    "torch.load", "inf", "float64 4x4x3x3", "class", "__class__", "\ud800", "a" * 300, [], {}, [[]], [1, 2], {"a": 1},
    {"node": "x"}, {"node": "conv"}, {"float": "nan"}, {"tuple": []}, {"dict": []}, {"slice": [None, None, None]},
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of dicts and lists, but the root."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    below = [place for key, value in inner for place in places(value, (*path, key))]
    return [path, *below] if path else below


def edit(data: Any, draw: random.Random) -> None:
    """Replace, remove, copy, swap or rename one part."""
    candidates = places(data)
    path, other = draw.choice(candidates), draw.choice(candidates)
    parent, key = _at(data, path[:-1]), path[-1]
    match draw.randrange(6):
        case 0 | 1:
            parent[key] = copy.deepcopy(draw.choice(WRONG))
        case 2:
            del parent[key]
        case 3:
            parent[key] = copy.deepcopy(_at(data, other))
        case 4 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[draw.randrange(len(parent))]))
        case _ if isinstance(parent, dict):
            parent[str(draw.choice(WRONG))[:300]] = parent.pop(key)


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


class Edited:
    """A saved model whose .json is edited and loaded."""

    def __init__(self, folder: Path) -> None:
        self.saved, self.deployed, self.inputs = saved_target(folder)
        self.good = json.loads(self.saved.provenance.read_text())
        del self.good["report"]  # it is not read
        self.fresh = make()

    def outcome(self, seed: int) -> str:
        """What becomes of one edited file: "equal" or "refused".

        Raises AssertionError where it loads as something else or takes too long, and whatever else goes wrong.
        """
        draw = random.Random(seed)
        data = copy.deepcopy(self.good)
        for _ in range(draw.randint(1, 5)):
            edit(data, draw)
        self.saved.provenance.write_text(json.dumps(data))
        start = time.perf_counter()
        try:
            loaded = reparam.load(self.saved.weights, self.fresh)
            error = distance(self.deployed, loaded, self.inputs)
        except ReparamError:
            error = None
        spent = time.perf_counter() - start
        assert spent < SECONDS, f"seed {seed} took {spent:.1f} s"
        assert error is None or data["probe"] != self.good["probe"] or error < 1e-9, f"seed {seed}: off by {error}"
        return "refused" if error is None else "equal"


def main(count: int) -> None:
    """Try that many files, and print what became of them."""
    torch.set_num_threads(1)
    outcomes: dict[str, int] = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        edited = Edited(Path(folder))
        for seed in range(count):
            outcome = edited.outcome(seed)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} files in {time.perf_counter() - start:.0f} s: {outcomes}; peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
