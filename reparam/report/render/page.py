"""A report as one page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files

import torch

from reparam.compare.bench import Comparison, Spread
from reparam.compare.verification import Check, Verification
from reparam.report.outcome import FoldLine, Outcome, Reason, percent
from reparam.report.quantisation import Weights
from reparam.report.render import charts, words
from reparam.report.render.charts import Bar, Scale
from reparam.report.render.diagram import diagram, shape_of, shorthand
from reparam.report.render.markup import Markup, joined, tag

_OPEN = 8  # so many of the distinct blocks are shown at once, the others on demand


def as_html(outcome: Outcome, latency: Comparison | None = None) -> str:
    """The page, in UTF-8 once written; `latency` is what `benchmark` has measured, the original first."""
    style, script = (
        Markup((files("reparam.report.render") / f"page.{kind}").read_text("utf-8")) for kind in ("css", "js")
    )
    title = words.title(outcome)
    # Nothing is loaded from anywhere, and no script or style runs but these two, whatever a name may hold.
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    parts = [_blocks, _equality, _quantisation, _folds, _kept, _rest]
    sections = [section for part in parts if (section := part(outcome))]
    body = (_header(outcome, title), _summary(outcome, latency), _size(outcome, latency), *sections, _footer())
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *body), tag("script", script)), lang="en")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- pieces


def _section(name: str, title: str, *children: str) -> Markup:
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def _table(label: str, headers: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> Markup:
    """A table that scrolls inside itself, without columns that are empty; the columns `numbers` stand to the right."""
    cells = list(rows)
    columns = [i for i in range(len(headers)) if any(row[i] for row in cells)]
    kinds = dict.fromkeys(numbers, "number")
    head = tag("tr", *(tag("th", headers[i], scope="col", class_=kinds.get(i)) for i in columns))
    body = (tag("tr", *(tag("td", row[i], class_=kinds.get(i)) for i in columns)) for row in cells)
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _searchable(name: str, label: str, table: Markup) -> Markup:
    """A table with a field that leaves the rows in which a text occurs; hidden where no script runs."""
    field = tag("input", type="search", id=f"{name}-search", placeholder="a module, an operation, a word …",
                autocomplete="off", spellcheck="false")  # fmt: skip
    found = tag("output", for_=f"{name}-search", aria_live="polite")
    search = tag("p", tag("label", label, for_=f"{name}-search"), field, found, class_="search", hidden=True)
    return tag("div", search, table, class_="searchable")


def _code(text: str) -> Markup:
    return tag("code", text)


def _note(*children: str) -> Markup:
    return tag("p", *children, class_="note")


def _more(summary: str, *children: str) -> Markup:
    return tag("details", tag("summary", summary), *children)


def _places(places: Sequence[str]) -> Markup:
    """The first of them; the others on demand."""
    first = _code(places[0])
    if len(places) == 1:
        return first
    others = tag("ul", *(tag("li", _code(place)) for place in places[1:]))
    return joined([first, _more(f"and {len(places) - 1} more", others)])


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _short(number: float) -> str:
    """Three digits and a unit: 12, 3.46 k, 25.6 M."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}" if unit else f"{number:g}"
        number /= 1000
    return f"{number:,.3g} T"


def _change(before: float, after: float) -> str:
    """How much less (or more) it is, in percent."""
    if not before:
        return "±0 %"
    share = after / before - 1
    return f"{'−' if share < 0 else '+'}{percent(abs(share))}" if abs(share) > 5e-5 else "±0 %"


# --- sections


def _header(outcome: Outcome, title: str) -> Markup:
    worth = tag("p", outcome.worth, class_="about")
    return tag("header", tag("h1", title), *_about(outcome), _verdict(outcome), worth)


def _about(outcome: Outcome) -> list[Markup]:
    if not outcome.inputs:
        return []
    return [tag("p", "Converted with example inputs of ", _code(outcome.inputs), ".", class_="about")]


