"""What folding saves, by the prices that the plan was judged by: of every fold, and of the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reparam.capture.graph import Node, Record
from reparam.plan import cost
from reparam.plan.cost import Cost, Price, total
from reparam.plan.fold import Fold, Fusion
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
    counted = set[Fusion]()
    folds = {}
    for fold in plan.folds:
        own = [node for node in fold.nodes if node in gone]
        gone.difference_update(own)
        steps = [step for step in fold.steps if (fold.base, step) not in kept]
        kept.update((fold.base, step) for step in steps)
        shared = [fusion.price(judge) for fusion in fold.shared if fusion not in counted]
        counted.update(fold.shared)
        after = total((fold.price(judge), *shared, *(prices[step] for step in steps)))
        folds[fold] = total(prices[node] for node in own), after
    left = total(price for node, price in prices.items() if node not in plan.removed)
    return Gains(folds, total(prices.values()), total((left, *(after for _, after in folds.values()))))
