"""The plots of a page, as SVG: bars, the error of every fold, the ranges of a layer's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.compare.bounds import EXACT
from reparam.report.outcome import FoldLine
from reparam.report.quantisation import Ranges
from reparam.report.render.markup import Markup, tag


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, the number as text and, where it was measured, the quartiles."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None


_BAR_HEIGHT, _BAR_ROW, _BARS_WIDTH = 16, 42, 300


def bar_chart(title: str, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars from zero, each with its label above it on the left and its number on the right."""
    top_value = max((max(bar.value, bar.high or 0.0) for bar in bars), default=0.0) or 1.0
    parts: list[Markup] = [tag("title", f"{title}: {', '.join(f'{bar.label} {bar.text}' for bar in bars)}")]
    for i, bar in enumerate(bars):
        top, length = i * _BAR_ROW, _BARS_WIDTH * bar.value / top_value
        parts.append(tag("text", bar.label, x=0, y=top + 13))
        parts.append(tag("text", bar.text, x=_BARS_WIDTH, y=top + 13, class_="number"))
        parts.append(tag("rect", x=0, y=top + 20, width=_BARS_WIDTH, height=_BAR_HEIGHT, rx=3, class_="track"))
        kind = "before" if i == 0 else "after"
        parts.append(tag("rect", x=0, y=top + 20, width=round(length, 1), height=_BAR_HEIGHT, rx=3, class_=kind))
        if bar.low is not None and bar.high is not None:
            ends = [round((_BARS_WIDTH - 1) * end / top_value, 1) for end in (bar.low, bar.high)]
            y = top + 20 + _BAR_HEIGHT / 2
            path = f"M{ends[0]} {y}H{ends[1]}M{ends[0]} {y - 4}v8M{ends[1]} {y - 4}v8"
            parts.append(tag("path", d=path, class_="whisker"))
    return tag("svg", *parts, class_="bars", viewBox=f"0 0 {_BARS_WIDTH} {len(bars) * _BAR_ROW - 4}", role="img")


_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_LEFT, _PLOT_TOP = 1000, 200, 56, 14
_ZERO = -18  # the decade at which an error of exactly 0 is drawn: below all that float64 can show


def error_plot(folds: Sequence[FoldLine]) -> Markup:
    """A dot for the error of each fold, in order, on a logarithmic scale, and the bound. At least one has an error."""
    measured = [(fold, fold.error) for fold in folds if fold.error is not None]
    ceiling = max(math.log10(EXACT) + 1, *(math.ceil(_decade(error)) for _, error in measured))

    def y(decade: float) -> float:
        return round(_PLOT_TOP + (ceiling - decade) / (ceiling - _ZERO) * (_PLOT_HEIGHT - 2 * _PLOT_TOP), 1)

    worst, largest = max(measured, key=lambda pair: pair[1])
    about = f"Float64 error of each of {len(measured)} folds; the largest is {largest:.1e}, at {worst.name}"
    parts: list[Markup] = [tag("title", about)]
    for decade in range(_ZERO, int(ceiling) + 1, 2):
        label = "0" if decade == _ZERO else f"1e{decade}"
        parts.append(tag("path", d=f"M{_PLOT_LEFT} {y(decade)}H{_PLOT_WIDTH}", class_="grid"))
        parts.append(tag("text", label, x=_PLOT_LEFT - 8, y=y(decade) + 4, class_="number"))
    bound = y(math.log10(EXACT))
    parts.append(tag("path", d=f"M{_PLOT_LEFT} {bound}H{_PLOT_WIDTH}", class_="bound"))
    parts.append(tag("text", f"bound {EXACT:.0e}", x=_PLOT_WIDTH, y=bound - 6, class_="number bound"))
    step = (_PLOT_WIDTH - _PLOT_LEFT) / len(measured)
    for i, (fold, error) in enumerate(measured):
        dot = tag("title", f"{fold.name}: {error:.1e}")
        x = round(_PLOT_LEFT + step * (i + 0.5), 1)
        parts.append(tag("circle", dot, cx=x, cy=y(_decade(error)), r=min(4.0, max(2.0, step / 3)), class_="after"))
    return tag("svg", *parts, class_="errors", viewBox=f"0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}", role="img")


def _decade(error: float) -> float:
    """The decimal logarithm, not below the axis; 0 for an error that is not finite."""
    return _ZERO if error == 0 else max(_ZERO, math.log10(error)) if math.isfinite(error) else 0.0


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from 10**low to 10**high, shared by all layers of a table."""

    low: int
    high: int

    @classmethod
    def of(cls, layers: Sequence[Ranges]) -> Scale:
        """The scale that holds the ranges of at least one layer."""
        low = math.floor(math.log10(min(ranges.smallest for ranges in layers)))
        high = max(low + 1, math.ceil(math.log10(max(ranges.largest for ranges in layers))))
        return cls(max(low, high - _DECADES), high)

    def at(self, value: float) -> float:
        """The x-coordinate of a number above zero, in pixels; the left end for one below the scale."""
        share = max(0.0, (math.log10(value) - self.low) / (self.high - self.low))
        return round(_STRIP_MARGIN + (_STRIP_WIDTH - 2 * _STRIP_MARGIN) * share, 1)


_STRIP_WIDTH, _STRIP_MARGIN = 210, 17
_DECADES = 6  # a channel that is a millionth of another is as good as dead


def range_axis(scale: Scale) -> Markup:
    """The numbers of the axis."""
    step = max(1, math.ceil((scale.high - scale.low) / 4))
    texts = [
        tag("text", f"1e{decade}" if abs(decade) > 3 else f"{10.0**decade:g}", x=scale.at(10.0**decade), y=11)
        for decade in range(scale.low, scale.high + 1, step)
    ]
    label = tag("title", f"Largest weight of a channel, from 1e{scale.low} to 1e{scale.high}")
    return tag(
        "svg", label, *texts, class_="strip", viewBox=f"0 0 {_STRIP_WIDTH} 14", width=_STRIP_WIDTH, height=14,
        role="img",
    )  # fmt: skip


def range_strip(before: Ranges | None, after: Ranges, scale: Scale, warned: bool) -> Markup:
    """The ranges before (above) and after: a line from least to largest, thick between the quartiles, with a dot at
    the median."""
    rows = [(before, "before", "before", 7.0)] if before is not None else []
    rows.append((after, "after", "warned" if warned else "after", 19.0))
    texts = [f"{label}: {_range_text(ranges)}" for ranges, label, _, _ in rows]
    parts: list[Markup] = [tag("title", "Largest weight of a channel, " + "; ".join(texts))]
    grid = "".join(f"M{scale.at(10.0**decade)} 0V26" for decade in range(scale.low, scale.high + 1))
    parts.append(tag("path", d=grid, class_="grid"))
    for ranges, _, kind, y in rows:
        x = scale.at
        parts.append(tag("path", d=f"M{x(ranges.smallest)} {y}H{x(ranges.largest)}", class_=f"{kind} thin"))
        parts.append(tag("path", d=f"M{x(ranges.low)} {y}H{x(ranges.high)}", class_=f"{kind} thick"))
        parts.append(tag("circle", cx=x(ranges.median), cy=y, r=3, class_=kind))
    return tag(
        "svg", *parts, class_="strip", viewBox=f"0 0 {_STRIP_WIDTH} 26", width=_STRIP_WIDTH, height=26, role="img"
    )


def _range_text(ranges: Ranges) -> str:
    return f"{ranges.smallest:.2g} to {ranges.largest:.2g}, median {ranges.median:.2g}"
