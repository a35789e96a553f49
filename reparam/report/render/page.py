"""A report as one page of HTML that refers to nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files

import torch

from reparam.compare.bench import Comparison, Spread, Timing
from reparam.compare.verification import Check, Verification
from reparam.report.outcome import FoldLine, Outcome, Reason
from reparam.report.quantisation import Weights
from reparam.report.render import charts, words
from reparam.report.render.charts import Bar, Scale
from reparam.report.render.diagram import diagram, shape_of, shorthand
from reparam.report.render.elements import (
    change,
    code,
    details,
    note,
    place_list,
    plural,
    scientific,
    scrolled,
    searchable,
    section,
    table,
    with_unit,
)
from reparam.report.render.markup import Markup, joined, tag
from reparam.version import __version__

_OPEN_BLOCKS = 8  # kinds of blocks that show at once; the others have to be opened


def as_html(outcome: Outcome, latency: Comparison | None = None) -> str:
    """The page as text, to be written as UTF-8. `latency`: the result of `benchmark`, the original first."""
    style, script = (
        Markup((files("reparam.report.render") / f"page.{kind}").read_text("utf-8")) for kind in ("css", "js")
    )
    title = words.title(outcome)
    # The browser loads nothing, and runs no script or style but these two, whatever a name may hold.
    policy = "; ".join([
        "default-src 'none'", f"style-src {_source_hash(style)}", f"script-src {_source_hash(script)}",
        "base-uri 'none'", "form-action 'none'",  # these two do not fall back on default-src
    ])  # fmt: skip
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    sections = (
        _size_section(outcome, latency),
        _blocks_section(outcome),
        _equality_section(outcome),
        _quantisation_section(outcome),
        _folds_section(outcome),
        _refusals_section(outcome),
        _findings_section(outcome),
    )
    body = (_header(outcome, title), _tiles(outcome, latency), *filter(None, sections), _footer())
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *body), tag("script", script)), lang="en")


def _source_hash(text: str) -> str:
    """The source of a script or style as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- the head of the page


def _header(outcome: Outcome, title: str) -> Markup:
    worth = tag("p", outcome.worth, class_="about")
    about = "Converted with example inputs of ", code(outcome.inputs), "."
    inputs = [tag("p", *about, class_="about")] if outcome.inputs else []
    return tag("header", tag("h1", title), *inputs, _verdict_badge(outcome), worth)


def _verdict_badge(outcome: Outcome) -> Markup:
    verification = outcome.verification
    if verification is None:
        text = words.unverified(outcome) if outcome.folds else "Nothing was folded"
        why = tag("span", "the reasons are below") if not outcome.folds and outcome.refusals else ""
        return tag("p", tag("strong", text), why, class_="verdict open")
    if not verification.ok:
        return tag("p", tag("strong", "✗ Not equal"), tag("span", f"{verification.worst}"), class_="verdict wrong")
    text = f"float64 error {scientific(verification.fp64_error)} of the largest output"
    return tag("p", tag("strong", "✓ Equal to the original"), tag("span", text), class_="verdict right")


def _tiles(outcome: Outcome, latency: Comparison | None) -> Markup:
    before, after = outcome.before, outcome.after
    tiles = [("regions folded", f"{len(outcome.folds):,}", "")]
    tiles += [
        (words.COUNTED[key], f"{getattr(after, key):,}", f"of {getattr(before, key):,}")
        for key in ("convs", "norms", "elementwise")
        if getattr(before, key)
    ]
    tiles.append(("parameters", change(before.parameters, after.parameters), ""))
    tiles.append(("multiply-adds", change(before.macs, after.macs), ""))
    if outcome.predicted is not None:
        tiles.append(("time, predicted", change(outcome.predicted.before, outcome.predicted.after), ""))
    if latency is not None:
        tiles.append(("times as fast", f"{1 / _fastest(latency).median:.2f}", ""))
    boxes = (tag("div", tag("dt", label), tag("dd", number, tag("small", of))) for label, number, of in tiles)
    return tag("dl", *boxes, class_="tiles", aria_label="Summary")


def _fastest(latency: Comparison) -> Spread:
    """The smallest ratio to the baseline among the other models."""
    ratios = [latency.ratio(timing.name) for timing in latency.timings[1:]] or [latency.ratio(latency.timings[0].name)]
    return min(ratios, key=lambda ratio: ratio.median)


def _footer() -> Markup:
    return tag("footer", f"reparam {__version__}, torch {torch.__version__}")


# --- sections


