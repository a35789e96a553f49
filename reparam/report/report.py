"""The report of a conversion, put together from its evidence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from reparam.capture.graph import Node, Record
from reparam.capture.ops import facts
from reparam.capture.symbolic import described
from reparam.compare.bench import Comparison
from reparam.plan import cost
from reparam.plan.cost import Cost, Price, TimedCost
from reparam.plan.fold import Fold
from reparam.report.as_data import comparison_data, report_data
from reparam.report.evidence import Evidence
from reparam.report.gains import gains
from reparam.report.outcome import Counts, DeadWeight, DecisionLine, FoldLine, Gain, Outcome
from reparam.report.refusals import refusal_lines
from reparam.report.render import as_html, as_markdown, as_text
from reparam.report.stages import stages
from reparam.report.steps import operation_name, replacement, steps_of

_FIRST = ("conv", "linear", "bn", "pool")  # of a sum of operations; the others follow in the order of the run


@dataclass(frozen=True)
class Report(Outcome):
    """The outcome of `reparameterize`; prints as tables."""

    def __str__(self) -> str:
        return as_text(self)

    def to_html(self, latency: Comparison | None = None) -> str:
        """One page with diagrams, plots and tables. It opens offline and loads nothing from elsewhere.

        latency: the result of `benchmark`, the original first.
        """
        return as_html(self, latency)

    def to_markdown(self, latency: Comparison | None = None) -> str:
        """The same tables for a pull request or a wiki."""
        return as_markdown(self, latency)

    def to_json(self, latency: Comparison | None = None) -> str:
        """All values, for programs. Numbers that are not finite become text: "inf", "nan"."""
        timed = None if latency is None else comparison_data(latency)
        return json.dumps({**report_data(self), "latency": timed}, indent=2, allow_nan=False)


def report(evidence: Evidence) -> Report:
    """The report of a plan that has been carried out."""
    record, plan = evidence.record, evidence.plan
    live = [node for node in record.nodes if node in plan.live]
    prices = gains(record, plan, evidence.cost)
    order = {node: i for i, node in enumerate(record.nodes)}
    lines = tuple(
        replace(
            _fold_line(fold, evidence, order),
            predicted=_predicted_gain(*prices.folds[fold]),
            measured=_measured_gain(evidence.cost, *prices.folds[fold]),
        )
        for fold in plan.folds
    )
    dead = tuple(DeadWeight(d.name, d.kind, d.why, d.elements, d.bytes, fate) for d, fate in evidence.dead.items())
    return Report(
        folds=lines,
        refusals=refusal_lines(evidence),
        before=counts(live, evidence.original),
        after=_counts_after(live, evidence),
        verification=evidence.verification,
        dead=dead,
        decisions=_decision_lines(record),
        model=type(evidence.original).__name__,
        inputs=evidence.inputs,
        cost=evidence.cost.name,
        predicted=_predicted_gain(prices.before, prices.after),
        stages=stages(evidence, lines),
    )


def counts(nodes: Iterable[Node], model: nn.Module) -> Counts:
    """What runs, counted over the operations that are computed, and the size of the model that holds the weights."""
    computed = [node for node in nodes if node.function is not None]
    kinds = Counter(map(_counted_as, computed))
    macs = sum(map(cost.macs_of, computed))
    elements = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    return Counts(kinds["conv"], kinds["bn"], kinds["elementwise"], elements, macs)


def _counted_as(node: Node) -> str | None:
    """The kind of an operation; a product with a matrix of weights is a linear layer, however it is written."""
    return facts(node.op).counted or ("conv" if cost.macs_of(node) else None)


def _counts_after(live: Iterable[Node], evidence: Evidence) -> Counts:
    """What runs after folding: the operations that stay, and the convolutions that were made."""
    stay = counts((node for node in live if node not in evidence.plan.removed), evidence.folded)
    folds = [fold for fold in evidence.plan.folds if not fold.value.identity]
    return Counts(
        stay.convs + len({layer for fold in folds for layer in fold.shared or (fold,)}),
        stay.norms,
        stay.elementwise + sum(fold.value.bias_per_pixel for fold in folds),
        stay.parameters,
        stay.macs + sum(evidence.emitted(fold).macs for fold in folds),
    )


def _fold_line(fold: Fold, evidence: Evidence, order: Mapping[Node, int]) -> FoldLine:
    """A fold without its times."""
    name = evidence.names.get(fold) or fold.sink.path
    after = evidence.emitted(fold).describe()
    weights = evidence.weights[fold]
    return FoldLine(
        name=name,
        before=_operation_counts(fold.nodes),
        after=after,
        error=evidence.errors.get(fold),
        steps=steps_of(fold, order),
        becomes=replacement(fold, after),
        weights=weights and replace(weights, after=replace(weights.after, name=name)),
        merged=tuple(place for fusion in fold.shared for place in fusion.places),
        made_by=fold.made_by,
    )


def _operation_counts(nodes: Iterable[Node]) -> str:
    """Operations counted, such as `3 conv + 3 bn + 2 add`."""
    names = [operation_name(node) for node in nodes if node.function is not None]
    numbers = Counter(facts(name).abbreviation or name for name in names)
    ordered = sorted(numbers, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return " + ".join(f"{numbers[name]} {name}" for name in ordered)


def _predicted_gain(before: Price, after: Price) -> Gain | None:
    return Gain(before.time, after.time) if before.time else None


def _measured_gain(cost_model: Cost, before: Price, after: Price) -> Gain | None:
    return Gain(before.value, after.value) if isinstance(cost_model, TimedCost) else None


def _decision_lines(record: Record) -> tuple[DecisionLine, ...]:
    """The decisions of a run, in order, once each."""
    lines = (
        DecisionLine(
            decision.call.path if decision.call is not None and decision.call.path else "the model itself",
            decision.at,
            described(decision.expression),
            repr(decision.value),
            decision.settled,
        )
        for decision in record.decisions
    )
    return tuple(dict.fromkeys(lines))
