"""The wording that all forms of a report share."""

from __future__ import annotations

from collections.abc import Sequence

from reparam.compare.levels import NONE
from reparam.report.outcome import Gain, Outcome, Reason, percent

COUNTED = {
    "convs": "convolutions and linear layers",
    "norms": "batch norms",
    "elementwise": "sums and products",
    "parameters": "parameters",
    "macs": "multiply-adds",
}
FOLDS = ("folded", "what it was", "what it is", "fp64 error", "predicted, us", "measured, us")
_FIRST_TIME = 4  # the columns of FOLDS from here on are times
REFUSALS = ("where", "operation", "why", "what would change it", "error of a naive fold", "count")
DEAD = ("dead weight", "kind", "in eval", "elements", "bytes", "fate")
KEPT = "Kept as they are"
DECISIONS = "Decided by sizes, by numbers of the input or by the state of the process"
FOLDS_ALONE = "Each fold verified alone"


def title(outcome: Outcome) -> str:
    """The heading of the report."""
    return f"{outcome.model or 'A model'}{', folded' if outcome.folds else ''}"


def counts(outcome: Outcome) -> list[tuple[str, str, str]]:
    """What runs before and after: a label and two numbers in each row."""
    before, after = outcome.before, outcome.after
    return [(label, f"{getattr(before, key):,}", f"{getattr(after, key):,}") for key, label in COUNTED.items()]


def folds(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of the folds, without the columns of times that are empty."""
    rows = [
        (f.name, f.before, f.after, "" if f.error is None else f"{f.error:.1e}", times(f.predicted), times(f.measured))
        for f in outcome.folds
    ]
    columns = [i for i in range(len(FOLDS)) if i < _FIRST_TIME or any(row[i] for row in rows)]
    return tuple(FOLDS[i] for i in columns), [tuple(row[i] for i in columns) for row in rows]


def times(gain: Gain | None) -> str:
    """Microseconds before and after; empty where nothing was timed."""
    return "" if gain is None else f"{gain.before:,.4g} -> {gain.after:,.4g}"


def naive_error(reason: Reason) -> str:
    """The error of a fold that ignores the reason; empty where it was not measured."""
    error = reason.example.naive_error
    return "" if error is None else percent(error)


def dead(outcome: Outcome) -> list[tuple[str, str, str, str, str, str]]:
    """The rows under `DEAD`."""
    return [(d.name, d.kind, d.why, f"{d.elements:,}", f"{d.bytes:,}", d.fate) for d in outcome.dead]


def decisions_by_reason(outcome: Outcome) -> dict[str, list[str]]:
    """The decisions by what settled them, in order."""
    places: dict[str, list[str]] = {}
    for line in outcome.decisions:
        text = f"{line.where} ({line.at}): {line.expression} is {line.value}"
        places.setdefault(line.settled or "not settled, so nothing behind it folds", []).append(text)
    return places


def first(places: Sequence[str], limit: int = 3) -> str:
    """The first few places, and how many more there are."""
    more = f" and {len(places) - limit} more" if len(places) > limit else ""
    return ", ".join(places[:limit]) + more


def unverified(outcome: Outcome) -> str:
    """What was checked where the whole models were not compared."""
    if outcome.checked == NONE:
        return "Not verified"
    return f"{FOLDS_ALONE}: float64 error {outcome.fold_error:.2g}; the whole models were not compared"


def verdict(outcome: Outcome) -> str:
    """The result of the verification; empty where there was nothing to verify."""
    if outcome.verification is None:
        return f"{unverified(outcome)}." if outcome.folds else ""
    return f"Verified: {outcome.verification.summary}"
