"""Where the boxes of a small graph go: in ranks from top to bottom, branches side by side, few lines crossing.

The usual four steps (Sugiyama, Tagawa, Toda 1981), each in its simplest form: ranks by the longest way down, points on
the way of lines that pass ranks by, the order within a rank by the mean of the neighbours, and places by the same mean
with the boxes kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_SWEEPS = 24
PASSING = 16.0
"""The width that a line needs which passes a rank by."""


@dataclass(frozen=True)
class Layout:
    """Centres of boxes by node: x in units of width, y as a rank. Lines: the points that each passes, from its start.

    width: of everything, from 0.
    """

    places: Mapping[int, tuple[float, int]]
    lines: Mapping[tuple[int, int], tuple[tuple[float, int], ...]]
    width: float
    ranks: int


def laid_out(reads: Sequence[Sequence[int]], widths: Sequence[float], gap: float) -> Layout:
    """Nodes 0, 1, ..., each behind those that it reads: `reads[i]` are below i; node 0 reads nothing."""
    rank = _ranks(reads)
    size = dict(enumerate(widths))
    lines: dict[tuple[int, int], list[int]] = {}
    edges: list[tuple[int, int]] = []
    for node, sources in enumerate(reads):
        for source in dict.fromkeys(sources):
            way = [source, *range(len(rank), len(rank) + rank[node] - rank[source] - 1), node]
            for step, passing in enumerate(way[1:-1], start=1):
                rank.append(rank[source] + step)
                size[passing] = PASSING
            lines[source, node] = way
            edges += pairwise(way)
    above, below = _neighbours(edges, len(rank)), _neighbours([(b, a) for a, b in edges], len(rank))
    rows = [[node for node in range(len(rank)) if rank[node] == r] for r in range(max(rank) + 1)]
    _untangle(rows, above, below)
    x = _spread(rows, above, below, size, gap)
    left = min(x[node] - size[node] / 2 for node in x)
    right = max(x[node] + size[node] / 2 for node in x)
    places = {node: (x[node] - left, rank[node]) for node in x}
    drawn = {edge: tuple(places[node] for node in way) for edge, way in lines.items()}
    return Layout({node: places[node] for node in range(len(reads))}, drawn, right - left, max(rank) + 1)


def _ranks(reads: Sequence[Sequence[int]]) -> list[int]:
    """The longest way from the first node."""
    rank: list[int] = []
    for sources in reads:
        rank.append(max((rank[source] + 1 for source in sources), default=0))
    return rank


def _neighbours(edges: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(count)]
    for source, node in edges:
        found[node].append(source)
    return found


def _untangle(rows: list[list[int]], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> None:
    """Sort every row by the mean place of its neighbours in the row before, down and up again."""
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for r in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            beside = {node: i for i, node in enumerate(rows[r - 1 if down else r + 1])}
            near = above if down else below
            middle = {node: _mean([beside[n] for n in near[node]], i) for i, node in enumerate(rows[r])}
            rows[r].sort(key=middle.__getitem__)


def _spread(
    rows: list[list[int]],
    above: Sequence[Sequence[int]],
    below: Sequence[Sequence[int]],
    size: Mapping[int, float],
    gap: float,
) -> dict[int, float]:
    """Every node as near to the middle of its neighbours as those beside it let it come."""
    x: dict[int, float] = {}
    for row in rows:
        x.update(_apart(row, dict.fromkeys(row, 0.0), size, gap))
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wish = {node: _mean([x[n] for n in (*above[node], *below[node])], x[node]) for node in row}
            x.update(_apart(row, wish, size, gap))
    return x


def _apart(row: Sequence[int], wish: Mapping[int, float], size: Mapping[int, float], gap: float) -> dict[int, float]:
    """The nearest places to those wished for, in order, at which boxes do not overlap: isotonic regression."""
    offsets, at = [], 0.0
    for i, node in enumerate(row):
        at += (size[row[i - 1]] + size[node]) / 2 + gap if i else 0.0
        offsets.append(at)
    blocks: list[tuple[float, int]] = []  # sum of the wishes and number of nodes that stand together
    for node, offset in zip(row, offsets, strict=True):
        total, count = wish[node] - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / count:
            more, others = blocks.pop()
            total, count = total + more, count + others
        blocks.append((total, count))
    starts = [total / count for total, count in blocks for _ in range(count)]
    return {node: start + offset for node, start, offset in zip(row, starts, offsets, strict=True)}


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
