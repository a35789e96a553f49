"""What every form of a report says in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from reparam.compare.levels import NOTHING
from reparam.report.outcome import Counts, Gain, Outcome

COUNTED = {
    "convs": "convolutions and linear layers",
    "norms": "batch norms",
    "elementwise": "sums and products",
    "parameters": "parameters",
    "macs": "multiply-adds",
}
FOLDED = ("folded", "what it was", "what it is", "fp64 error", "predicted, us", "measured, us")
_TIMES = 4  # of the columns, those from here on are times
DEAD = ("dead weight", "which is", "in eval", "elements", "bytes", "here")
BAKED = "May take another way for other inputs (no fold relies on the way recorded)"
KEPT = "Kept as they are"
FOLDS_ALONE = "Each fold verified alone"


def title(outcome: Outcome) -> str:
    """Whose report it is."""
    return f"{outcome.model or 'A model'}{', folded' if outcome.folds else ''}"


def counted(outcome: Outcome) -> list[tuple[str, str, str]]:
    """What runs, before and after: a text and two numbers."""
    return [(text, _number(outcome.before, key), _number(outcome.after, key)) for key, text in COUNTED.items()]


def _number(counts: Counts, key: str) -> str:
    return f"{getattr(counts, key):,}"


def folded(outcome: Outcome) -> list[tuple[str, ...]]:
    """The rows under `FOLDED`, what was not timed is empty."""
    return [
        (f.name, f.before, f.after, "" if f.error is None else f"{f.error:.1e}", times(f.predicted), times(f.measured))
        for f in outcome.folds
    ]


def folds(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows, without the times that are not there."""
    rows = folded(outcome)
    shown = [i for i in range(len(FOLDED)) if i < _TIMES or any(row[i] for row in rows)]
    return tuple(FOLDED[i] for i in shown), [tuple(row[i] for i in shown) for row in rows]


def times(gain: Gain | None) -> str:
    return "" if gain is None else f"{gain.before:,.4g} -> {gain.after:,.4g}"


def dead(outcome: Outcome) -> list[tuple[str, str, str, str, str, str]]:
    """The rows under `DEAD`."""
    return [(d.name, d.kind, d.why, f"{d.elements:,}", f"{d.bytes:,}", d.fate) for d in outcome.dead]


def some(places: Sequence[str], limit: int = 3) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(places) - limit} more" if len(places) > limit else ""
    return ", ".join(places[:limit]) + more


def unproven(outcome: Outcome) -> str:
    """What was checked of folds that were not compared as a whole model."""
    if outcome.checked == NOTHING:
        return "Not verified"
    return f"{FOLDS_ALONE}: float64 error {outcome.fold_error:.2g}; the whole models were not compared"


def verdict(outcome: Outcome) -> str:
    """What verification has found; empty where there was nothing to verify."""
    if outcome.verification is None:
        return f"{unproven(outcome)}." if outcome.folds else ""
    return f"Verified: {outcome.verification.summary}"