def _size_section(outcome: Outcome, latency: Comparison | None) -> Markup:
    def card(title: str, change_text: str, bars: Sequence[Bar]) -> Markup:
        return tag("figure", tag("figcaption", title, tag("strong", change_text)), charts.bar_chart(title, bars))

    def counted(title: str, before: int, after: int) -> Markup:
        bars = [Bar("before", before, with_unit(before)), Bar("after", after, with_unit(after))]
        return card(title, change(before, after), bars)

    cards = [
        counted("Parameters", outcome.before.parameters, outcome.after.parameters),
        counted("Multiply-adds", outcome.before.macs, outcome.after.macs),
    ]
    notes = []
    if latency is not None:
        cards.append(card("Latency", change(1, _fastest(latency).median), list(map(_latency_bar, latency.timings))))
        rounds = len(latency.timings[0].wall_samples)
        notes.append(
            note(f"Latency: median and quartiles of {rounds} interleaved rounds with inputs {latency.inputs} on "
                 f"{latency.device}, {plural(latency.threads, 'thread')}.")
        )  # fmt: skip
    numbers = table("Size before and after", ("", "before", "after"), words.counts(outcome), numbers=(1, 2))
    return section("size", "Size and speed", tag("div", *cards, class_="cards"), *notes, details("In numbers", numbers))


def _latency_bar(timing: Timing) -> Bar:
    wall = timing.wall
    return Bar(timing.name, wall.median, f"{wall.median * 1e3:.3g} ms", wall.low, wall.high)


def _blocks_section(outcome: Outcome) -> Markup | None:
    kinds: dict[tuple[object, ...], list[FoldLine]] = {}
    for fold in outcome.folds:
        kinds.setdefault(shape_of(fold), []).append(fold)
    ordered = sorted(kinds.values(), key=lambda alike: len(alike) * len(alike[0].steps), reverse=True)
    figures = [_block_figure(picture, alike) for alike in ordered if (picture := diagram(alike[0]))]
    if not figures:
        return None
    explanation = note(
        "Each kind of block once: on the left the operations as they were trained, on the right what computes the same "
        "now. Point at a box to see its module."
    )
    shown = tag("div", *figures[:_OPEN_BLOCKS], class_="blocks")
    others = figures[_OPEN_BLOCKS:]
    rest = [details(f"{plural(len(others), 'more kind')} of blocks", tag("div", *others, class_="blocks"))]
    return section("blocks", "Blocks", explanation, shown, *(rest if others else []))


def _block_figure(picture: Markup, alike: Sequence[FoldLine]) -> Markup:
    first, others = alike[0], alike[1:]
    caption = [tag("strong", code(first.name)), tag("span", f"{first.before} → {shorthand(first.after)}")]
    if others:
        names = tag("ul", *(tag("li", code(fold.name), " ", tag("span", shorthand(fold.after))) for fold in others))
        caption.append(details(f"{plural(len(others), 'more block')} like it", names))
    return tag("figure", scrolled(f"Diagram of {first.name}", picture), tag("figcaption", *caption))


def _equality_section(outcome: Outcome) -> Markup | None:
    measured = [fold for fold in outcome.folds if fold.error is not None]
    parts: list[Markup] = []
    if measured:
        caption = tag("figcaption", "Float64 error of each fold alone, relative to its largest output")
        parts.append(tag("figure", scrolled("Errors", charts.error_plot(measured)), caption, class_="wide"))
    if outcome.verification is not None:
        parts += _model_checks(outcome.verification)
    return section("equality", "Is it equal?", *parts) if parts else None


def _model_checks(verification: Verification) -> list[Markup]:
    rows = [
        (check.inputs, check.kind, *(_check_numbers(check) if check.compared else [""] * 4), _check_verdict(check))
        for check in verification.shown()
    ]
    headers = ("inputs", "compared in", "worst output", "error", "original's own", "bound", "verdict")
    explanation = note(
        f"{plural(len(verification.checks), 'comparison')} of the whole model; each row shows the output with the "
        "largest error. The original's own error is that of the trained model in its own dtype, against float64; the "
        "bound depends on it."
    )
    return [explanation, table("Comparisons of the whole model", headers, rows, numbers=(3, 4, 5))]


def _check_numbers(check: Check) -> list[str]:
    noise = scientific(check.noise) if check.noise else ""  # measured only where the bound depends on it
    return [code(check.name), scientific(check.error), noise, scientific(check.bound)]


def _check_verdict(check: Check) -> Markup:
    if not check.compared:
        return joined([check.detail])
    verdict = tag("span", "✓ ok", class_="fine") if check.passed else tag("span", "✗ FAILED", class_="warning")
    return joined([verdict, f" {check.detail}" if check.detail else ""])


