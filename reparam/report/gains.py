"""What folding saves, by the cost model that chose the plan: of every fold, and of the whole network."""

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


def gains(record: Record, plan: Plan, cost_model: Cost) -> Gains:
    """The prices of what runs before and after.

    An operation that several folds replace counts for the first of them, and so does a step that several folds keep,
    and a convolution that computes several folds.
    """
    running = [node for node in record.nodes if node in plan.live and node.function is not None and not node.constant]
    prices = {node: cost.of_node(cost_model, node) for node in running}
    uncounted = {node for node in running if node in plan.removed}
    counted_steps: set[tuple[Node, Node]] = set()
    counted_fusions: set[Fusion] = set()
    folds = {}
    for fold in plan.folds:
        replaced = [node for node in fold.nodes if node in uncounted]
        uncounted.difference_update(replaced)
        steps = [step for step in fold.steps if (fold.base, step) not in counted_steps]
        counted_steps.update((fold.base, step) for step in steps)
        fusions = [fusion.price(cost_model) for fusion in fold.shared if fusion not in counted_fusions]
        counted_fusions.update(fold.shared)
        after = total((fold.price(cost_model), *fusions, *(prices[step] for step in steps)))
        folds[fold] = total(prices[node] for node in replaced), after
    stay = total(price for node, price in prices.items() if node not in plan.removed)
    return Gains(folds, total(prices.values()), total((stay, *(after for _, after in folds.values()))))