def _verdict(outcome: Outcome) -> Markup:
    found = outcome.verification
    if found is None:
        text = words.unproven(outcome) if outcome.folds else "Nothing was folded"
        why = tag("span", "the reasons are below") if not outcome.folds and outcome.refusals else ""
        return tag("p", tag("strong", text), why, class_="verdict open")
    if not found.ok:
        return tag("p", tag("strong", "✗ Not equal"), tag("span", f"{found.worst}"), class_="verdict wrong")
    text = f"float64 error {_error(found.fp64_error)} of the largest output"
    return tag("p", tag("strong", "✓ Equal to the original"), tag("span", text), class_="verdict right")


def _summary(outcome: Outcome, latency: Comparison | None) -> Markup:
    before, after = outcome.before, outcome.after
    ran = ((key, words.COUNTED[key]) for key in ("convs", "norms", "elementwise"))
    tiles = [
        ("regions folded", f"{len(outcome.folds):,}", ""),
        *((label, f"{getattr(after, key):,}", f"of {getattr(before, key):,}") for key, label in ran),
        ("parameters", _change(before.parameters, after.parameters), ""),
        ("multiply-adds", _change(before.macs, after.macs), ""),
        *(
            [("time, predicted", _change(outcome.predicted.before, outcome.predicted.after), "")]
            if outcome.predicted is not None
            else []
        ),
        *([("times as fast", f"{1 / _fastest(latency).median:.2f}", "")] if latency is not None else []),
    ]
    shown = (
        tag("div", tag("dt", label), tag("dd", number, tag("small", of))) for label, number, of in tiles if of != "of 0"
    )
    return tag("dl", *shown, class_="tiles", aria_label="Summary")


def _fastest(latency: Comparison) -> Spread:
    """The ratio to the baseline of the fastest of the other models."""
    ratios = [latency.ratio(timing.name) for timing in latency.timings[1:]] or [latency.ratio(latency.timings[0].name)]
    return min(ratios, key=lambda ratio: ratio.median)


def _size(outcome: Outcome, latency: Comparison | None) -> Markup:
    def card(title: str, change: str, given: Sequence[Bar]) -> Markup:
        return tag("figure", tag("figcaption", title, tag("strong", change)), charts.bars(title, given))

    cards = [
        card(title, _change(was, now), [Bar("before", was, _short(was)), Bar("after", now, _short(now))])
        for title, was, now in (
            ("Parameters", outcome.before.parameters, outcome.after.parameters),
            ("Multiply-adds", outcome.before.macs, outcome.after.macs),
        )
    ]
    notes = []
    if latency is not None:
        timed = [
            Bar(each.name, each.wall.median, f"{each.wall.median * 1e3:.3g} ms", each.wall.low, each.wall.high)
            for each in latency.timings
        ]
        cards.append(card("Latency", _change(1, _fastest(latency).median), timed))
        rounds = len(latency.timings[0].wall_samples)
        notes.append(
            _note(f"Latency: median and quartiles of {rounds} rounds in turns, inputs {latency.inputs} on "
                  f"{latency.device}, {_plural(latency.threads, 'thread')}.")
        )  # fmt: skip
    table = _table("What runs, before and after", ("", "before", "after"), words.counted(outcome), numbers=(1, 2))
    return _section("size", "What it is worth", tag("div", *cards, class_="cards"), *notes, _more("In numbers", table))


def _blocks(outcome: Outcome) -> Markup | None:
    kinds: dict[tuple[object, ...], list[FoldLine]] = {}
    for fold in outcome.folds:
        kinds.setdefault(shape_of(fold), []).append(fold)
    ordered = sorted(kinds.values(), key=lambda alike: len(alike) * len(alike[0].steps), reverse=True)
    figures = [_block(picture, alike) for alike in ordered if (picture := diagram(alike[0]))]
    if not figures:
        return None
    note = _note(
        "Each kind of block once: the operations between two tensors as they were trained, and what computes the same "
        "now. Point at a box for the module that it comes from."
    )
    others = figures[_OPEN:]
    rest = [_more(f"{_plural(len(others), 'more kind')} of blocks", tag("div", *others, class_="blocks"))]
    shown = tag("div", *figures[:_OPEN], class_="blocks")
    return _section("blocks", "Blocks", note, shown, *(rest if others else []))


