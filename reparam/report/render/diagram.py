"""A folded block as a picture: its operations on the left, what they have become on the right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.capture.ops import facts
from reparam.report.outcome import START, FoldLine, Step
from reparam.report.render.layout import Layout, laid_out
from reparam.report.render.markup import Markup, joined, tag

_COLOURS = (("conv", "conv"), ("linear", "conv"), ("matmul", "conv"), ("norm", "norm"), ("pool", "pool"))

_BOX_HEIGHT, _CIRCLE = 40.0, 24.0
_RANK_GAP, _BOX_GAP = 26.0, 12.0
_FRAME = 8.0
_TITLE_LETTER, _SUBTITLE_LETTER = 7.8, 6.0  # widths of a letter of 12 and of 10 pixels
_ARROW = 56.0
_PHONE = 440  # the widest picture that is scaled down to fit; wider ones scroll
LARGEST = 60
"""The most steps of a fold that gets a picture."""


@dataclass(frozen=True)
class _Box:
    """What is drawn for one step: a box with one or two lines of text, or a circle with a sign."""

    title: str
    subtitle: str = ""
    colour: str = ""
    about: str = ""
    round: bool = False

    @property
    def width(self) -> float:
        if self.round:
            return _CIRCLE
        return max(_TITLE_LETTER * len(self.title), _SUBTITLE_LETTER * len(self.subtitle), 30) + 16

    @property
    def height(self) -> float:
        return _CIRCLE if self.round else _BOX_HEIGHT


def shorthand(geometry: str) -> str:
    """`64→64 3×3` for `64->64 3x3`."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", geometry.replace("->", "→"))


def shape_of(fold: FoldLine) -> tuple[object, ...]:
    """A key that is equal for folds that differ only in their numbers of channels, or in what they are merged with."""

    def alike(text: str) -> str:
        text = text.partition(", channels ")[0]
        # Depthwise, grouped and dense convolutions differ; the numbers of channels and groups do not matter.
        depthwise = (match := re.match(r"(\d+)->", text)) and re.search(rf"\bg{match[1]}\b", text)
        return re.sub(r"\bg\d+", "depthwise" if depthwise else "groups", re.sub(r"\d+->\d+", "", text))

    steps = tuple((step.operation, alike(step.geometry), step.reads, step.count) for step in fold.steps)
    return steps, tuple(map(alike, fold.becomes))


def diagram(fold: FoldLine) -> Markup:
    """The picture; empty for a fold without steps, or with more than `LARGEST`."""
    if not 0 < len(fold.steps) <= LARGEST:
        return Markup("")
    before, before_width, before_height = _before_picture(fold.steps)
    after, after_width, after_height = _after_picture(fold.becomes)
    height = max(before_height, after_height) + 2 * _FRAME
    width = before_width + _ARROW + after_width + 2 * _FRAME
    parts = (
        tag("title", f"{fold.name}: {fold.before} becomes {' + '.join(fold.becomes) or 'nothing'}"),
        _translated(before, _FRAME, (height - before_height) / 2),
        _arrow(_FRAME + before_width, height / 2),
        _translated(after, _FRAME + before_width + _ARROW, (height - after_height) / 2),
    )
    return tag(
        "svg",
        *parts,
        class_="block wide" if width > _PHONE else "block",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="img",
    )


def _before_picture(steps: Sequence[Step]) -> tuple[Markup, float, float]:
    boxes = [_Box("x", round=True), *map(_step_box, steps), _Box("y", round=True)]
    reads: list[Sequence[int]] = [(), *(tuple(read - START for read in step.reads) or (0,) for step in steps)]
    return _graph_picture(boxes, [*reads, (len(steps),)])


def _after_picture(becomes: Sequence[str]) -> tuple[Markup, float, float]:
    inner = [_layer_box(text) for text in becomes] or [_Box("nothing", "its neighbours took it", "none")]
    boxes = [_Box("x", round=True), *inner, _Box("y", round=True)]
    return _graph_picture(boxes, [(), *((i,) for i in range(len(boxes) - 1))])


def _graph_picture(boxes: Sequence[_Box], reads: Sequence[Sequence[int]]) -> tuple[Markup, float, float]:
    """The picture, its width and its height."""
    layout = laid_out(reads, [box.width for box in boxes], _BOX_GAP)
    tops = _rank_tops(boxes, layout)
    lines = [_edge_line(ends, points, boxes, tops) for ends, points in layout.lines.items()]
    shapes = [_box_shape(box, *layout.places[i], tops) for i, box in enumerate(boxes)]
    return joined([*lines, *shapes]), layout.width, tops[-1] - _RANK_GAP


