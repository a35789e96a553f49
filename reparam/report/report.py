"""What was done, what was not and why, and what it is worth: for people to read and programs to use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from reparam.capture.graph import GRADIENTS, READ, SIZE, Node, Record, user_code
from reparam.capture.norms import affine_part
from reparam.capture.ops import MOVING
from reparam.compare.bench import Comparison
from reparam.compare.border import Border
from reparam.errors import Refusal
from reparam.plan import cost
from reparam.plan.cost import Cost, Price, TimedCost
from reparam.plan.fold import Fold
from reparam.plan.liveness import Dead, compiled, from_outside
from reparam.plan.plan import Plan
from reparam.report.as_data import comparison_data, report_data
from reparam.report.gains import gains
from reparam.report.outcome import Counts, DeadWeight, FoldLine, Gain, Look, Outcome, RefusalLine
from reparam.report.quantisation import Weights
from reparam.report.render import as_html, as_markdown, as_text
from reparam.report.steps import become, called, place, sketched
from reparam.rewrite.origin import enclosing

_KINDS = {
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear",
    "bn": "batch_norm",
    "elementwise": "add sub rsub mul div neg",
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_SHORT = {"batch_norm": "bn", "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "avg_pool2d": "pool"}
_ORDER = {name: i for i, name in enumerate(("conv", "linear", "bn", "pool"))}  # then the others as they come


_KINDS_OF_LOOKS = (SIZE, READ, GRADIENTS)


@dataclass(frozen=True)
class Report(Outcome):
    """The outcome of `reparameterize`; prints as tables."""

    def __str__(self) -> str:
        return as_text(self)

    def to_html(self, latency: Comparison | None = None) -> str:
        """One page that opens offline: diagrams, plots and tables, nothing loaded from elsewhere.

        latency: what `benchmark` has measured, the original first.
        """
        return as_html(self, latency)

    def to_markdown(self, latency: Comparison | None = None) -> str:
        """The same tables for a pull request or a wiki."""
        return as_markdown(self, latency)

    def to_json(self, latency: Comparison | None = None) -> str:
        """All values, for programs. What is not finite is a text: "inf", "nan"."""
        timed = None if latency is None else comparison_data(latency)
        return json.dumps({**report_data(self), "latency": timed}, indent=2, allow_nan=False)


def summed(nodes: Iterable[Node]) -> str:
    """Operations counted, such as `3 conv + 3 bn + 2 add`."""
    names = [called(node) for node in nodes if node.function is not None]
    counted = Counter(_SHORT.get(name, name) for name in names).items()
    return " + ".join(
        f"{count} {name}" for name, count in sorted(counted, key=lambda each: _ORDER.get(each[0], len(_ORDER)))
    )


def counts(nodes: Iterable[Node], model: nn.Module) -> Counts:
    """What runs, from the operations that are computed and the model that holds the weights."""
    computed = [node for node in nodes if node.function is not None]
    kinds = Counter(map(_kind, computed))
    macs = sum(map(cost.macs_of, computed))
    return Counts(kinds["conv"], kinds["bn"], kinds["elementwise"], _elements(model), macs)


def _kind(node: Node) -> str | None:
    """What it is counted as; a product with a matrix of weights is a linear layer, as which it may be written."""
    kind = _KIND.get(node.op)
    return kind or ("conv" if cost.macs_of(node) else None)


def report(
    record: Record,
    plan: Plan,
    original: nn.Module,
    folded: nn.Module,
    names: dict[Fold, str],
    errors: Mapping[Fold, float],
    weights: Mapping[Fold, Weights | None],
    borders: Mapping[Node, Border],
    naive: Mapping[Node, float],
    dead: Mapping[Dead, str],
    judge: Cost,
) -> Report:
    """The report of a plan that has been carried out.

    names: the modules that hold the folds now; errors: of the folds;
    borders: the folds refused at a border, by their sink, and naive: their errors;
    weights: the ranges of the kernels of each fold; dead: the dead weight of the original, and what became of it.
    judge: what the plan was judged by.
    """
    computed = [node for node in record.nodes if node in plan.live]
    left = counts((node for node in computed if node not in plan.removed), folded)
    made = [fold for fold in plan.folds if not fold.value.identity]
    after = Counts(
        left.convs + len({layer for fold in made for layer in fold.shared or (fold,)}),
        left.norms,
        left.elementwise + sum(fold.value.bias_per_pixel for fold in made),
        left.parameters,
        left.macs + sum(fold.macs for fold in made),
    )
    order = {node: i for i, node in enumerate(record.nodes)}
    gained = gains(record, plan, judge)
    lines = tuple(
        replace(
            _line(
                fold,
                names.get(fold) or place(fold.sink),
                errors.get(fold),
                weights[fold],
                order,
            ),
            predicted=_predicted(*gained.folds[fold]),
            measured=_measured(judge, *gained.folds[fold]),
        )
        for fold in plan.folds
    )
    folded_nodes = {node for fold in plan.folds for node in fold.nodes}  # refused from afar, folded from nearer
    refusals = tuple(
        _refusal_line(node, node, refusal, naive.get(node))
        for node, refusal in plan.refusals.items()
        if node.function is not None and node not in folded_nodes
    )
    staying = [node for node in computed if node not in plan.removed and node not in plan.refusals]
    unplaced = tuple(_unplaced(set(staying), plan))
    lonely = tuple(_lonely(node, plan, borders, naive) for node in staying if node.name == "batch_norm")
    scales = tuple(_kept_scale(node, record, plan, borders, naive) for node in staying if node.function is affine_part)
    unseen = tuple(_unseen(original, computed))
    unused = tuple(DeadWeight(d.name, d.kind, d.why, d.elements, d.bytes, fate) for d, fate in dead.items())
    return Report(
        lines, refusals + unplaced + lonely + scales + unseen, counts(computed, original), after,
        dead=unused, baked=_looks(record), model=type(original).__name__, cost=judge.name,
        predicted=_predicted(gained.before, gained.after),
    )  # fmt: skip


def _line(
    fold: Fold,
    name: str,
    error: float | None,
    weights: Weights | None,
    order: Mapping[Node, int],
) -> FoldLine:
    after = fold.describe()
    merged = tuple(place for fusion in fold.shared for place in fusion.places)
    named = weights and replace(weights, after=replace(weights.after, name=name))
    return FoldLine(
        name,
        summed(fold.nodes),
        after,
        error,
        sketched(fold, order),
        become(fold, after),
        named,
        merged=merged,
        made_by=fold.made_by,
    )


def _predicted(before: Price, after: Price) -> Gain | None:
    return Gain(before.time, after.time) if before.time else None


def _measured(judge: Cost, before: Price, after: Price) -> Gain | None:
    return Gain(before.judged, after.judged) if isinstance(judge, TimedCost) else None


def _looks(record: Record) -> tuple[Look, ...]:
    """What the user's own code has looked at, in the order of the calls, each once."""
    calls = [call for call in record.calls if user_code(call.module)]
    looks = (
        Look(call.path or "the model itself", what) for call in calls for what in _KINDS_OF_LOOKS if what in call.looked
    )
    return tuple(dict.fromkeys(looks))


