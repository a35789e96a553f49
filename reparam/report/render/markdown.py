"""A report for a pull request or a wiki, in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reparam.compare.bench import Comparison
from reparam.report.outcome import Outcome, percent
from reparam.report.render import words


def as_markdown(outcome: Outcome, latency: Comparison | None = None) -> str:
    """Headings and tables, each only where there is something in it; every text is escaped."""
    parts = [f"# {_escaped(words.title(outcome))}", _escaped(words.verdict(outcome)), _escaped(outcome.worth)]
    parts.append(_table(("", "before", "after"), words.counted(outcome), numbers=(1, 2)))
    if latency is not None:
        headers = ("model", "ms per call (median)", "over the first")
        rows = [
            (each.name, f"{each.wall.median * 1e3:.3g}", f"{latency.ratio(each.name).median:.3g}")
            for each in latency.timings
        ]
        parts += ["## Latency", _table(headers, rows, numbers=(1, 2))]
    if outcome.folds:
        parts += ["## Folds", _table(*words.folds(outcome), numbers=(3, 4, 5))]
    parts += [*_quantisation(outcome), *_kept(outcome)]
    if outcome.dead:
        parts += ["## Dead weight", _table(words.DEAD, words.dead(outcome), numbers=(3, 4))]
    if outcome.baked:
        looks = [f"- {_escaped(f'{words.some(where)}: {what}')}" for what, where in outcome.looks().items()]
        parts += ["## Besides", _escaped(words.BAKED) + ":", "\n".join(looks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quantisation(outcome: Outcome) -> list[str]:
    layers = [fold.weights for fold in outcome.folds if fold.weights is not None and fold.weights.suffers]
    layers.sort(key=lambda each: each.bits_lost, reverse=True)
    if not layers:
        return []
    headers = ("layer", "largest ÷ median range", "int8 signal-to-noise, dB", "bits lost", "what to do")
    rows = [
        (
            each.after.name,
            f"{each.worst.ratio:.1f} → {each.after.ratio:.1f}",
            f"{each.worst.per_tensor:.0f} → {each.after.per_tensor:.0f}",
            f"{each.bits_lost:.1f}",
            each.advice,
        )
        for each in layers
        if each.worst is not None
    ]
    return ["## Quantisation after folding", _table(headers, rows, numbers=(1, 2, 3))]


def _kept(outcome: Outcome) -> list[str]:
    headers = ("where", "operation", "why", "what would change it", "a naive fold is wrong by", "times")
    rows = [
        (
            words.some(list(dict.fromkeys(line.where for line in (reason.example, *reason.lines)))),
            reason.example.operation,
            reason.example.reason,
            reason.example.remedy,
            "" if reason.example.naive_error is None else percent(reason.example.naive_error),
            str(len(reason.lines)),
        )
        for reason in outcome.reasons()
    ]
    return [f"## {words.KEPT}", _table(headers, rows, numbers=(4, 5))] if rows else []


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    rule = ["---:" if i in numbers else "---" for i in range(len(headers))]
    cells = [[*map(_escaped, headers)], rule, *([*map(_escaped, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _escaped(text: str) -> str:
    """One line, in which nothing is markup: neither Markdown's nor HTML's."""
    flat = "".join(sign if sign.isprintable() else " " for sign in text)
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;")).replace(
        "@", "&#64;"
    )
