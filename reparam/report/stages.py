"""What each stage of a conversion made of the model, in words: for `explain --stages` and `report.stages`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from reparam.algebra.describe import describe
from reparam.capture.graph import Node, Record
from reparam.plan.plan import Plan
from reparam.report.evidence import Evidence
from reparam.report.outcome import FoldLine, Stage
from reparam.rewrite.edits import Edits
from reparam.rewrite.settle import Settled


def stages(evidence: Evidence, folds: Sequence[FoldLine]) -> tuple[Stage, ...]:
    """The stages in order; `folds` are the lines of the report, one for each fold of the plan."""
    settled = evidence.settled
    return (
        _record_stage(evidence.record),
        _values_stage(evidence.record, settled.plan),
        _plan_stage(settled, folds),
        _edits_stage(evidence.record, settled.edits),
        _result_stage(evidence.folded, folds),
    )


def _record_stage(record: Record) -> Stage:
    operations = _recorded_operations(record)
    constants = sum(node.constant for node in operations)
    summary = (
        f"{len(operations)} operations in {len(record.calls)} module calls; {constants} of them are computed from "
        "parameters and buffers alone"
    )
    lines = (f"{decision}: {decision.settled or 'not settled'}" for decision in record.decisions)
    return Stage("record", summary, tuple(dict.fromkeys(lines)))


def _values_stage(record: Record, plan: Plan) -> Stage:
    walk = plan.walk
    live = [node for node in _recorded_operations(record) if node in plan.live and not node.constant]
    linear = [node for node in live if node in walk.anchor]
    anchors = Counter(walk.anchor[node] for node in linear)
    summary = f"{len(linear)} of {len(live)} operations are linear in one of {len(anchors)} anchors"
    return Stage("values", summary, tuple(f"{_anchor_name(anchor)}: {n} operations" for anchor, n in anchors.items()))


def _plan_stage(settled: Settled, folds: Sequence[FoldLine]) -> Stage:
    plan = settled.plan
    summary = (
        f"{len(plan.folds)} folds replace {len(plan.removed)} operations; {len(plan.refusals)} operations are "
        f"refused; settled after {settled.rounds} rounds: {settled.why}"
    )
    return Stage(
        "plan", summary, tuple(f"{line.name}: {line.before} -> {line.after} ({line.made_by})" for line in folds)
    )


def _edits_stage(record: Record, edits: Edits) -> Stage:
    summary = (
        f"{len(edits.swaps)} modules replaced, {len(edits.rewrites)} forwards rewritten, {len(edits.unscaled)} norms "
        "without their weights"
    )
    return Stage("edits", summary, tuple(_edit_lines(record, edits)))


def _edit_lines(record: Record, edits: Edits) -> Iterator[str]:
    paths: dict[nn.Module, str] = {call.module: call.path or "the model itself" for call in record.calls}
    for swap in edits.swaps:
        yield f"{paths[swap.module]}: becomes {'nn.Identity' if swap.value is None else describe(swap.value)}"
    for module in edits.unscaled:
        yield f"{paths[module]}: loses its weight and bias"
    for guard in edits.guards:
        yield f"{paths[guard.module]}: checks its flags"
    for rewrite in edits.rewrites:
        gone = sum(len(piece.nodes) for piece in rewrite.pieces)
        yield f"{paths[rewrite.code.module]}: a new forward without {gone} operations"


def _result_stage(folded: nn.Module, folds: Sequence[FoldLine]) -> Stage:
    kinds = Counter(type(module).__name__ for module in folded.modules() if not module._modules)
    summary = ", ".join(f"{count} {name}" for name, count in kinds.most_common()) or "no modules"
    return Stage("result", summary, tuple(f"{line.name}: {line.after}" for line in folds if line.becomes))


def _recorded_operations(record: Record) -> list[Node]:
    return [node for node in record.nodes if node.function is not None]


def _anchor_name(node: Node) -> str:
    """An anchor by the operation that computes it, or the name of the input."""
    return node.where if node.function is not None else node.name
