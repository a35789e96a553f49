"""Where the boxes of a small graph go: in ranks from top to bottom, every branch straight down a lane of its own.

The steps are those of Sugiyama, Tagawa and Toda (1981), each in its simplest form: ranks by the longest way down,
points on the way of lines that pass ranks by, the order within a rank by the mean of the neighbours. Places are those
of Brandes and Köpf (2002) with two of their four directions: as far to the left as it goes, as far to the right, and
the middle of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

_SWEEPS = 24
_PASSING = 8.0  # the width that a line needs which passes a rank by


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
    """Nodes 0, 1, ..., each behind those that it reads: `reads[i]` are below i; node 0 reads nothing.

    No two boxes of one rank come nearer than `gap`.
    """
    rank = _ranks(reads)
    size = list(widths)
    lines: dict[tuple[int, int], list[int]] = {}
    for node, sources in enumerate(reads):
        for source in dict.fromkeys(sources):
            passing = list(range(rank[source] + 1, rank[node]))
            lines[source, node] = [source, *range(len(rank), len(rank) + len(passing)), node]
            rank += passing
            size += [_PASSING] * len(passing)
    edges = [edge for way in lines.values() for edge in pairwise(way)]
    above, below = _neighbours(edges, len(rank)), _neighbours([(b, a) for a, b in edges], len(rank))
    rows = [[node for node in range(len(rank)) if rank[node] == r] for r in range(max(rank) + 1)]
    _untangle(rows, above, below)
    x, width = _places(rows, _lanes(above, below), size, gap)
    drawn = {edge: tuple((x[node], rank[node]) for node in way) for edge, way in lines.items()}
    return Layout({node: (x[node], rank[node]) for node in range(len(reads))}, drawn, width, len(rows))


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
    """Sort every row by the mean place of its neighbours in the row before, down and up again, and down at last."""
    for sweep in range(_SWEEPS + 1):
        down = sweep % 2 == 0
        for r in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            beside = {node: i for i, node in enumerate(rows[r - 1 if down else r + 1])}
            near = above if down else below
            middle = {node: _mean([beside[n] for n in near[node]], i) for i, node in enumerate(rows[r])}
            rows[r].sort(key=middle.__getitem__)


def _lanes(above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> list[int]:
    """For every node the first one of its lane: a run of nodes each of which has the next alone, and it the one."""
    lane = list(range(len(above)))
    # What passes a rank by has a higher number than the node that it leads to, so ways are followed, not numbers.
    for start in range(len(above)):
        if len(above[start]) == 1 and len(below[above[start][0]]) == 1:
            continue
        node = start
        while len(below[node]) == 1 and len(above[below[node][0]]) == 1:
            node = below[node][0]
            lane[node] = start
    return lane


def _places(
    rows: Sequence[Sequence[int]], lane: Sequence[int], size: Sequence[float], gap: float
) -> tuple[list[float], float]:
    """The centre of every node and the width of it all: the middle of the left-most and the right-most place."""
    try:
        left, right = (_packed([row[::step] for row in rows], lane, size, gap) for step in (1, -1))
    except CycleError:  # two lanes cross: every node for itself
        alone = range(len(lane))
        left, right = (_packed([row[::step] for row in rows], alone, size, gap) for step in (1, -1))
        lane = alone
    width = max(left[node] + size[node] / 2 for row in rows for node in row)
    return [(left[lane[node]] + width - right[lane[node]]) / 2 for node in range(len(lane))], width


def _packed(rows: Sequence[Sequence[int]], lane: Sequence[int], size: Sequence[float], gap: float) -> list[float]:
    """Every lane as near to 0 as the boxes before it in any row let it come; for a lane its first node stands."""
    order: TopologicalSorter[int] = TopologicalSorter()
    apart: dict[tuple[int, int], float] = {}
    least = [0.0] * len(lane)
    for row in rows:
        for node in row:
            order.add(lane[node])
            least[lane[node]] = max(least[lane[node]], size[node] / 2)
        for one, other in pairwise(row):
            edge = lane[one], lane[other]
            order.add(edge[1], edge[0])
            apart[edge] = max(apart.get(edge, 0.0), (size[one] + size[other]) / 2 + gap)
    before: dict[int, list[int]] = {}
    for one, other in apart:
        before.setdefault(other, []).append(one)
    x = list(least)
    for each in order.static_order():
        x[each] = max([least[each], *(x[one] + apart[one, each] for one in before.get(each, ()))])
    return [x[each] for each in lane]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
