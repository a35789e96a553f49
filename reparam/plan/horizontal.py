"""Horizontal fusion: several convolutions of one tensor become one wider convolution, whose channels are split.

It saves all launches but one, and costs a view for each part. A part has gaps in memory, so an operation that cannot
read it with gaps copies it first. On a CPU that pays where most of the time goes to launches: for small images and
short sequences. Whole networks in which fusions promised to save 10 to 25 % of the fused layers (starnet_s050,
iformer_t, efficientformerv2_s0) took 0.99 to 1.02 of the time with them. So a fusion has to save at least `_MARGIN`.

Fusions come on top of a plan that can be written back. Where a fusion cannot be written back, the plan stays.
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
from reparam.plan.shapes import Extents, IntactChannels, Lengths
from reparam.plan.strides import layout_sensitive
from reparam.rules import Value
from reparam.rules.interpret import REACH, between

_MARGIN = 0.25
_SIZE = cost.SizeCost()
_FEW_CANDIDATES = 6  # every set of so many convolutions is compared
_IMPOSSIBLE = cost.Price(math.inf, math.inf)


def fused(
    record: Record, plan: Plan, cost_model: cost.Cost, unfusable: Collection[Node], only: int | None = None
) -> Plan | None:
    """The plan with convolutions of one tensor fused wherever that is cheaper; None if no fusion is.

    Requires a plan of this record that can be written back. Returns another plan and leaves this one as it is. Raises
    nothing.

    unfusable: sinks of folds that are not fused. only: at most so many fusions, the first ones, if given.
    """
    fusions = list(_FusionSearch(record, plan, cost_model, unfusable).fusions())[:only]
    if not fusions:
        return None
    by_sink = {fold.sink: fold for fold in plan.folds}
    by_sink |= {fold.sink: fold for fusion in fusions for fold in fusion.folds}
    order = {node: i for i, node in enumerate(record.nodes)}
    folds = tuple(sorted(by_sink.values(), key=lambda fold: order[fold.sink]))
    removed = plan.live - computed(record, folds, plan.live)
    after = plan.after - cost.total(fusion.saved for fusion in fusions)
    return replace(plan, folds=folds, removed=frozenset(removed), after=after)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A convolution that may be fused with others.

    price, size: of the convolution by itself; overhead: the price of its view, and of copies of it, in a fusion.
    views: see `Fusion`.
    """

    fold: Fold
    price: cost.Price
    size: cost.Price
    overhead: cost.Price
    views: Extents


@dataclass(frozen=True, eq=False)
class _CandidateSet:
    """Candidates, the one convolution that would compute them, and the sums of their prices, sizes and overheads."""

    candidates: tuple[_Candidate, ...]
    value: AffineConv
    price: cost.Price
    size: cost.Price
    overhead: cost.Price

    @staticmethod
    def of(candidate: _Candidate) -> _CandidateSet:
        return _CandidateSet((candidate,), candidate.fold.value, candidate.price, candidate.size, candidate.overhead)

    def union(self, other: _CandidateSet) -> _CandidateSet:
        return _CandidateSet(
            (*self.candidates, *other.candidates),
            self.value.cat(other.value),
            self.price + other.price,
            self.size + other.size,
            self.overhead + other.overhead,
        )


@dataclass(frozen=True, eq=False)
class _FusedFolds:
    """The folds of one fusion, and the price that it saves."""

    folds: tuple[Fold, ...]
    saved: cost.Price


