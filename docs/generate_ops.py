"""Writes docs/ops.md, the list of operations that fold, from the rules and their examples.

python docs/generate_ops.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from reparam.capture.float64 import double
from reparam.capture.inputs import Inputs
from reparam.capture.ops import SPELLINGS
from reparam.capture.runs import record
from reparam.nn import draw_constants, draw_statistics
from reparam.rules import RULES, Case, Rule
from reparam.rules.interpret import Interpretation

TARGET = Path(__file__).with_name("ops.md")

HEAD = """\
# Operations that fold

Each operation in this table becomes part of one convolution, exactly, or is refused for a reason such as those in the
last column. Modules have no rows of their own: a module is what it calls, so `nn.BatchNorm2d`, `nn.SyncBatchNorm` and
`F.batch_norm` are one row, as are `x + y`, `x.add_(y)` and `torch.add(x, y)`. An operation that is not listed stays as
it is, and folding starts again after it. [How to add one](adding-an-op.md); [why it is exact](algebra.md).

`python docs/generate_ops.py` writes this page from the rules and their examples.

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
    """Why an example is refused, with weights and statistics that a trained model could have."""
    model = draw_statistics(draw_constants(double(case.module).eval()))
    x = case.input(3, (10, 13, 4), torch.Generator().manual_seed(0))
    recorded = record(model, Inputs((x,)))
    refusals = Interpretation(recorded.nodes, recorded.barriers).refusals.values()
    return next(refusal.reason for refusal in refusals if word in refusal.reason)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
