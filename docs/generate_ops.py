"""Writes docs/ops.md, the list of operations that fold, from the rules and their examples.

python docs/generate_ops.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from reparam.capture.float64 import double
from reparam.capture.inputs import Inputs
from reparam.capture.ops import SPELLINGS
from reparam.capture.recorder import record
from reparam.nn import draw_constants, draw_statistics
from reparam.rules import RULES, Case, Rule
from reparam.rules.interpret import Interpretation

TARGET = Path(__file__).with_name("ops.md")

HEAD = """\
# Operations that fold

Every operation in this table becomes part of one convolution, exactly, unless it is refused for one of the reasons
beside it. Modules have no rows of their own: a module is what it calls, so `nn.BatchNorm2d`, `nn.SyncBatchNorm` and
`F.batch_norm` are one row, as are `x + y`, `x.add_(y)` and `torch.add(x, y)`. An operation that is not listed is left
as it is, and folding starts anew behind it. [How to add one](adding-an-op.md); [why it is exact](algebra.md).

This page is written by `python docs/generate_ops.py` from the rules; the reasons are what their examples are refused
for.

| torch names | what it is | refused |
|---|---|---|
"""


def document() -> str:
    """The text of docs/ops.md."""
    rules = {entry.name: entry for entry in RULES.values()}
    return HEAD + "".join(map(_row, rules.values()))


def _row(entry: Rule) -> str:
    spelled = [spelling for spelling, key in SPELLINGS.items() if key in entry.keys]
    names = ", ".join(f"`{name}`" for name in (*entry.keys, *spelled))
    reasons = dict.fromkeys(_reason(case, word) for case, word in entry.keeps())
    return f"| {names} | {entry.meaning} | {'<br>'.join(f'- {reason}' for reason in reasons)} |\n"


def _reason(case: Case, word: str) -> str:
    """What an example is refused for, at a size and with numbers that a trained model could have."""
    model = draw_statistics(draw_constants(double(case.module).eval()))
    x = case.input(3, (10, 13, 4), torch.Generator().manual_seed(0))
    found = record(model, Inputs((x,)))
    refusals = Interpretation(found.nodes, found.barriers).refusals.values()
    return next(refusal.reason for refusal in refusals if word in refusal.reason)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
