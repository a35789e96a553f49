"""Draws docs/figures/architecture.svg, the rooms of the package, from the imports between them.

python docs/generate_architecture.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "reparam"
TARGET = Path(__file__).with_name("figures") / "architecture.svg"

WIDTH, HEIGHT = 150, 34  # of a room, in pixels
GAP_X, GAP_Y = 30, 36

Rooms = Mapping[str, set[str]]


def rooms() -> dict[str, set[str]]:
    """Every room, a file or folder of the package, with the rooms that it imports."""
    graph: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = _room(file.relative_to(PACKAGE).with_suffix("").parts[0])
        graph.setdefault(name, set()).update(_imports(file) - {name})
    return {name: imported & graph.keys() for name, imported in graph.items()}


def _room(part: str) -> str:
    return "reparam" if part in ("__init__", "__main__") else part


def _imports(file: Path) -> Iterator[str] | set[str]:
    names = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "reparam"
        for alias in node.names
    ]
    return {_room(name.split(".")[1]) for name in names}


def without_shortcuts(graph: Rooms) -> dict[str, set[str]]:
    """The graph without the arrows that longer ways imply: its transitive reduction."""

    @cache
    def below(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*map(below, graph[room]))

    return {
        room: {other for other in imported if not any(other in below(between) for between in imported)}
        for room, imported in graph.items()
    }


def floors(graph: Rooms) -> list[list[str]]:
    """The rooms from the top floor down.

    Each stands right above the highest that it imports. One that imports nothing stands right below its importers.
    """

    @cache
    def floor(room: str) -> int:
        return 1 + max(map(floor, graph[room]), default=-1)

    rows: dict[int, list[str]] = {}
    for room in sorted(graph):
        above = [floor(other) for other, imported in graph.items() if room in imported]
        rows.setdefault(floor(room) if graph[room] or not above else min(above) - 1, []).append(room)
    return [rows[number] for number in sorted(rows, reverse=True)]


def drawing() -> str:
    """The picture, as SVG."""
    graph = rooms()
    rows = floors(graph)
    across = max(map(len, rows))
    width, height = across * (WIDTH + GAP_X) + GAP_X, len(rows) * (HEIGHT + GAP_Y) + GAP_Y
    corners: dict[str, tuple[float, float]] = {}
    for y, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for x, room in enumerate(row):
            corners[room] = left + x * (WIDTH + GAP_X), GAP_Y + y * (HEIGHT + GAP_Y)
    arrows = [(room, other) for room, below in without_shortcuts(graph).items() for other in sorted(below)]
    parts = [_arrow(corners[room], corners[other]) for room, other in arrows]
    parts += [_box(room, *corner) for room, corner in corners.items()]
    return _PAGE.format(width=width, height=height, parts="\n".join(parts))


def _box(room: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}">{escape(room)}</text>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the bottom of the room that imports to the top of the one that is imported."""
    x, y = start[0] + WIDTH / 2, start[1] + HEIGHT
    to_x, to_y = end[0] + WIDTH / 2, end[1] - 3
    bend = (to_y - y) / 2
    return f'<path d="M{x:g} {y:g} C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"/>'


_PAGE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">
<title>The rooms of reparam. An arrow means that a room imports another; arrows that others imply are left out.</title>
<style>
rect {{ fill: #f6f8fa; stroke: #57606a }}
text {{ font: 15px sans-serif; text-anchor: middle; fill: #1f2328 }}
path {{ fill: none; stroke: #57606a; marker-end: url(#head) }}
@media (prefers-color-scheme: dark) {{ rect {{ fill: #22272e }} text {{ fill: #e6edf3 }} }}
</style>
<marker id="head" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="7" markerHeight="7" orient="auto">
<polygon points="0,0 6,3 0,6" fill="#57606a"/></marker>
{parts}
</svg>
"""


if __name__ == "__main__":
    TARGET.write_text(drawing(), encoding="utf-8")