def _lonely(norm: Node, plan: Plan, borders: Mapping[Node, Border], naive: Mapping[Node, float]) -> RefusalLine:
    """Why a norm is left that no rule has refused."""
    refused = _refused_with(norm, plan, borders, naive)
    if refused is not None:
        return refused
    taker = _behind(norm)
    if taker in plan.refusals:
        return _refusal_line(norm, taker, plan.refusals[taker])
    before = [_read(node) for node in norm.operands]
    after = [node.op for node in norm.readers if node.function is not None] or ["the output"]
    beside = any(name in cost.KERNELS for name in (*before, *after))
    why = "taking it into a neighbour would cost more than it saves" if beside else "there is no layer to take it"
    return RefusalLine(
        place(norm), "batch_norm", f"it stands between {_named(before)} and {_named(after)}, and {why}", ""
    )


def _unseen(model: nn.Module, nodes: Iterable[Node]) -> Iterable[RefusalLine]:
    """What no run shows: modules of TorchScript, or else where a tensor of unknown origin is met."""
    scripts = dict.fromkeys(name for name, module in model.named_modules() if compiled(module))
    for name in scripts:
        if scripts.keys().isdisjoint(enclosing(name)):
            reason = "it runs outside Python, where nothing can be recorded"
            remedy = "convert the model before torch.jit.script or torch.jit.trace makes it"
            yield RefusalLine(name or "the model itself", "TorchScript", reason, remedy)
    for node in nodes if not scripts else ():
        if from_outside(node):
            reason = "it meets a tensor of unknown origin: of a scripted function, an extension, or held by no module"
            where = place((*node.readers, node)[0])
            yield RefusalLine(where, "unknown", reason, "compute it by torch's functions from what modules hold")