class _FusionSearch:
    def __init__(self, record: Record, plan: Plan, cost_model: cost.Cost, unfusable: Collection[Node]) -> None:
        self.record = record
        self.walk = plan.walk
        self.live = plan.live
        self.cost_model = cost_model
        self.unfusable = unfusable
        self.folds = {fold.sink: fold for fold in plan.folds}
        self.base_counts = Counter(fold.base for fold in plan.folds)
        self.removed = plan.removed
        self.order = {node: i for i, node in enumerate(record.nodes)}
        self.readers = record.readers()
        layout_read = [node for node in record.nodes if node.layout_read]
        # the storage of tensors that somebody else sees; 0: unknown storage
        self.visible = {0, *(node.storage for node in (*record.outputs, *record.barriers, *layout_read))}
        self.layout_sensitive = layout_sensitive(record)

    def fusions(self) -> Iterator[_FusedFolds]:
        """The fusions that pay: at most one for all convolutions of one geometry that read one tensor."""
        groups: dict[Any, dict[Any, Fold]] = defaultdict(dict)
        for node in self.record.nodes:
            fold = self._convolution(node)
            if fold is not None:  # of two calls of one module the last: a fusion of both would hold its weights twice
                groups[fold.base, fold.value.axes][tuple(map(id, model_tensors(fold.nodes)))] = fold
        for group in groups.values():
            candidates = [c for fold in group.values() for c in self._fusion_candidates(fold)] if len(group) > 1 else []
            fusion = self._best(candidates)
            if fusion is not None:
                yield fusion

    # --- what may be fused

    def _convolution(self, node: Node) -> Fold | None:
        """The convolution that computes a node: a fold of the plan, or an unfolded operation as a fold of itself."""
        if node not in self.live or node in self.unfusable:
            return None
        fold = self.folds.get(node) or self._unfolded(node)
        if fold is None or fold.steps or isinstance(fold, (SideFold, JoinFold)):
            return None
        return None if fold.value.identity or fold.value.bias_per_pixel or fold.value.is_transposed else fold

    def _unfolded(self, node: Node) -> Fold | None:
        if node.op not in KERNELS or node in self.removed or node not in self.walk.dominator:
            return None
        base, *others = node.operands
        value = self.walk.value(base, node)
        if others or not isinstance(value, AffineConv):
            return None
        # A weight that other operations read would be held twice. Another call of the module may be fused as well.
        readers = {reader for leaf in model_tensors([node]) for reader in self.readers[id(leaf)]}
        calls = {reader for reader in readers if reader.call and node.call and reader.call.module is node.call.module}
        exclusive = all(reader in self.removed or used_only_by(reader, (node,)) for reader in readers - calls)
        return Fold(base, node, value, (node,)) if exclusive else None

    def _fusion_candidates(self, fold: Fold) -> Iterator[_Candidate]:
        """The fold as a candidate, unless code can tell that its result is a view."""
        sink, base = fold.sink, fold.base
        # The results of a fusion are views of one tensor: a write into one counts as a write into all.
        if sink.storage in self.visible or self.record.writes.get(sink.storage):
            return
        writes = self.record.writes.get(base.storage, ())
        if any(self.order[base] < self.order[write] <= self.order[sink] for write in writes):
            return
        views = self._views(fold)
        if views is not None:
            unfolded = sink not in self.folds
            price = cost.of_node(self.cost_model, sink) if unfolded else cost.of_fold(self.cost_model, fold.value)
            yield _Candidate(fold, price, cost.of_fold(_SIZE, fold.value), self._overhead(fold), views)

    def _views(self, fold: Fold) -> Extents | None:
        """The views that code takes of the result; None where a part of a wider tensor may not allow one.

        A view may split the last dimension, along which a part has no gaps. It has to keep all other dimensions.
        """
        sink, required = fold.sink, dict[Node, Lengths | IntactChannels]()
        last, result = len(sink.shape) - 1, lengths_of(fold.value)
        lengths = {fold.base: (*result[:last], Length.constant(fold.value.in_channels)), sink: result}
        for view in self.layout_sensitive.intersection(sink.readers if sink in self.layout_sensitive else ()):
            splits_last = view.op == "view" and view.shape[:last] == sink.shape[:last]
            if fold.value.axes or not splits_last or not self.layout_sensitive.isdisjoint(view.readers):
                return None
            required[view] = (*result[:last], *map(Length.constant, view.shape[last:]))
        return Extents(lengths, required)

    # --- what a fusion saves

    def _overhead(self, fold: Fold) -> cost.Price:
        """The price of a view, and of a copy for each operation that cannot read a tensor with gaps."""
        sink, channel = fold.sink, 1 if fold.value.axes else len(fold.sink.shape) - 1
        sizes = zip(sink.shape, sink.strides, strict=True)
        gaps = any(
            size > 1 and stride >= sink.strides[channel] for dim, (size, stride) in enumerate(sizes) if dim != channel
        )
        copied = self._copied(sink, channel) if gaps else ()
        copies = [cost.of_copy(self.cost_model, math.prod(tensor.shape)) for tensor in copied]
        return cost.total([cost.of_view(self.cost_model), *copies])

    def _copied(self, node: Node, channel: int) -> Iterator[Node]:
        """The tensors that operations copy before they read them: the node or a view of it, once for each reader."""
        yield from [node] * self.base_counts[node]
        for reader in node.readers:
            if reader not in self.live or reader in self.removed:
                continue
            # A reshape that keeps the dimensions before the channels is a view of a tensor with gaps.
            keeps_outer = reader.op in RESHAPES and reader.shape[:channel] == node.shape[:channel]
            if reader.op in VIEWS or keeps_outer:
                yield from self._copied(reader, channel)
            elif reader.op not in ANY_STRIDES:
                yield node

    def _best(self, candidates: Sequence[_Candidate]) -> _FusedFolds | None:
        """The fusion that saves most, of all sets of candidates; of many candidates, those of the least overhead."""
        best: tuple[cost.Price, _CandidateSet] | None = None
        for chosen in _sets(sorted(candidates, key=lambda candidate: (candidate.overhead, candidate.price))):
            wide = cost.of_fold(self.cost_model, chosen.value)
            together = cost.total([wide, cost.of_view(self.cost_model), chosen.overhead])
            pays = together < chosen.price and together.time <= (1 - _MARGIN) * chosen.price.time
            if pays and not self._grows(chosen) and (best is None or best[0] < chosen.price - together):
                best = chosen.price - together, chosen
        if best is None:
            return None
        saved, chosen = best
        if self._cheaper_from_earlier(chosen.candidates):
            return None
        return _FusedFolds(self._folds(chosen.candidates), saved)

    def _grows(self, chosen: _CandidateSet) -> bool:
        """Whether one convolution is larger than all of them: it has fewer groups."""
        return cost.grows(self.cost_model, chosen.size, cost.of_fold(_SIZE, chosen.value))

    def _cheaper_from_earlier(self, candidates: Sequence[_Candidate]) -> bool:
        """Whether the wide convolution would cost less as a fold of a tensor before its base, if only it reads that.

        The plan has compared the candidates with such folds one at a time only. A second conversion would find this
        one, so the fusion is not made.
        """
        base, nodes = candidates[0].fold.base, {node for candidate in candidates for node in candidate.fold.nodes}
        if base in self.record.outputs or any(reader in self.live and reader not in nodes for reader in base.readers):
            return False
        start, price = base, cost.of_fold(self.cost_model, _concatenated(candidates))
        for _ in range(REACH):
            if start not in self.walk.dominator:
                return False
            before = self.walk.dominator[start]
            price = cost.total([price, *map(self._kernel_price, between(before, [start]))])
            start = before
            values = [self.walk.value(start, candidate.fold.sink) for candidate in candidates]
            insides = [value.inside if isinstance(value, View) else value for value in values]
            if start not in self.removed and self._price_of_one(insides) < price:
                return True
        return False

    def _kernel_price(self, node: Node) -> cost.Price:
        """The price of a convolution before the base. One reader takes every other operation there for free."""
        if node in self.folds:
            return cost.of_fold(self.cost_model, self.folds[node].value)
        is_kernel = node.op in KERNELS and node not in self.removed
        return cost.of_node(self.cost_model, node) if is_kernel else cost.FREE

    def _price_of_one(self, values: Sequence[Value]) -> cost.Price:
        """The price of one convolution that computes all of them; infinite where none can."""
        convs = [value for value in values if isinstance(value, AffineConv)]
        if len(convs) < len(values):
            return _IMPOSSIBLE
        try:
            return cost.of_fold(self.cost_model, reduce(AffineConv.cat, convs))
        except Refusal:
            return _IMPOSSIBLE

    def _folds(self, candidates: Sequence[_Candidate]) -> tuple[Fold, ...]:
        """The folds of a fusion of the candidates, in the order of the record."""
        candidates = sorted(candidates, key=lambda candidate: self.order[candidate.fold.sink])
        folds = [candidate.fold for candidate in candidates]
        lengths: dict[Node, Lengths] = {}
        required: dict[Node, Lengths | IntactChannels] = {}
        for candidate in candidates:
            lengths |= candidate.views.lengths
            required |= candidate.views.required
        sinks = tuple(fold.sink for fold in folds)
        widths = tuple(fold.value.out_channels for fold in folds)
        fusion = Fusion(_concatenated(candidates), sinks, widths, Extents(lengths, required))
        return tuple(
            HorizontalFold(fold.base, fold.sink, fold.value, fold.nodes, fold.sizes, fold.extents, fusion=fusion)
            for fold in folds
        )


def _sets(candidates: Sequence[_Candidate]) -> Iterator[_CandidateSet]:
    """Every set of two or more candidates; of many candidates the first two, the first three, and so on."""
    if len(candidates) > _FEW_CANDIDATES:
        yield from islice(accumulate(map(_CandidateSet.of, candidates), _CandidateSet.union), 1, None)
        return
    for count in range(2, len(candidates) + 1):
        for chosen in combinations(candidates, count):
            yield reduce(_CandidateSet.union, map(_CandidateSet.of, chosen))


def _concatenated(candidates: Sequence[_Candidate]) -> AffineConv:
    return reduce(AffineConv.cat, (candidate.fold.value for candidate in candidates))