def _block(picture: Markup, alike: Sequence[FoldLine]) -> Markup:
    first, others = alike[0], alike[1:]
    caption = [tag("strong", _code(first.name)), tag("span", f"{first.before} → {shorthand(first.after)}")]
    if others:
        listed = tag("ul", *(tag("li", _code(fold.name), " ", tag("span", shorthand(fold.after))) for fold in others))
        caption.append(_more(f"{_plural(len(others), 'more block')} like it", listed))
    scroll = tag("div", picture, class_="scroll", tabindex=0, role="region", aria_label=f"Diagram of {first.name}")
    return tag("figure", scroll, tag("figcaption", *caption))


def _equality(outcome: Outcome) -> Markup | None:
    measured = [fold for fold in outcome.folds if fold.error is not None]
    parts: list[Markup] = []
    if measured:
        plot = tag("div", charts.errors(measured), class_="scroll", tabindex=0, role="region", aria_label="Errors")
        caption = tag("figcaption", "Float64 error of every fold on its own, relative to its largest output")
        parts.append(tag("figure", plot, caption, class_="wide"))
    if outcome.verification is not None:
        parts += _checks(outcome.verification)
    return _section("equality", "Is it equal?", *parts) if parts else None


def _checks(found: Verification) -> list[Markup]:
    rows = [(c.inputs, c.kind, *(_numbers(c) if c.compared else [""] * 4), _passed(c)) for c in found.shown()]
    headers = ("inputs", "compared in", "worst output", "error", "original's own", "bound", "verdict")
    note = _note(
        f"{_plural(len(found.checks), 'comparison')} of the whole model; of each inputs the worst output. The "
        "original's own error is that of the trained model in its own dtype, against float64: the bound rests on it."
    )
    return [note, _table("Comparisons of the whole model", headers, rows, numbers=(3, 4, 5))]


def _numbers(check: Check) -> list[str]:
    noise = _error(check.noise) if check.noise else ""  # it is measured where a bound rests on it
    return [_code(check.name), _error(check.error), noise, _error(check.bound)]


def _passed(check: Check) -> Markup:
    if not check.compared:
        return joined([check.detail])
    sign = tag("span", "✓ ok", class_="fine") if check.passed else tag("span", "✗ FAILED", class_="warning")
    return joined([sign, f" {check.detail}" if check.detail else ""])


def _error(error: float) -> str:
    return f"{error:.1e}" if error else "0"


def _quantisation(outcome: Outcome) -> Markup | None:
    layers = [fold.weights for fold in outcome.folds if fold.weights is not None]
    if not layers:
        return None
    layers.sort(key=lambda each: each.bits_lost, reverse=True)
    scale = Scale.of([each for layer in layers for each in (layer.after, *layer.before)])
    suffering = [layer for layer in layers if layer.suffers]
    others = layers[len(suffering) :]
    if suffering:
        how = "loses" if len(suffering) == 1 else "lose"
        verdict = tag(
            "p", tag("strong", f"▲ {_plural(len(suffering), 'layer')} of {len(layers)} {how} a bit or more"),
            tag("span", f"the most: {suffering[0].bits_lost:.1f} bits, at ", _code(suffering[0].after.name)),
            class_="verdict warned",
        )  # fmt: skip
    else:
        verdict = tag("p", tag("strong", "✓ No layer loses a bit by folding"), class_="verdict right")
    note = _note(
        "Folding multiplies each channel by a factor of its own. Where the ranges of the channels end up far apart and "
        "int8 has one scale for the whole tensor, the largest decides the step for all. Shown is the median channel; "
        "before: the worst of the kernels that went into a layer. A scale per output channel mends most of it; where "
        "single taps stick out, leave the layer in 16 bits, or train the folded model on with quantisation. Only "
        "weights are looked at, and nothing has been quantised."
    )
    parts = [_weights("Layers that lose a bit or more", suffering, scale)] if suffering else []
    if others:
        table = _weights("Layers that are as good as before", others, scale)
        parts.append(_more(f"{_plural(len(others), 'layer')} as good as before", table) if suffering else table)
    return _section("quantisation", "Quantisation after folding", verdict, note, *parts)