def _unplaced(staying: Collection[Node], plan: Plan) -> Iterable[RefusalLine]:
    """Why the rest stays of what could have been one layer: the widest fold of each part of it, by its last node.

    Norms and scales say it themselves.
    """
    told: set[Node] = set()
    for fold in reversed(plan.unplaced):
        rest = [node for node in fold.nodes if node in staying and node.op not in MOVING]
        if rest and not told.issuperset(rest) and not _scales(rest[-1]):
            yield _refusal_line(rest[-1], fold.nodes[-1], fold.refusal)
        told.update(rest)


def _scales(node: Node) -> bool:
    return node.name == "batch_norm" or node.function is affine_part


def _refused_with(
    node: Node, plan: Plan, borders: Mapping[Node, Border], naive: Mapping[Node, float]
) -> RefusalLine | None:
    """The refusal of a fold that would have stood for the node, among others."""
    for sink, border in borders.items():
        if node in border.nodes:
            return _refusal_line(node, sink, plan.refusals[sink], naive.get(sink))
    fold = next((fold for fold in plan.unplaced if node in fold.nodes), None)
    return None if fold is None else _refusal_line(node, fold.nodes[-1], fold.refusal)


def _refusal_line(node: Node, sink: Node, refusal: Refusal, naive: float | None = None) -> RefusalLine:
    """A node that stays as a fold of `sink` was refused."""
    why = refusal.reason if node is sink else f"{called(sink)} cannot take it: {refusal.reason}"
    return RefusalLine(place(node), called(node), why, refusal.remedy, naive)


def _behind(norm: Node) -> Node:
    """The layer that reads it alone, be it moved or padded on the way; itself where there is none."""
    node = norm
    while len(node.readers) == 1:
        node = node.readers[0]
        if node.op in cost.KERNELS:
            return node
        if node.op not in (*MOVING, "pad"):
            break
    return norm


def _read(node: Node) -> str:
    if node.function is not None:
        return node.op
    return "a tensor of unknown origin" if from_outside(node) else "the input"


def _kept_scale(
    node: Node, record: Record, plan: Plan, borders: Mapping[Node, Border], naive: Mapping[Node, float]
) -> RefusalLine:
    """Why a normalisation has kept its scale and shift."""
    refused = _refused_with(node, plan, borders, naive)
    if refused is not None:
        return refused
    after = [reader.op for reader in node.readers if reader.function is not None] or ["the output"]
    why = f"not everything that reads it can take it ({_named(after)})"
    if node in record.walls:
        why = "a hook or `keep` watches what comes out of it"
    return RefusalLine(place(node), called(node), why, "")


def _named(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _elements(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
