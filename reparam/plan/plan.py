"""What to fold: the cheapest way to compute the tensors that are needed.

Folding everything is no better than folding nothing: a depthwise 3x3 and a pointwise convolution would become a dense
3x3. Three searches follow one another. The first finds the cheapest way to compute each region, which is everything
that is linear in one tensor (`region.py`). The second distributes scales behind a join over its sides
(`distribute.py`). The third fuses convolutions of one tensor, once a plan can be written back (`horizontal.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from reparam.capture.graph import Node, Record
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.distribute import Distribution, distributions
from reparam.plan.fold import Fold
from reparam.plan.liveness import alive, computed, only_size_needed
from reparam.plan.region import Region, RegionPlan, Unplaced
from reparam.plan.strides import layout_sensitive
from reparam.rules.interpret import Interpretation


@dataclass(frozen=True)
class Constraints:
    """What a plan has to respect, as lowering has found out. Constraints can only be added.

    opaque: the operations that no fold may replace, and why.
    barriers: the tensors that no fold may lead through, and why.
    unfusable: the sinks of folds that cannot be fused with others.
    """

    opaque: Mapping[Node, Refusal] = field(default_factory=dict)
    barriers: Mapping[Node, Refusal] = field(default_factory=dict)
    unfusable: frozenset[Node] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.opaque or self.barriers or self.unfusable)

    def __or__(self, more: Constraints) -> Constraints:
        return Constraints(
            {**self.opaque, **more.opaque}, {**self.barriers, **more.barriers}, self.unfusable | more.unfusable
        )

    @property
    def refusals(self) -> dict[Node, Refusal]:
        """Why operations stay: the readers of barriers, and the opaque operations."""
        readers = {reader: why for node, why in self.barriers.items() for reader in node.readers}
        return {**readers, **self.opaque}


@dataclass(frozen=True, eq=False)
class Plan:
    """Which folds are made.

    folds: in the order of the record; refusals: why operations stay as they are.
    live: the nodes that an output depends on; removed: those that the folds make unnecessary.
    before, after: the price of all regions by the cost model, without and with the folds.
    unplaced: exact folds that would save something and cannot be written back.
    walk: the value of every node.
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
    cost_model: cost.Cost = cost.CPU,
    constraints: Constraints = Constraints(),
    *,
    fixed_size: Collection[Node] = (),
    only: int | None = None,
) -> Plan:
    """Choose the folds of a record that cost least by `cost_model`, within the constraints.

    Requires a record of a model in eval mode. Returns a plan that costs no more than the original operations, and
    leaves the record as it is. Raises nothing: what cannot be folded is among the refusals.

    fixed_size: the nodes whose recorded sizes are the only ones. only: at most so many folds, the first ones, if given.
    """
    barriers = {*record.barriers, *constraints.barriers}
    walk = Interpretation(record.nodes, {*record.opaque, *constraints.opaque}, fixed_size, barriers)
    live = alive(record)
    order = {node: i for i, node in enumerate(record.nodes)}
    sensitive = layout_sensitive(record)
    folds: list[Fold] = []
    unplaced: list[Unplaced] = []
    demanded = _demanded(record, walk, live) | (barriers & live)
    regions = [Region(record, order, walk, sinks, cost_model, sensitive) for sinks in _regions(record, walk, demanded)]
    plans = _without_growth([region.best() for region in regions], cost_model)
    before = cost.total(region.before for region in regions)
    after = cost.total(plan.price for plan in plans)
    for region_plan in plans:
        folds += region_plan.folds()
        unplaced += region_plan.region.unplaced.values()
    by_sink = {fold.sink: fold for fold in folds}
    paying: list[Distribution] = []
    for distribution in distributions(record, walk, by_sink, live):
        undistributed = cost.total(
            _price(cost_model, by_sink.get(fold.sink), fold.nodes) for fold in distribution.folds
        )
        distributed = cost.total(fold.price(cost_model) for fold in distribution.folds)
        if distributed < undistributed:
            paying.append(distribution)
            after = after - undistributed + distributed
    folds = _first_folds(by_sink, paying, order, only)
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


def _without_growth(plans: list[RegionPlan], cost_model: cost.Cost) -> list[RegionPlan]:
    """Plans of regions that together do not need more multiply-adds and more stored numbers than before.

    Each alone needs no more of one of them. If all together do, those that need more multiply-adds are planned anew,
    the largest first.
    """
    before = cost.total(plan.region.size for plan in plans)
    for i in sorted(range(len(plans)), key=lambda i: plans[i].region.size.value - plans[i].size.value):
        if not cost.grows(cost_model, before, cost.total(plan.size for plan in plans)):
            break
        plans[i] = plans[i].region.without_growth(plans[i])
    return plans


def _regions(record: Record, walk: Interpretation, demanded: set[Node]) -> Iterable[dict[Node, None]]:
    """The demanded tensors of each region, in the order of the record."""
    regions: dict[Node, dict[Node, None]] = {}
    for node in record.nodes:
        if node in demanded and node in walk.dominator:
            regions.setdefault(walk.anchor[node], {})[node] = None
    return regions.values()


def _price(cost_model: cost.Cost, fold: Fold | None, nodes: Iterable[Node]) -> cost.Price:
    """The price of a fold; without one, of the operations as they are."""
    return cost.total(cost.of_node(cost_model, node) for node in nodes) if fold is None else fold.price(cost_model)


def _first_folds(
    by_sink: Mapping[Node, Fold], paying: list[Distribution], order: Mapping[Node, int], only: int | None
) -> list[Fold]:
    """The first folds, in order; `only`: at most so many. A distribution is among them as a whole or not at all."""
    chosen = {**by_sink, **{fold.sink: fold for distribution in paying for fold in distribution.folds}}
    first = sorted(chosen.values(), key=lambda fold: order[fold.sink])[:only]
    complete = [distribution for distribution in paying if distribution.join in first]
    return first if len(complete) == len(paying) else _first_folds(by_sink, complete, order, only)


def _demanded(record: Record, walk: Interpretation, live: set[Node]) -> set[Node]:
    """The nodes that have to be computed: outputs, barriers, writes, and what operations outside a region read."""
    demanded = {*record.outputs, *record.barriers, *(node for node in live if node.inplace and not node.readers)}
    for node in live:
        if only_size_needed(node, live):
            demanded.add(node)
        if not node.constant and node not in walk.dominator:
            demanded.update(node.operands)
    return demanded
