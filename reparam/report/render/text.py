"""A report in a terminal."""

from __future__ import annotations

from tabulate import tabulate

from reparam.errors import visible
from reparam.report.outcome import Outcome
from reparam.report.render import words


def as_text(outcome: Outcome) -> str:
    """Tables and lists, leaving out those that are empty, and without invisible characters."""
    parts = [
        _folds_table(outcome),
        tabulate(words.counts(outcome), ("", "before", "after"), colalign=_alignment("lrr"), disable_numparse=True),
        _refusals_list(outcome),
        _dead_table(outcome),
        _decision_list(outcome),
        outcome.worth,
        words.verdict(outcome),
    ]
    return visible("\n\n".join(filter(None, parts)))


def _folds_table(outcome: Outcome) -> str:
    if not outcome.folds:
        return "Nothing to fold."
    headers, rows = words.folds(outcome)
    return tabulate(rows, headers, disable_numparse=True)


def _refusals_list(outcome: Outcome) -> str:
    """Each reason once, with one place as an example and the number of the others."""
    lines = [
        f"  {reason.example}" + (f" (and {len(reason.lines) - 1} more)" if len(reason.lines) > 1 else "")
        for reason in outcome.reasons()
    ]
    return "\n".join([f"{words.KEPT}:", *lines]) if lines else ""


def _dead_table(outcome: Outcome) -> str:
    if not outcome.dead:
        return ""
    return tabulate(words.dead(outcome), words.DEAD, colalign=_alignment("lllrrl"), disable_numparse=True)


def _decision_list(outcome: Outcome) -> str:
    """The decisions by what settled them, the first few of each."""
    lines = [f"  {reason}: {words.first(places)}" for reason, places in words.decisions_by_reason(outcome).items()]
    return "\n".join([f"{words.DECISIONS}:", *lines]) if lines else ""


def _alignment(columns: str) -> list[str]:
    """`tabulate`'s alignments from a letter for each column."""
    return [{"l": "left", "r": "right"}[letter] for letter in columns]