def _weights(label: str, layers: Sequence[Weights], scale: Scale) -> Markup:
    ranges = tag("span", "channel ranges, ", tag("i", "before"), " and ", tag("b", "after"), class_="legend")
    headers = ("layer", joined([ranges, charts.axis(scale)]), "largest ÷ median", "int8, one scale",
               "bits lost", "int8, one per channel", "what to do")  # fmt: skip
    return _table(label, headers, (_layer(each, scale) for each in layers), numbers=(2, 3, 4, 5))


def _layer(layer: Weights, scale: Scale) -> tuple[str, ...]:
    worst, after = layer.worst, layer.after
    return (
        _code(after.name),
        charts.strip(worst, after, scale, layer.suffers),
        _arrowed(worst.ratio if worst else None, after.ratio, "{:.1f}".format),
        joined([_arrowed(worst.per_tensor if worst else None, after.per_tensor, "{:.0f}".format), " dB"]),
        tag("span", f"▲ {layer.bits_lost:.1f}", class_="warning") if layer.suffers else f"{layer.bits_lost:.1f}",
        f"{after.per_channel:.0f} dB",
        layer.advice,
    )


def _arrowed(before: float | None, after: float, form: Callable[[float], str]) -> str:
    return form(after) if before is None else f"{form(before)} → {form(after)}"


def _folds(outcome: Outcome) -> Markup | None:
    if not outcome.folds:
        return None
    rows = (
        (_code(f.name), f.before, shorthand(f.after), "" if f.error is None else _error(f.error),
         words.times(f.predicted), words.times(f.measured))
        for f in outcome.folds
    )  # fmt: skip
    table = _table("Every fold", words.FOLDED, rows, numbers=(3, 4, 5))
    return _section("folds", "Every fold", _searchable("folds", "Search the folds", table))


def _kept(outcome: Outcome) -> Markup | None:
    reasons = outcome.reasons()
    if not reasons:
        return None
    headers = ("where", "operation", "why it is kept", "what would change it", "a naive fold is wrong by", "times")
    table = _table("What was kept, and why", headers, map(_reason, reasons), numbers=(4, 5))
    return _section("kept", words.KEPT, _searchable("kept", "Search the reasons", table))


def _reason(reason: Reason) -> tuple[str, ...]:
    line = reason.example
    places = dict.fromkeys([line.where, *(each.where for each in reason.lines)])
    wrong = "" if line.naive_error is None else percent(line.naive_error)
    return _places(list(places)), _code(line.operation), line.reason, line.remedy, wrong, f"{len(reason.lines):,}"


def _rest(outcome: Outcome) -> Markup | None:
    parts: list[Markup] = []
    if outcome.dead:
        rows = ((_code(name), *others) for name, *others in words.dead(outcome))
        note = _note("No output of the recorded run depends on it; prune=True removes what can be removed.")
        parts += [tag("h3", "Dead weight"), note, _table("Dead weight", words.DEAD, rows, numbers=(3, 4))]
    if outcome.baked:
        rows_ = ((_places(where), what) for what, where in outcome.looks().items())
        parts += [tag("h3", "Other ways"), _note(f"{words.BAKED}."), _table("Other ways", ("where", "what"), rows_)]
    return _section("rest", "Besides", *parts) if parts else None


def _footer() -> Markup:
    return tag("footer", f"reparam {version('reparam')}, torch {torch.__version__}")
