"""A folded block as a picture: its branches on the left, what they have become on the right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.report.outcome import START, FoldLine, Step
from reparam.report.render.layout import Layout, laid_out
from reparam.report.render.markup import Markup, joined, tag

_SHORT = {
    "batch_norm": "bn", "setitem": "fill border", "getitem": "slice", "cat": "concat",
}  # fmt: skip
_SIGNS = {"add": "+", "sub": "−", "rsub": "−", "mul": "×", "div": "÷", "neg": "−"}
_COLOURS = (("conv", "conv"), ("linear", "conv"), ("matmul", "conv"), ("norm", "norm"), ("pool", "pool"))

_BOX, _SIGN, _DOT = 40.0, 24.0, 24.0  # heights; a sign and a dot are as wide as high
_BETWEEN, _BESIDE = 26.0, 12.0
_MARGIN = 8.0
_LETTER, _SMALL = 7.8, 6.0  # widths of a letter of 12 and 10 pixels
_ARROW = 56.0
_NARROW = 440  # a picture that a phone can still show as a whole
LARGEST = 60
"""Steps of a block that a picture of it can still show."""


@dataclass(frozen=True)
class _Box:
    """What is drawn for one step: a box of two lines, a sign in a circle, or a named dot."""

    title: str
    subtitle: str = ""
    colour: str = ""
    about: str = ""
    round: bool = False

    @property
    def width(self) -> float:
        if self.round:
            return _SIGN
        return max(_LETTER * len(self.title), _SMALL * len(self.subtitle), 30) + 16

    @property
    def height(self) -> float:
        return _SIGN if self.round else _BOX


def shorthand(geometry: str) -> str:
    """`64→64 3×3` for `64->64 3x3`."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", geometry.replace("->", "→"))


def shape_of(fold: FoldLine) -> tuple[object, ...]:
    """Equal for folds that look alike but for their numbers of channels."""

    def alike(text: str) -> str:
        # A group per channel and one for all are told apart from groups; other numbers of channels and groups are not.
        depthwise = (match := re.match(r"(\d+)->", text)) and re.search(rf"\bg{match[1]}\b", text)
        return re.sub(r"\bg\d+", "depthwise" if depthwise else "groups", re.sub(r"\d+->\d+", "", text))

    steps = tuple((step.operation, alike(step.geometry), step.reads, step.count) for step in fold.steps)
    return steps, tuple(map(alike, fold.becomes))


def diagram(fold: FoldLine) -> Markup:
    """The picture; empty for a fold that has no steps, or too many to see."""
    if not 0 < len(fold.steps) <= LARGEST:
        return Markup("")
    before, wide, high = _before(fold.steps)
    after, right, other = _after(fold.becomes)
    height = max(high, other) + 2 * _MARGIN
    width = wide + _ARROW + right + 2 * _MARGIN
    parts = (
        tag("title", f"{fold.name}: {fold.before} becomes {' + '.join(fold.becomes) or 'nothing'}"),
        _moved(before, _MARGIN, (height - high) / 2),
        _arrow(_MARGIN + wide, height / 2),
        _moved(after, _MARGIN + wide + _ARROW, (height - other) / 2),
    )
    return tag(
        "svg",
        *parts,
        class_="block wide" if width > _NARROW else "block",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="img",
    )


def _before(steps: Sequence[Step]) -> tuple[Markup, float, float]:
    boxes = [_Box("x", round=True), *map(_of_step, steps), _Box("y", round=True)]
    reads: list[Sequence[int]] = [(), *(tuple(read - START for read in step.reads) or (0,) for step in steps)]
    return _drawn(boxes, [*reads, (len(steps),)])


def _after(becomes: Sequence[str]) -> tuple[Markup, float, float]:
    inner = [_of_text(text) for text in becomes] or [_Box("nothing", "taken in front or behind", "none")]
    boxes = [_Box("x", round=True), *inner, _Box("y", round=True)]
    return _drawn(boxes, [(), *((i,) for i in range(len(boxes) - 1))])


def _drawn(boxes: Sequence[_Box], reads: Sequence[Sequence[int]]) -> tuple[Markup, float, float]:
    layout = laid_out(reads, [box.width for box in boxes], _BESIDE)
    tops = _tops(boxes, layout)
    lines = [_line(ends, points, boxes, tops) for ends, points in layout.lines.items()]
    shapes = [_box(box, *layout.places[i], tops) for i, box in enumerate(boxes)]
    return joined([*lines, *shapes]), layout.width, tops[-1] - _BETWEEN


