"""What to fold: the cheapest way to compute the tensors that somebody needs.

Folding everything is wrong as often as folding nothing: a depthwise 3x3 followed by a pointwise convolution would
become a dense 3x3. Three searches follow one another. In each region, which is whatever is linear in one tensor, the
cheapest way is searched (`region.py`). Scales behind a join are distributed over its sides (`distribute.py`). Once a
plan is known to be possible, convolutions of one tensor are fused (`horizontal.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from reparam.capture.graph import Node, Record
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.distribute import Distribution, distributions
from reparam.plan.fold import Fold
from reparam.plan.liveness import alive, asked_alone, computed
from reparam.plan.region import Region, Unplaced
from reparam.plan.strides import relied_on
from reparam.rules.interpret import Interpretation


@dataclass(frozen=True)
class Constraints:
    """What plans have to respect, as lowering has found out. Each round adds to them and takes nothing away.

    opaque: the operations that no fold may stand for, and why.
    barriers: the tensors that no fold may lead through, and why.
    apart: the sinks of folds that cannot be fused with others.
    """

    opaque: Mapping[Node, Refusal] = field(default_factory=dict)
    barriers: Mapping[Node, Refusal] = field(default_factory=dict)
    apart: frozenset[Node] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.opaque or self.barriers or self.apart)

    def __or__(self, more: Constraints) -> Constraints:
        return Constraints({**self.opaque, **more.opaque}, {**self.barriers, **more.barriers}, self.apart | more.apart)

    @property
    def refusals(self) -> dict[Node, Refusal]:
        """Why operations stay: those that read a tensor behind which no fold goes on, and those that are opaque."""
        readers = {reader: why for node, why in self.barriers.items() for reader in node.readers}
        return {**readers, **self.opaque}


@dataclass(frozen=True, eq=False)
class Plan:
    """The folds, in order; the refusals met on the way; what is computed before and after.

    live: every node that an output depends on; removed: those of them that need not be computed any more.
    before, after: the price of all regions, by the cost chosen.
    unplaced: folds that are exact, and that the model has no place for.
    walk: what every tensor is.
    """

    folds: tuple[Fold, ...]
    refusals: dict[Node, Refusal]
    live: frozenset[Node]
    removed: frozenset[Node]
    before: cost.Price
    after: cost.Price
    unplaced: tuple[Unplaced, ...]
    walk: Interpretation


def plan(
    record: Record,
    judge: cost.Cost = cost.CPU,
    constraints: Constraints = Constraints(),
    *,
    fixed: Collection[Node] = (),
    only: int | None = None,
) -> Plan:
    """Choose the folds of a record that cost least by `judge`, within the constraints.

    fixed: the nodes whose recorded sizes are the only ones. only: the first so many folds, if given.
    """
    barriers = {*record.barriers, *constraints.barriers}
    walk = Interpretation(record.nodes, {*record.opaque, *constraints.opaque}, fixed, barriers)
    live = alive(record)
    order = {node: i for i, node in enumerate(record.nodes)}
    relied = relied_on(record)
    folds: list[Fold] = []
    unplaced: list[Unplaced] = []
    before = after = cost.FREE
    for sinks in _regions(record, walk, _demanded(record, walk, live) | (barriers & live)):
        region = Region(record, order, walk, sinks, judge, relied)
        cheapest, old, new = region.best()
        folds += cheapest
        unplaced += region.unplaced.values()
        before, after = before + old, after + new
    by_sink = {fold.sink: fold for fold in folds}
    paying: list[Distribution] = []
    for distribution in distributions(record, walk, by_sink, live):
        old = cost.total(_price(judge, by_sink.get(fold.sink), fold.nodes) for fold in distribution.folds)
        new = cost.total(fold.price(judge) for fold in distribution.folds)
        if new < old:
            paying.append(distribution)
            after = after - old + new
    folds = _first(by_sink, paying, order, only)
    return Plan(
        folds=tuple(folds),
        refusals={node: refusal for node, refusal in walk.refusals.items() if node in live},
        live=frozenset(live),
        removed=frozenset(live - computed(record, folds, live)),
        before=before,
        after=after,
        unplaced=tuple(unplaced),
        walk=walk,
    )


def _regions(record: Record, walk: Interpretation, demanded: set[Node]) -> Iterable[dict[Node, None]]:
    """The demanded tensors of each region, in order."""
    regions: dict[Node, dict[Node, None]] = {}
    for node in record.nodes:
        if node in demanded and node in walk.dominator:
            regions.setdefault(walk.anchor[node], {})[node] = None
    return regions.values()


def _price(judge: cost.Cost, fold: Fold | None, nodes: Iterable[Node]) -> cost.Price:
    """Of a fold, or without one of the operations as they are."""
    return cost.total(cost.of_node(judge, node) for node in nodes) if fold is None else fold.price(judge)


def _first(
    by_sink: Mapping[Node, Fold], paying: list[Distribution], order: Mapping[Node, int], only: int | None
) -> list[Fold]:
    """The folds in order, `only` the first so many if given; a distribution is there as a whole or not at all."""
    chosen = {**by_sink, **{fold.sink: fold for distribution in paying for fold in distribution.folds}}
    first = sorted(chosen.values(), key=lambda fold: order[fold.sink])[:only]
    whole = [distribution for distribution in paying if distribution.join in first]
    return first if len(whole) == len(paying) else _first(by_sink, whole, order, only)


def _demanded(record: Record, walk: Interpretation, live: set[Node]) -> set[Node]:
    """Every node whose tensor has to exist: it is an output, or is read by an operation that stays as it is.

    A write that nobody reads runs all the same.
    """
    demanded = {*record.outputs, *record.barriers, *(node for node in live if node.inplace and not node.readers)}
    for node in live:
        if asked_alone(node, live):
            demanded.add(node)
        if not node.constant and node not in walk.dominator:
            demanded.update(node.operands)
    return demanded
