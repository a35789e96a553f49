"""What to fold: the cheapest way to compute the tensors that somebody needs.

Folding everything is wrong as often as folding nothing: a depthwise 3x3 followed by a pointwise convolution would
become a dense 3x3. Whatever is linear in one tensor is a region, and for each the cheapest way is searched
(`region.py`); what is spread over the sides of a join comes on top (`spread.py`). Last, once all that is known to be
possible, several convolutions of one tensor become one (`merge.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from reparam.capture.graph import Node, Record
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.distribute import Spread, spreads
from reparam.plan.fold import Fold
from reparam.plan.liveness import _asked_alone, alive, computed
from reparam.plan.region import Region, Unplaced
from reparam.plan.strides import relied_on
from reparam.rules.interpret import Interpretation


@dataclass(frozen=True, eq=False)
class Plan:
    """The folds, in order; the refusals met on the way; what is computed before and after.

    live: every node that an output depends on; removed: those of them that need not be computed any more.
    before, after: the price of all regions, by the cost chosen.
    unplaced: folds that are exact, and that the model has no place for.
    found: what every tensor is.
    """

    folds: tuple[Fold, ...]
    refusals: dict[Node, Refusal]
    live: frozenset[Node]
    removed: frozenset[Node]
    before: cost.Price
    after: cost.Price
    unplaced: tuple[Unplaced, ...]
    found: Interpretation


def plan(
    record: Record,
    opaque: Collection[Node],
    judge: cost.Cost = cost.CPU,
    only: int | None = None,
    fixed: Collection[Node] = (),
    cuts: Collection[Node] = (),
) -> Plan:
    """Choose the folds of a record by `judge`; `opaque` nodes are left as they are, and none passes through `cuts`.

    `only` the first so many folds, if given; `fixed` are the nodes whose recorded sizes are the only ones.
    """
    stops = {*record.walls, *cuts}
    found = Interpretation(record.nodes, opaque, fixed, stops)
    live = alive(record)
    demanded = _demanded(record, found, live) | (stops & live)
    regions: dict[Node, dict[Node, None]] = {}
    for node in record.nodes:
        if node in demanded and node in found.above:
            regions.setdefault(found.root[node], {})[node] = None
    order = {node: i for i, node in enumerate(record.nodes)}
    relied = relied_on(record)
    folds: list[Fold] = []
    refused: list[Unplaced] = []
    before = after = cost.FREE
    for sinks in regions.values():
        region = Region(record, order, found, sinks, judge, relied)
        chosen, old, new = region.best()
        folds += chosen
        refused += region.unplaced.values()
        before, after = before + old, after + new
    planned = {fold.sink: fold for fold in folds}
    spread = []
    for each in spreads(record, found, planned, live):
        old = cost.total(_price(judge, planned.get(fold.sink), fold.nodes) for fold in each.folds)
        new = cost.total(_price(judge, fold, ()) for fold in each.folds)
        if new < old:
            spread.append(each)
            after = after - old + new
    folds = _first(planned, spread, order, only)
    refusals = {node: refusal for node, refusal in found.refusals.items() if node in live}
    removed = live - computed(record, folds, live)
    parts = before, after, tuple(refused), found
    return Plan(tuple(folds), refusals, frozenset(live), frozenset(removed), *parts)


def _price(judge: cost.Cost, fold: Fold | None, nodes: Iterable[Node]) -> cost.Price:
    """Of a fold, or without one of the operations as they are."""
    return cost.total(cost.of_node(judge, node) for node in nodes) if fold is None else cost.of_fold(judge, fold.value)


def _first(
    planned: Mapping[Node, Fold], spread: list[Spread], order: Mapping[Node, int], only: int | None
) -> list[Fold]:
    """The folds in order, `only` the first so many if given; what is spread is there as a whole or not at all."""
    chosen = {**planned, **{fold.sink: fold for each in spread for fold in each.folds}}
    first = sorted(chosen.values(), key=lambda fold: order[fold.sink])[:only]
    whole = [each for each in spread if each.gone in first]
    return first if len(whole) == len(spread) else _first(planned, whole, order, only)


def _demanded(record: Record, found: Interpretation, live: set[Node]) -> set[Node]:
    """Every node whose tensor has to exist: it is an output, or is read by an operation that stays as it is.

    A write that nobody reads runs all the same.
    """
    demanded = {*record.outputs, *record.walls, *(node for node in live if node.inplace and not node.readers)}
    for node in live:
        if _asked_alone(node, live):
            demanded.add(node)
        if not node.constant and node not in found.above:
            demanded.update(node.operands)
    return demanded