def _tops(boxes: Sequence[_Box], layout: Layout) -> list[float]:
    """Where each rank begins, and where one more would."""
    tops = [0.0]
    for rank in range(layout.ranks):
        inside = (boxes[node].height for node, (_, own) in layout.places.items() if own == rank)
        tops.append(tops[-1] + max(inside, default=_SIGN) + _BETWEEN)
    return tops


def _middle(rank: int, tops: Sequence[float]) -> float:
    return (tops[rank] + tops[rank + 1] - _BETWEEN) / 2


def _line(
    ends: tuple[int, int], points: Sequence[tuple[float, int]], boxes: Sequence[_Box], tops: Sequence[float]
) -> Markup:
    """A smooth line from the bottom of the one to the top of the other, straight through the ranks that it passes."""
    source, target = (boxes[end].height / 2 for end in ends)
    (x, rank), *rest = points
    y = _middle(rank, tops) + source
    path = [f"M{x:.1f} {y:.1f}"]
    for i, (to, rank) in enumerate(rest):
        last = i == len(rest) - 1
        top = _middle(rank, tops) - target if last else tops[rank]
        half = (top - y) / 2
        path.append(f"L{to:.1f} {top:.1f}" if abs(to - x) < 0.5 else
                    f"C{x:.1f} {y + half:.1f} {to:.1f} {top - half:.1f} {to:.1f} {top:.1f}")  # fmt: skip
        x, y = to, top
        if not last:
            y = tops[rank + 1] - _BETWEEN
            path.append(f"L{x:.1f} {y:.1f}")
    return tag("path", d=" ".join(path), class_="line")


def _box(box: _Box, x: float, rank: int, tops: Sequence[float]) -> Markup:
    y = _middle(rank, tops)
    inside = [tag("title", box.about)] if box.about else []
    if box.round:
        inside.append(tag("circle", cx=round(x, 1), cy=round(y, 1), r=_SIGN / 2))
        inside.append(tag("text", box.title, x=round(x, 1), y=round(y + 4.5, 1)))
        return tag("g", *inside, class_="sign")
    left, top = round(x - box.width / 2, 1), round(y - _BOX / 2, 1)
    inside.append(tag("rect", x=left, y=top, width=round(box.width, 1), height=_BOX, rx=7))
    inside.append(tag("text", box.title, x=round(x, 1), y=round(y - 3 if box.subtitle else y + 4, 1)))
    if box.subtitle:
        inside.append(tag("text", box.subtitle, x=round(x, 1), y=round(y + 12, 1), class_="small"))
    return tag("g", *inside, class_=f"box {box.colour}".strip())


def _arrow(x: float, y: float) -> Markup:
    start, end = x + 14, x + _ARROW - 14
    return tag("path", d=f"M{start:.1f} {y:.1f}H{end:.1f}m-7 -6l7 6l-7 6", class_="becomes")


def _moved(part: Markup, x: float, y: float) -> Markup:
    return tag("g", part, transform=f"translate({x:.1f} {y:.1f})")


def _of_step(step: Step) -> _Box:
    """A sum of tensors is a sign; a scale says by what; a convolution shows its window first."""
    about = f"{step.operation} {step.geometry} in {step.where}"
    if step.operation in _SIGNS and not step.geometry:
        return _Box(_SIGNS[step.operation], about=about, round=True)
    if step.operation in _SIGNS:
        return _Box(f"{_SIGNS[step.operation]} {_cut(step.geometry)}", about=about)
    name = _SHORT.get(step.operation, re.sub(r"(conv|conv_transpose|pool)[123]d$", r"\1", step.operation))
    name += f" ×{step.count}" if step.count > 1 else ""
    return _titled(name.replace("_", " "), step.geometry, _colour(step.operation), about)


def _of_text(text: str) -> _Box:
    name, _, geometry = text.partition(" ")
    return _titled(name, geometry, "made" if name.startswith(("Conv", "Linear")) else "", text)


def _titled(name: str, geometry: str, colour: str, about: str) -> _Box:
    window = re.search(r"(?:^|(?<= ))\d+(?:x\d+)*(?= |$)", geometry)
    rest = geometry if window is None else f"{geometry[: window.start()]}{geometry[window.end() :]}"
    size = f"{shorthand(window[0])} " if window else ""
    return _Box(_cut(f"{size}{name}"), _cut(shorthand(" ".join(rest.split()))), colour, about)


def _colour(operation: str) -> str:
    return next((colour for part, colour in _COLOURS if part in operation), "")


def _cut(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
