"""Several convolutions of one tensor as one that is wider, its channels split among those who read them.

It saves all launches but one, and costs a view for each part. A part lies in memory with gaps, and who cannot read it
like that copies it first. On a CPU that pays where launches are most of what the convolutions take: for small images
and short sequences. Whole networks in which merges were to save 10 to 25 % of the layers in question (starnet_s050,
iformer_t, efficientformerv2_s0) took 0.99 to 1.02 of the time with them, so what saves less than `_MARGIN` is left.

It comes on top of a plan that can be carried out. Where a merge cannot be written back, the plan stays as it was.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, combinations, islice
from typing import Any

from reparam.algebra.affine import AffineConv
from reparam.algebra.index_map import Length, lengths_of
from reparam.algebra.views import View
from reparam.capture.graph import Node, Record, model_tensors, used_only_by
from reparam.capture.ops import ANY_STRIDES, KERNELS, RESHAPES, VIEWS
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.fold import Fold, Fusion, HorizontalFold, JoinFold, SideFold
from reparam.plan.liveness import computed
from reparam.plan.plan import Plan
from reparam.plan.shapes import Extents, Lengths, Whole
from reparam.plan.strides import relied_on
from reparam.rules import Value
from reparam.rules.interpret import REACH, between

_MARGIN = 0.25
_FEW = 6  # convolutions of one tensor of which every set is compared
_NEVER = cost.Price(math.inf, math.inf)


def fused(
    record: Record, plan: Plan, judge: cost.Cost, apart: Collection[Node], only: int | None = None
) -> Plan | None:
    """The plan with convolutions of one tensor fused wherever that is cheaper; None where it is nowhere.

    apart: sinks that are not fused. only: the first so many fusions, if given.
    """
    merges = list(_Merger(record, plan, judge, apart).merges())[:only]
    if not merges:
        return None
    own = {fold.sink: fold for each in merges for fold in each.folds}
    order = {node: i for i, node in enumerate(record.nodes)}
    every = {**{fold.sink: fold for fold in plan.folds}, **own}
    folds = tuple(sorted(every.values(), key=lambda fold: order[fold.sink]))
    removed = plan.live - computed(record, folds, plan.live)
    after = plan.after - cost.total(each.saved for each in merges)
    return replace(plan, folds=folds, removed=frozenset(removed), after=after)


@dataclass(frozen=True, eq=False)
class _Part:
    """A convolution that could be one of several.

    alone: its price; extra: what comes on top where it is a part; views: see `Fusion`.
    """

    fold: Fold
    alone: cost.Price
    extra: cost.Price
    views: Extents


@dataclass(frozen=True, eq=False)
class _Set:
    """Parts of one convolution, which `value` is; `alone` and `extra` are the sums of theirs."""

    parts: tuple[_Part, ...]
    value: AffineConv
    alone: cost.Price
    extra: cost.Price

    @staticmethod
    def of(part: _Part) -> _Set:
        return _Set((part,), part.fold.value, part.alone, part.extra)

    def joined(self, other: _Set) -> _Set:
        value = self.value.cat(other.value)
        return _Set((*self.parts, *other.parts), value, self.alone + other.alone, self.extra + other.extra)


@dataclass(frozen=True, eq=False)
class _Merge:
    folds: tuple[Fold, ...]
    saved: cost.Price


class _Merger:
    def __init__(self, record: Record, plan: Plan, judge: cost.Cost, apart: Collection[Node]) -> None:
        self.record = record
        self.walk = plan.walk
        self.live = plan.live
        self.judge = judge
        self.apart = apart
        self.folds = {fold.sink: fold for fold in plan.folds}
        self.bases = Counter(fold.base for fold in plan.folds)
        self.gone = plan.removed
        self.order = {node: i for i, node in enumerate(record.nodes)}
        self.readers = record.readers()
        laid = [node for node in record.nodes if node.layout_read]
        self.seen = {0, *(node.storage for node in (*record.outputs, *record.barriers, *laid))}  # 0: nobody knows whose
        self.relied = relied_on(record)

    def merges(self) -> Iterator[_Merge]:
        """Those that pay, each of the convolutions that pay."""
        alike: dict[Any, dict[Any, Fold]] = defaultdict(dict)
        for node in self.record.nodes:
            fold = self._candidate(node)
            if fold is not None:  # of the same code, called twice, the last: its weights would be held twice
                alike[fold.base, fold.value.axes][tuple(map(id, model_tensors(fold.nodes)))] = fold
        for group in alike.values():
            parts = [part for fold in group.values() for part in self._part(fold)] if len(group) > 1 else []
            merge = self._best(parts)
            if merge is not None:
                yield merge

    # --- what may be a part

    def _candidate(self, node: Node) -> Fold | None:
        """A convolution that is computed: a fold of the plan, or one that has stayed as it is, as a fold of itself."""
        if node not in self.live or node in self.apart:
            return None
        fold = self.folds.get(node) or self._kept(node)
        if fold is None or fold.steps or isinstance(fold, (SideFold, JoinFold)):
            return None
        return None if fold.value.identity or fold.value.bias_per_pixel or fold.value.is_transposed else fold

    def _kept(self, node: Node) -> Fold | None:
        if node.op not in KERNELS or node in self.gone or node not in self.walk.dominator:
            return None
        base, *others = node.operands
        value = self.walk.value(base, node)
        if others or not isinstance(value, AffineConv):
            return None
        # Where others read its weight as well, that would be held twice; but in another call it may be merged as well.
        readers = {reader for leaf in model_tensors([node]) for reader in self.readers[id(leaf)]}
        calls = {reader for reader in readers if reader.call and node.call and reader.call.module is node.call.module}
        alone = all(reader in self.gone or used_only_by(reader, (node,)) for reader in readers - calls)
        return Fold(base, node, value, (node,)) if alone else None

    def _part(self, fold: Fold) -> Iterator[_Part]:
        """The fold as a part, if nothing can tell the difference."""
        sink, base = fold.sink, fold.base
        # Parts are views of one tensor: a write into one counts as a write into all.
        if sink.storage in self.seen or self.record.writes.get(sink.storage):
            return
        writes = self.record.writes.get(base.storage, ())
        if any(self.order[base] < self.order[write] <= self.order[sink] for write in writes):
            return
        views = self._views(fold)
        if views is not None:
            kept = sink not in self.folds
            alone = cost.of_node(self.judge, sink) if kept else cost.of_fold(self.judge, fold.value)
            yield _Part(fold, alone, self._extra(fold), views)

    def _views(self, fold: Fold) -> Extents | None:
        """The views that code takes of what it computes; None where a part could perhaps not be viewed like that.

        A view may cut the last dimension, along which a part has no gaps, and leaves all others as they are.
        """
        sink, shown = fold.sink, dict[Node, Lengths | Whole]()
        outer, own = len(sink.shape) - 1, lengths_of(fold.value)
        known = {fold.base: (*own[:outer], Length.constant(fold.value.in_channels)), sink: own}
        for view in self.relied.intersection(sink.readers if sink in self.relied else ()):
            plain = view.op == "view" and view.shape[:outer] == sink.shape[:outer]
            if fold.value.axes or not plain or not self.relied.isdisjoint(view.readers):
                return None
            shown[view] = (*own[:outer], *map(Length.constant, view.shape[outer:]))
        return Extents(known, shown)

    # --- what it is worth

    def _extra(self, fold: Fold) -> cost.Price:
        """A view, and a copy for each operation that cannot read a part as it lies."""
        sink, channel = fold.sink, 1 if fold.value.axes else len(fold.sink.shape) - 1
        others = [
            (size, step) for at, (size, step) in enumerate(zip(sink.shape, sink.strides, strict=True)) if at != channel
        ]
        gaps = any(size > 1 and step >= sink.strides[channel] for size, step in others)
        copies = [cost.of_copy(self.judge, math.prod(read.shape)) for read in self._copying(sink, channel) if gaps]
        return cost.total([cost.of_view(self.judge), *copies])

    def _copying(self, node: Node, channel: int) -> Iterator[Node]:
        """What reads a part, or a view of it, by copying it first."""
        yield from [node] * self.bases[node]
        for reader in node.readers:
            if reader not in self.live or reader in self.gone:
                continue
            name = reader.op
            # A reshape that leaves what stands before the channels as it is sees a part as it lies.
            shaped = name in RESHAPES and reader.shape[:channel] == node.shape[:channel]
            if name in VIEWS or shaped:
                yield from self._copying(reader, channel)
            elif name not in ANY_STRIDES:
                yield node

    def _best(self, parts: Sequence[_Part]) -> _Merge | None:
        """The merge that saves most, of all sets of parts; where they are many, of those that cost least as parts."""
        best: tuple[cost.Price, _Set] | None = None
        for some in _sets(sorted(parts, key=lambda part: (part.extra, part.alone))):
            wide = cost.of_fold(self.judge, some.value)
            together = cost.total([wide, cost.of_view(self.judge), some.extra])
            pays = together < some.alone and together.time <= (1 - _MARGIN) * some.alone.time
            if pays and (best is None or best[0] < some.alone - together):
                best = some.alone - together, some
        if best is None:
            return None
        saved, chosen = best
        return None if self._goes_further(chosen.parts) else _Merge(self._fused(chosen.parts), saved)

    def _goes_further(self, parts: Sequence[_Part]) -> bool:
        """Whether the wide convolution would cost even less as one of a tensor before its base, if that is all its own.

        Another conversion would find that, where this one has compared what each part would cost by itself.
        """
        base, nodes = parts[0].fold.base, {node for part in parts for node in part.fold.nodes}
        if base in self.record.outputs or any(reader in self.live and reader not in nodes for reader in base.readers):
            return False
        start, price = base, cost.of_fold(self.judge, _joined(parts))
        for _ in range(REACH):
            if start not in self.walk.dominator:
                return False
            before = self.walk.dominator[start]
            price = cost.total([price, *map(self._kernel, between(before, [start]))])
            start = before
            values = [self.walk.value(start, part.fold.sink) for part in parts]
            insides = [value.inside if isinstance(value, View) else value for value in values]
            if start not in self.gone and self._together(insides) < price:
                return True
        return False

    def _kernel(self, node: Node) -> cost.Price:
        """What a convolution before the base costs; all else goes into one reader where it goes into several."""
        if node in self.folds:
            return cost.of_fold(self.judge, self.folds[node].value)
        kernel = node.op in KERNELS and node not in self.gone
        return cost.of_node(self.judge, node) if kernel else cost.FREE

    def _together(self, values: Sequence[Value]) -> cost.Price:
        """What they would cost as one; no price at all where they cannot be one."""
        convs = [value for value in values if isinstance(value, AffineConv)]
        try:
            return cost.of_fold(self.judge, reduce(AffineConv.cat, convs)) if len(convs) == len(values) else _NEVER
        except Refusal:
            return _NEVER

    def _fused(self, parts: Sequence[_Part]) -> tuple[Fold, ...]:
        parts = sorted(parts, key=lambda part: self.order[part.fold.sink])
        known = {node: each for part in parts for node, each in part.views.lengths.items()}
        views = Extents(known, {view: each for part in parts for view, each in part.views.shown.items()})
        sinks = tuple(part.fold.sink for part in parts)
        fusion = Fusion(_joined(parts), sinks, tuple(part.fold.value.out_channels for part in parts), views)
        return tuple(_part_of(fusion, part.fold) for part in parts)


def _sets(parts: Sequence[_Part]) -> Iterator[_Set]:
    if len(parts) > _FEW:
        yield from islice(accumulate(map(_Set.of, parts), _Set.joined), 1, None)
        return
    for count in range(2, len(parts) + 1):
        yield from (reduce(_Set.joined, map(_Set.of, some)) for some in combinations(parts, count))


def _joined(parts: Sequence[_Part]) -> AffineConv:
    return reduce(AffineConv.cat, (part.fold.value for part in parts))


def _part_of(fusion: Fusion, fold: Fold) -> HorizontalFold:
    return HorizontalFold(fold.base, fold.sink, fold.value, fold.nodes, fold.sizes, fold.extents, fusion=fusion)
