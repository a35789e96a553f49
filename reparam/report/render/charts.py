"""The plots of a page, as SVG: bars, the error of every fold, the ranges of a layer's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.compare.verification import EXACT
from reparam.report.outcome import FoldLine
from reparam.report.quantisation import Ranges
from reparam.report.render.markup import Markup, tag


@dataclass(frozen=True)
class Bar:
    """One bar: the number, how it is written, and, of a measured one, the quartiles."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None


_BAR, _ROW = 16, 42
_WIDE = 300


def bars(title: str, given: Sequence[Bar]) -> Markup:
    """Bars below one another, from zero, each with its label above it and its number at the right."""
    most = max((max(bar.value, bar.high or 0.0) for bar in given), default=0.0) or 1.0
    parts: list[Markup] = [tag("title", f"{title}: {', '.join(f'{bar.label} {bar.text}' for bar in given)}")]
    for i, bar in enumerate(given):
        top, length = i * _ROW, _WIDE * bar.value / most
        parts.append(tag("text", bar.label, x=0, y=top + 13))
        parts.append(tag("text", bar.text, x=_WIDE, y=top + 13, class_="number"))
        parts.append(tag("rect", x=0, y=top + 20, width=_WIDE, height=_BAR, rx=3, class_="track"))
        kind = "before" if i == 0 else "after"
        parts.append(tag("rect", x=0, y=top + 20, width=round(length, 1), height=_BAR, rx=3, class_=kind))
        if bar.low is not None and bar.high is not None:
            ends = [round((_WIDE - 1) * end / most, 1) for end in (bar.low, bar.high)]
            y = top + 20 + _BAR / 2
            path = f"M{ends[0]} {y}H{ends[1]}M{ends[0]} {y - 4}v8M{ends[1]} {y - 4}v8"
            parts.append(tag("path", d=path, class_="whisker"))
    return tag("svg", *parts, class_="bars", viewBox=f"0 0 {_WIDE} {len(given) * _ROW - 4}", role="img")


_PLOT, _HIGH, _LEFT, _TOP = 1000, 200, 56, 14
_FLOOR = -18  # decades: below every error that float64 can show; what is exactly zero stands here


def errors(folds: Sequence[FoldLine]) -> Markup:
    """A dot for the error of each fold, in order, on a logarithmic scale below the bound."""
    found = [(fold, fold.error) for fold in folds if fold.error is not None]
    ceiling = max(math.log10(EXACT) + 1, *(math.ceil(_decade(error)) for _, error in found))

    def y(decade: float) -> float:
        return round(_TOP + (ceiling - decade) / (ceiling - _FLOOR) * (_HIGH - 2 * _TOP), 1)

    worst = max(found, key=lambda each: each[1])
    about = f"Float64 error of each of {len(found)} folds; the largest is {worst[1]:.1e}, at {worst[0].name}"
    parts: list[Markup] = [tag("title", about)]
    for decade in range(_FLOOR, int(ceiling) + 1, 2):
        label = "0" if decade == _FLOOR else f"1e{decade}"
        parts.append(tag("path", d=f"M{_LEFT} {y(decade)}H{_PLOT}", class_="grid"))
        parts.append(tag("text", label, x=_LEFT - 8, y=y(decade) + 4, class_="number"))
    bound = y(math.log10(EXACT))
    parts.append(tag("path", d=f"M{_LEFT} {bound}H{_PLOT}", class_="bound"))
    parts.append(tag("text", f"bound {EXACT:.0e}", x=_PLOT, y=bound - 6, class_="number bound"))
    step = (_PLOT - _LEFT) / len(found)
    for i, (fold, error) in enumerate(found):
        dot = tag("title", f"{fold.name}: {error:.1e}")
        x = round(_LEFT + step * (i + 0.5), 1)
        parts.append(tag("circle", dot, cx=x, cy=y(_decade(error)), r=min(4.0, max(2.0, step / 3)), class_="after"))
    return tag("svg", *parts, class_="errors", viewBox=f"0 0 {_PLOT} {_HIGH}", role="img")


def _decade(error: float) -> float:
    return _FLOOR if error == 0 else max(_FLOOR, math.log10(error)) if math.isfinite(error) else 0.0


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from one power of ten to another, for all layers the same."""

    low: int
    high: int

    @classmethod
    def of(cls, given: Sequence[Ranges]) -> Scale:
        """One that holds the ranges of at least one layer."""
        low = math.floor(math.log10(min(each.smallest for each in given)))
        high = max(low + 1, math.ceil(math.log10(max(each.largest for each in given))))
        return cls(max(low, high - _DECADES), high)

    def at(self, value: float) -> float:
        """The place of a number above zero, in pixels; what lies below the axis stands at its end."""
        share = max(0.0, (math.log10(value) - self.low) / (self.high - self.low))
        return round(_EDGE + (_STRIP - 2 * _EDGE) * share, 1)


_STRIP, _EDGE = 210, 17
_DECADES = 6  # a channel that is a millionth of another is as good as dead


def axis(scale: Scale) -> Markup:
    """The numbers of the axis."""
    step = max(1, math.ceil((scale.high - scale.low) / 4))
    texts = [
        tag("text", f"1e{decade}" if abs(decade) > 3 else f"{10.0**decade:g}", x=scale.at(10.0**decade), y=11)
        for decade in range(scale.low, scale.high + 1, step)
    ]
    label = tag("title", f"Largest weight of a channel, from 1e{scale.low} to 1e{scale.high}")
    return tag("svg", label, *texts, class_="strip", viewBox=f"0 0 {_STRIP} 14", width=_STRIP, height=14, role="img")


def strip(before: Ranges | None, after: Ranges, scale: Scale, warned: bool) -> Markup:
    """The ranges of channels before (above) and after: a line from least to largest, thick between the quartiles."""
    shown = [(before, "before", 7.0)] if before is not None else []
    after_kind = "warned" if warned else "after"
    texts = [f"{kind}: {_told(each)}" for each, kind in ((before, "before"), (after, "after")) if each is not None]
    parts: list[Markup] = [tag("title", "Largest weight of a channel, " + "; ".join(texts))]
    grid = "".join(f"M{scale.at(10.0**decade)} 0V26" for decade in range(scale.low, scale.high + 1))
    parts.append(tag("path", d=grid, class_="grid"))
    for each, kind, y in [*shown, (after, after_kind, 19.0)]:
        x = scale.at
        parts.append(tag("path", d=f"M{x(each.smallest)} {y}H{x(each.largest)}", class_=f"{kind} thin"))
        parts.append(tag("path", d=f"M{x(each.low)} {y}H{x(each.high)}", class_=f"{kind} thick"))
        parts.append(tag("circle", cx=x(each.median), cy=y, r=3, class_=kind))
    return tag("svg", *parts, class_="strip", viewBox=f"0 0 {_STRIP} 26", width=_STRIP, height=26, role="img")


def _told(given: Ranges) -> str:
    return f"{given.smallest:.2g} to {given.largest:.2g}, median {given.median:.2g}"
