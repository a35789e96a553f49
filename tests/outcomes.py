"""Reports made by hand, for what no conversion comes to: names that would rather be markup, numbers that are none."""

from __future__ import annotations

from dataclasses import replace

from reparam.compare.bench import Comparison, Timing
from reparam.compare.verification import Check, Verification
from reparam.report.outcome import START, Counts, DeadWeight, DecisionLine, FoldLine, RefusalLine, Step
from reparam.report.quantisation import Ranges, Weights
from reparam.report.report import Report

COUNTS = Counts(2, 1, 0, 30, 400)
LATENCY = Comparison(
    (Timing("original", 3, (2e-3, 4e-3), (2e-3, 4e-3)), Timing("folded", 5, (1e-3, 2e-3), (1e-3, 2e-3))),
    "1x3x9x11",
    "cpu",
    2,
    checked=True,
)

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style><style>*{display:none}",
    "<!-- ]]> &lt; &amp;",
    "a\x00b\x1b[31m\u202egnp.exe \ud800 |\n| `x` *y* [z](http://example.org) @all #1 \\",
]


def hostile(text: str) -> Report:
    """A report with `text` in every field."""
    reach = Ranges(text, 4, 0, 1e-9, 0.2, 0.3, 0.4, 90.0, 9.0, 30.0)
    check = Check(text, text, text, float("inf"), 1e-10, float("nan"), False, text)
    steps = (Step(text, text, text, (START,)), Step("conv2d", f"4->4 3x3 {text}", text, (0,), 3))
    fold = FoldLine(text, text, text, 1e-16, steps, (text,), Weights((replace(reach, per_tensor=40.0),), reach))
    return Report(
        folds=(fold, replace(fold, error=float("inf"))),
        refusals=(RefusalLine(text, text, text, text, 0.5), RefusalLine(f"2{text}", text, text, text)),
        before=COUNTS,
        after=COUNTS,
        verification=Verification((check,)),
        dead=(DeadWeight(text, text, text, 3, 12, text),),
        decisions=(DecisionLine(text, text, text, text, text), DecisionLine(f"2{text}", text, text, text, "")),
        model=text,
        inputs=text,
    )