def _rank_tops(boxes: Sequence[_Box], layout: Layout) -> list[float]:
    """The y-coordinate at which each rank begins, and at which one more would."""
    tops = [0.0]
    for rank in range(layout.ranks):
        heights = (boxes[node].height for node, (_, own) in layout.places.items() if own == rank)
        tops.append(tops[-1] + max(heights, default=_CIRCLE) + _RANK_GAP)
    return tops


def _rank_middle(rank: int, tops: Sequence[float]) -> float:
    return (tops[rank] + tops[rank + 1] - _RANK_GAP) / 2


def _edge_line(
    ends: tuple[int, int], points: Sequence[tuple[float, int]], boxes: Sequence[_Box], tops: Sequence[float]
) -> Markup:
    """A smooth line from the bottom of one box to the top of another, vertical through the ranks that it passes."""
    source, target = (boxes[end].height / 2 for end in ends)
    (x, rank), *rest = points
    y = _rank_middle(rank, tops) + source
    path = [f"M{x:.1f} {y:.1f}"]
    for i, (to, rank) in enumerate(rest):
        last = i == len(rest) - 1
        top = _rank_middle(rank, tops) - target if last else tops[rank]
        half = (top - y) / 2
        path.append(f"L{to:.1f} {top:.1f}" if abs(to - x) < 0.5 else
                    f"C{x:.1f} {y + half:.1f} {to:.1f} {top - half:.1f} {to:.1f} {top:.1f}")  # fmt: skip
        x, y = to, top
        if not last:
            y = tops[rank + 1] - _RANK_GAP
            path.append(f"L{x:.1f} {y:.1f}")
    return tag("path", d=" ".join(path), class_="line")


def _box_shape(box: _Box, x: float, rank: int, tops: Sequence[float]) -> Markup:
    y = _rank_middle(rank, tops)
    parts = [tag("title", box.about)] if box.about else []
    if box.round:
        parts.append(tag("circle", cx=round(x, 1), cy=round(y, 1), r=_CIRCLE / 2))
        parts.append(tag("text", box.title, x=round(x, 1), y=round(y + 4.5, 1)))
        return tag("g", *parts, class_="sign")
    left, top = round(x - box.width / 2, 1), round(y - _BOX_HEIGHT / 2, 1)
    parts.append(tag("rect", x=left, y=top, width=round(box.width, 1), height=_BOX_HEIGHT, rx=7))
    parts.append(tag("text", box.title, x=round(x, 1), y=round(y - 3 if box.subtitle else y + 4, 1)))
    if box.subtitle:
        parts.append(tag("text", box.subtitle, x=round(x, 1), y=round(y + 12, 1), class_="small"))
    return tag("g", *parts, class_=f"box {box.colour}".strip())


def _arrow(x: float, y: float) -> Markup:
    start, end = x + 14, x + _ARROW - 14
    return tag("path", d=f"M{start:.1f} {y:.1f}H{end:.1f}m-7 -6l7 6l-7 6", class_="becomes")


def _translated(part: Markup, x: float, y: float) -> Markup:
    return tag("g", part, transform=f"translate({x:.1f} {y:.1f})")


def _step_box(step: Step) -> _Box:
    """A sum of tensors is a sign in a circle, a scale a sign and its factor; a convolution begins with its window."""
    about = f"{step.operation} {step.geometry} in {step.where}"
    known = facts(step.operation)
    if known.sign and not step.geometry:
        return _Box(known.sign, about=about, round=True)
    if known.sign:
        return _Box(f"{known.sign} {_truncated(step.geometry)}", about=about)
    name = known.title or re.sub(r"(conv|conv_transpose|pool)[123]d$", r"\1", step.operation)
    name += f" ×{step.count}" if step.count > 1 else ""
    return _titled_box(name.replace("_", " "), step.geometry, _colour(step.operation), about)


def _layer_box(text: str) -> _Box:
    """The box of a layer that was made, or of a step that stays."""
    name, _, geometry = text.partition(" ")
    return _titled_box(name, geometry, "made" if name.startswith(("Conv", "Linear")) else "", text)


def _titled_box(name: str, geometry: str, colour: str, about: str) -> _Box:
    window = re.search(r"(?:^|(?<= ))\d+(?:x\d+)*(?= |$)", geometry)
    rest = geometry if window is None else f"{geometry[: window.start()]}{geometry[window.end() :]}"
    size = f"{shorthand(window[0])} " if window else ""
    return _Box(_truncated(f"{size}{name}"), _truncated(shorthand(" ".join(rest.split()))), colour, about)


def _colour(operation: str) -> str:
    return next((colour for part, colour in _COLOURS if part in operation), "")


def _truncated(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
