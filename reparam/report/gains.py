"""What folding saves, by the prices that the plan was judged by: of every fold, and of the whole network."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from reparam.capture.graph import Node, Record
from reparam.plan import cost
from reparam.plan.cost import FREE, Cost, Price, total
from reparam.plan.fold import Fold, Wide
from reparam.plan.plan import Plan


@dataclass(frozen=True)
class Gains:
    """Prices before and after: of each fold, and of everything that runs."""

    folds: Mapping[Fold, tuple[Price, Price]]
    before: Price
    after: Price


def gains(record: Record, plan: Plan, judge: Cost) -> Gains:
    """Counted from what runs, not from how the plan came about.

    An operation that several folds make superfluous is counted with the first; so are steps that several folds keep,
    and a convolution that computes several folds.
    """
    running = [node for node in record.nodes if node in plan.live and node.function is not None and not node.constant]
    prices = {node: cost.of_node(judge, node) for node in running}
    gone = {node for node in running if node in plan.removed}
    kept: set[tuple[Node, Node]] = set()
    wides = set[Wide | None]()
    folds = {}
    for fold in plan.folds:
        own = [node for node in fold.nodes if node in gone]
        gone.difference_update(own)
        steps = [step for step in fold.steps if (fold.base, step) not in kept]
        kept.update((fold.base, step) for step in steps)
        after = _computed(judge, fold, wides) + total(prices[step] for step in steps)
        wides.add(fold.wide)
        folds[fold] = total(prices[node] for node in own), after
    left = total(price for node, price in prices.items() if node not in plan.removed)
    return Gains(folds, total(prices.values()), total((left, *(after for _, after in folds.values()))))


def _computed(judge: Cost, fold: Fold, wides: Collection[Wide | None]) -> Price:
    """What computes a fold; where that computes others as well (`wides` have been counted), its part besides."""
    if fold.wide is None:
        return of_fold(judge, fold)
    whole = FREE if fold.wide in wides else cost.of_fold(judge, fold.wide.value) + cost.of_view(judge)
    return whole + cost.of_view(judge)


def of_fold(judge: Cost, fold: Fold) -> Price:
    """What a fold costs where it stands, without the steps around it."""
    if fold.value.identity:
        return FREE
    if fold.place is None or not fold.value.pixelwise:
        return cost.of_fold(judge, fold.value)
    pixels = math.prod(fold.place.shape) // fold.sizes[fold.place][0]
    return cost.of_map(judge, fold.value, pixels * fold.value.in_channels, pixels * fold.value.out_channels)
