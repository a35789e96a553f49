"""A report for a pull request or a wiki, in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reparam.compare.bench import Comparison
from reparam.report.outcome import Outcome
from reparam.report.render import words


def as_markdown(outcome: Outcome, latency: Comparison | None = None) -> str:
    """Headings and tables, leaving out those that are empty. Every text from a model is escaped."""
    parts = [f"# {_escaped(words.title(outcome))}", _escaped(words.verdict(outcome)), _escaped(outcome.worth)]
    parts.append(_pipe_table(("", "before", "after"), words.counts(outcome), numbers=(1, 2)))
    if latency is not None:
        headers = ("model", "ms per call (median)", "over the first")
        rows = [
            (timing.name, f"{timing.wall.median * 1e3:.3g}", f"{latency.ratio(timing.name).median:.3g}")
            for timing in latency.timings
        ]
        parts += ["## Latency", _pipe_table(headers, rows, numbers=(1, 2))]
    if outcome.folds:
        parts += ["## Folds", _pipe_table(*words.folds(outcome), numbers=(3, 4, 5))]
    parts += [*_quantisation_part(outcome), *_refusals_part(outcome)]
    if outcome.dead:
        parts += ["## Dead weight", _pipe_table(words.DEAD, words.dead(outcome), numbers=(3, 4))]
    if outcome.decisions:
        lines = [
            f"- {_escaped(f'{words.first(places)}: {cause}')}"
            for cause, places in words.decisions_by_reason(outcome).items()
        ]
        parts += ["## Decisions", _escaped(words.DECISIONS) + ":", "\n".join(lines)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _quantisation_part(outcome: Outcome) -> list[str]:
    layers = [fold.weights for fold in outcome.folds if fold.weights is not None and fold.weights.suffers]
    layers.sort(key=lambda layer: layer.bits_lost, reverse=True)
    if not layers:
        return []
    headers = ("layer", "largest ÷ median range", "int8 signal-to-noise, dB", "bits lost", "what to do")
    rows = [
        (
            layer.after.name,
            f"{layer.worst.ratio:.1f} → {layer.after.ratio:.1f}",
            f"{layer.worst.per_tensor:.0f} → {layer.after.per_tensor:.0f}",
            f"{layer.bits_lost:.1f}",
            layer.advice,
        )
        for layer in layers
        if layer.worst is not None
    ]
    return ["## Quantisation after folding", _pipe_table(headers, rows, numbers=(1, 2, 3))]


def _refusals_part(outcome: Outcome) -> list[str]:
    rows = [
        (
            words.first(reason.places),
            reason.example.operation,
            reason.example.reason,
            reason.example.remedy,
            words.naive_error(reason),
            str(len(reason.lines)),
        )
        for reason in outcome.reasons()
    ]
    return [f"## {words.KEPT}", _pipe_table(words.REFUSALS, rows, numbers=(4, 5))] if rows else []


def _pipe_table(headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; the columns `numbers` are aligned to the right."""
    rule = ["---:" if i in numbers else "---" for i in range(len(headers))]
    cells = [[*map(_escaped, headers)], rule, *([*map(_escaped, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _escaped(text: str) -> str:
    """One line without markup, neither Markdown's nor HTML's."""
    flat = "".join(char if char.isprintable() else " " for char in text)
    html = flat.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", html).replace("@", "&#64;")
