"""Where the boxes of a small graph go: in ranks from top to bottom, with each branch straight down a lane of its own.

The steps are those of Sugiyama, Tagawa and Toda (1981), each in its simplest form: ranks by the longest path from the
start, a point on every rank that an edge passes, and in each rank the order of the mean of the neighbours. The
x-coordinates are those of Brandes and Köpf (2002) with two of their four directions: as far left as possible, as far
right as possible, and the middle of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

_SWEEPS = 24
_PASSING = 8.0  # the width that an edge takes up in a rank that it passes


@dataclass(frozen=True)
class Layout:
    """The centre of each box as (x, rank), by node, and the points that each edge goes through, its two ends included.

    width: of the whole graph, which begins at x = 0.
    """

    places: Mapping[int, tuple[float, int]]
    lines: Mapping[tuple[int, int], tuple[tuple[float, int], ...]]
    width: float
    ranks: int


def laid_out(reads: Sequence[Sequence[int]], widths: Sequence[float], gap: float) -> Layout:
    """The layout of nodes 0, 1, ..., where node i reads the nodes `reads[i]`, all below i. Node 0 reads nothing.

    Two boxes of one rank are at least `gap` apart.
    """
    rank = _ranks(reads)
    size = list(widths)
    paths: dict[tuple[int, int], list[int]] = {}
    for node, sources in enumerate(reads):
        for source in dict.fromkeys(sources):
            passed = list(range(rank[source] + 1, rank[node]))
            paths[source, node] = [source, *range(len(rank), len(rank) + len(passed)), node]
            rank += passed
            size += [_PASSING] * len(passed)
    edges = [edge for path in paths.values() for edge in pairwise(path)]
    above, below = _neighbours(edges, len(rank)), _neighbours([(b, a) for a, b in edges], len(rank))
    rows = [[node for node in range(len(rank)) if rank[node] == r] for r in range(max(rank) + 1)]
    _untangle(rows, above, below)
    x, width = _centres(rows, _lanes(above, below), size, gap)
    lines = {edge: tuple((x[node], rank[node]) for node in path) for edge, path in paths.items()}
    return Layout({node: (x[node], rank[node]) for node in range(len(reads))}, lines, width, len(rows))


def _ranks(reads: Sequence[Sequence[int]]) -> list[int]:
    """The length of the longest path from node 0."""
    rank: list[int] = []
    for sources in reads:
        rank.append(max((rank[source] + 1 for source in sources), default=0))
    return rank


def _neighbours(edges: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """The sources of each node's edges."""
    sources: list[list[int]] = [[] for _ in range(count)]
    for source, node in edges:
        sources[node].append(source)
    return sources


def _untangle(rows: list[list[int]], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> None:
    """Sort every row by the mean place of its neighbours in the row before, in sweeps down and up; the last is down."""
    for sweep in range(_SWEEPS + 1):
        down = sweep % 2 == 0
        for r in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            index = {node: i for i, node in enumerate(rows[r - 1 if down else r + 1])}
            neighbours = above if down else below
            middle = {node: _mean_or([index[n] for n in neighbours[node]], i) for i, node in enumerate(rows[r])}
            rows[r].sort(key=middle.__getitem__)


def _lanes(above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> list[int]:
    """The first node of each node's lane. A lane is a chain in which each node reads only the one before it, which
    only it reads."""
    lane = list(range(len(above)))
    # The points where an edge passes a rank have higher numbers than the node it leads to, so chains are followed.
    for start in range(len(above)):
        if len(above[start]) == 1 and len(below[above[start][0]]) == 1:
            continue
        node = start
        while len(below[node]) == 1 and len(above[below[node][0]]) == 1:
            node = below[node][0]
            lane[node] = start
    return lane


def _centres(
    rows: Sequence[Sequence[int]], lane: Sequence[int], size: Sequence[float], gap: float
) -> tuple[list[float], float]:
    """The centre of every node and the width of the graph: the middle of the leftmost and the rightmost place."""
    try:
        left, right = (_packed([row[::step] for row in rows], lane, size, gap) for step in (1, -1))
    except CycleError:  # two lanes cross, so every node becomes a lane of its own
        single = range(len(lane))
        left, right = (_packed([row[::step] for row in rows], single, size, gap) for step in (1, -1))
        lane = single
    width = max(left[node] + size[node] / 2 for row in rows for node in row)
    return [(left[lane[node]] + width - right[lane[node]]) / 2 for node in range(len(lane))], width


def _packed(rows: Sequence[Sequence[int]], lane: Sequence[int], size: Sequence[float], gap: float) -> list[float]:
    """Every lane as near to 0 as the boxes before it allow, in each of its rows. The first node stands for its lane."""
    order: TopologicalSorter[int] = TopologicalSorter()
    apart: dict[tuple[int, int], float] = {}
    least = [0.0] * len(lane)
    for row in rows:
        for node in row:
            order.add(lane[node])
            least[lane[node]] = max(least[lane[node]], size[node] / 2)
        for left, right in pairwise(row):
            edge = lane[left], lane[right]
            order.add(edge[1], edge[0])
            apart[edge] = max(apart.get(edge, 0.0), (size[left] + size[right]) / 2 + gap)
    before: dict[int, list[int]] = {}
    for left, right in apart:
        before.setdefault(right, []).append(left)
    x = list(least)
    for right in order.static_order():
        x[right] = max([least[right], *(x[left] + apart[left, right] for left in before.get(right, ()))])
    return [x[first] for first in lane]


def _mean_or(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
