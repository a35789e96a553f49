"""A report in a terminal."""

from __future__ import annotations

from tabulate import tabulate

from reparam.report.outcome import Outcome
from reparam.report.render import words


def as_text(outcome: Outcome) -> str:
    """Tables, each only where there is something in it."""
    parts = [_folds, _counts, _refusals, _dead, _baked, _worth, words.verdict]
    return "\n\n".join(text for text in (part(outcome) for part in parts) if text)


def _worth(outcome: Outcome) -> str:
    return outcome.worth


def _folds(outcome: Outcome) -> str:
    if not outcome.folds:
        return "Nothing to fold."
    headers, rows = words.folds(outcome)
    return tabulate(rows, headers=headers, disable_numparse=True)


def _counts(outcome: Outcome) -> str:
    headers, align = ("", "before", "after"), ("left", "right", "right")
    return tabulate(words.counted(outcome), headers=headers, colalign=align, disable_numparse=True)


def _refusals(outcome: Outcome) -> str:
    """Every reason once, with how often and where it was met first."""
    lines = [
        f"  {reason.example}" + (f" (and {len(reason.lines) - 1} more)" if len(reason.lines) > 1 else "")
        for reason in outcome.reasons()
    ]
    return "\n".join([f"{words.KEPT}:", *lines]) if lines else ""


def _dead(outcome: Outcome) -> str:
    if not outcome.dead:
        return ""
    align = ("left", "left", "left", "right", "right", "left")
    return tabulate(words.dead(outcome), headers=words.DEAD, colalign=align, disable_numparse=True)


def _baked(outcome: Outcome) -> str:
    """Every kind of look once, with the first modules that did."""
    lines = [f"  {words.some(where)}: {what}" for what, where in outcome.looks().items()]
    return "\n".join([f"{words.BAKED}:", *lines]) if lines else ""