def _quantisation_section(outcome: Outcome) -> Markup | None:
    layers = [fold.weights for fold in outcome.folds if fold.weights is not None]
    if not layers:
        return None
    layers.sort(key=lambda layer: layer.bits_lost, reverse=True)
    scale = Scale.of([ranges for layer in layers for ranges in (layer.after, *layer.before)])
    suffering = [layer for layer in layers if layer.suffers]
    others = layers[len(suffering) :]
    if suffering:
        verb = "loses" if len(suffering) == 1 else "lose"
        verdict = tag(
            "p", tag("strong", f"▲ {plural(len(suffering), 'layer')} of {len(layers)} {verb} a bit or more"),
            tag("span", f"the worst: {suffering[0].bits_lost:.1f} bits, in ", code(suffering[0].after.name)),
            class_="verdict warned",
        )  # fmt: skip
    else:
        verdict = tag("p", tag("strong", "✓ No layer loses a bit by folding"), class_="verdict right")
    explanation = note(
        "Folding multiplies each channel by a factor of its own. Where this drives the ranges of the channels apart, "
        "and int8 has one scale for the whole tensor, the largest channel sets the step for all. The numbers are those "
        "of the median channel; “before” is the worst of the kernels that went into a layer. A scale per output "
        "channel mostly helps. Where single taps stick out, keep the layer in 16 bits, or fine-tune the folded model "
        "with fake quantisation. This is a forecast from the weights alone: nothing has been quantised."
    )
    parts = [_ranges_table("Layers that lose a bit or more", suffering, scale)] if suffering else []
    if others:
        fine = _ranges_table("Layers as good as before", others, scale)
        parts.append(details(f"{plural(len(others), 'layer')} as good as before", fine) if suffering else fine)
    return section("quantisation", "Quantisation after folding", verdict, explanation, *parts)


def _ranges_table(label: str, layers: Sequence[Weights], scale: Scale) -> Markup:
    legend = tag("span", "channel ranges, ", tag("i", "before"), " and ", tag("b", "after"), class_="legend")
    headers = ("layer", joined([legend, charts.range_axis(scale)]), "largest ÷ median", "int8, one scale",
               "bits lost", "int8, one per channel", "what to do")  # fmt: skip
    return table(label, headers, (_ranges_row(layer, scale) for layer in layers), numbers=(2, 3, 4, 5))


def _ranges_row(layer: Weights, scale: Scale) -> tuple[str, ...]:
    worst, after = layer.worst, layer.after
    return (
        code(after.name),
        charts.range_strip(worst, after, scale, layer.suffers),
        _before_and_after(worst.ratio if worst else None, after.ratio, "{:.1f}".format),
        joined([_before_and_after(worst.per_tensor if worst else None, after.per_tensor, "{:.0f}".format), " dB"]),
        tag("span", f"▲ {layer.bits_lost:.1f}", class_="warning") if layer.suffers else f"{layer.bits_lost:.1f}",
        f"{after.per_channel:.0f} dB",
        layer.advice,
    )


def _before_and_after(before: float | None, after: float, form: Callable[[float], str]) -> str:
    return form(after) if before is None else f"{form(before)} → {form(after)}"


def _folds_section(outcome: Outcome) -> Markup | None:
    if not outcome.folds:
        return None
    rows = (
        (code(fold.name), fold.before, shorthand(fold.after), "" if fold.error is None else scientific(fold.error),
         words.times(fold.predicted), words.times(fold.measured), fold.made_by)
        for fold in outcome.folds
    )  # fmt: skip
    folds = table("Every fold", (*words.FOLDS, "found by"), rows, numbers=(3, 4, 5))
    return section("folds", "Every fold", searchable("folds", "Search the folds", folds))


def _refusals_section(outcome: Outcome) -> Markup | None:
    reasons = outcome.reasons()
    if not reasons:
        return None
    rows = table("What was kept, and why", words.REFUSALS, map(_refusal_row, reasons), numbers=(4, 5))
    return section("kept", words.KEPT, searchable("kept", "Search the reasons", rows))


def _refusal_row(reason: Reason) -> tuple[str, ...]:
    line, count = reason.example, f"{len(reason.lines):,}"
    return place_list(reason.places), code(line.operation), line.reason, line.remedy, words.naive_error(reason), count


def _findings_section(outcome: Outcome) -> Markup | None:
    parts: list[Markup] = []
    if outcome.dead:
        rows = [(code(name), *others) for name, *others in words.dead(outcome)]
        explanation = note(
            "No output of the recorded run depends on these; prune=True removes those that no other input needs either."
        )
        parts += [tag("h3", "Dead weight"), explanation, table("Dead weight", words.DEAD, rows, numbers=(3, 4))]
    if outcome.decisions:
        causes = [(place_list(places), cause) for cause, places in words.decisions_by_reason(outcome).items()]
        flow = table("Decisions", ("decision", "why the folds hold either way"), causes)
        parts += [tag("h3", "Decisions"), note(f"{words.DECISIONS}."), flow]
    return section("findings", "Also found", *parts) if parts else None
