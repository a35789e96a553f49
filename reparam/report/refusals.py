"""Why operations were kept: the refusals of a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from reparam.capture.graph import Node
from reparam.capture.norms import affine_part
from reparam.capture.ops import KERNELS, REARRANGING
from reparam.errors import Refusal
from reparam.plan.liveness import has_unknown_origin, is_script
from reparam.report.evidence import Evidence
from reparam.report.outcome import RefusalLine
from reparam.report.steps import operation_name
from reparam.rewrite.origin import paths_around


def refusal_lines(evidence: Evidence) -> tuple[RefusalLine, ...]:
    """A line for each operation that was refused, each fold without a place, each norm and scale that was kept, and
    each part of the model that no recording shows."""
    kept = _Kept(evidence)
    norms = [node for node in kept.nodes if node.name == "batch_norm"]
    scales = [node for node in kept.nodes if node.function is affine_part]
    unrecorded = _unrecorded_lines(evidence.original, kept.live)
    return (
        *map(kept.why, kept.refused()),
        *kept.without_place(),
        *map(kept.why, norms),
        *map(kept.why, scales),
        *unrecorded,
    )


class _Kept:
    """The operations that still run, and why.

    nodes: those that no rule has refused; live: everything that an output depends on.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.plan = evidence.plan
        self.live = [node for node in evidence.record.nodes if node in self.plan.live]
        refused = self.plan.refusals
        self.nodes = [node for node in self.live if node not in self.plan.removed and node not in refused]

    def refused(self) -> list[Node]:
        """The operations that were refused, without those that a fold of a nearer tensor has taken after all."""
        folded = {node for fold in self.plan.folds for node in fold.nodes}
        return [node for node in self.plan.refusals if node.function is not None and node not in folded]

    def why(self, node: Node) -> RefusalLine:
        """Why an operation was not folded: the answer of the first source that has one."""
        return (
            self._refused_itself(node)
            or self._refused_at_border(node)
            or self._refused_by_model(node)
            or self._refused_by_reader(node)
            or self._watched(node)
            or self._left_by_plan(node)
        )

    def without_place(self) -> Iterator[RefusalLine]:
        """The folds that the model has no place for: of each part of the model the widest, by its last node.

        Norms and scales among them have lines of their own.
        """
        kept = set(self.nodes)
        explained: set[Node] = set()
        for fold in reversed(self.plan.unplaced):
            rest = [node for node in fold.nodes if node in kept and node.op not in REARRANGING]
            if rest and not explained.issuperset(rest) and not _is_scale(rest[-1]):
                yield _refusal_of(rest[-1], fold.nodes[-1], fold.refusal)
            explained.update(rest)

    def _refused_itself(self, node: Node) -> RefusalLine | None:
        """A rule or the rewriting has refused the operation."""
        refusal = self.plan.refusals.get(node)
        return None if refusal is None else _refusal_of(node, node, refusal, self.evidence.border_errors.get(node))

    def _refused_at_border(self, node: Node) -> RefusalLine | None:
        """It belongs to a fold that would be wrong at the border."""
        for sink, border in self.evidence.borders.items():
            if node in border.nodes:
                return _refusal_of(node, sink, self.plan.refusals[sink], self.evidence.border_errors.get(sink))
        return None

    def _refused_by_model(self, node: Node) -> RefusalLine | None:
        """It belongs to an exact fold that the model has no place for."""
        fold = next((fold for fold in self.plan.unplaced if node in fold.nodes), None)
        return None if fold is None else _refusal_of(node, fold.nodes[-1], fold.refusal)

    def _refused_by_reader(self, node: Node) -> RefusalLine | None:
        """The only layer that could take a batch norm was refused."""
        reader = None if node.function is affine_part else _only_layer_after(node)
        refusal = None if reader is None else self.plan.refusals.get(reader)
        return None if reader is None or refusal is None else _refusal_of(node, reader, refusal)

    def _watched(self, node: Node) -> RefusalLine | None:
        """Every tensor that folding it would remove is watched: its own, or that of the layer before it."""
        before = [operand for operand in node.operands if operand.op in KERNELS]
        into_readers = node.function is affine_part or any(reader.op in KERNELS for reader in node.readers)
        removed = {*before, *([node] if into_readers else [])}
        if not removed or not removed <= self.evidence.record.barriers:
            return None
        what = "its output" if node in removed else f"the output of {before[0].op} before it"
        return _refusal_line(node, f"a hook or `keep` watches {what}", "without the hook or `keep` it could fold")

    def _left_by_plan(self, node: Node) -> RefusalLine:
        """Nothing has refused it, so either there is no layer to fold it into or the plan has found none that pays."""
        after = [reader.op for reader in node.readers if reader.function is not None] or ["the output"]
        if node.function is affine_part:
            reason = f"not every reader can take its scale and shift ({_names_in_words(after)})"
            return _refusal_line(node, reason, "read by convolutions or linear layers alone, it could fold")
        before = [_source(operand) for operand in node.operands] or ["a constant"]
        where = f"it stands between {_names_in_words(before)} and {_names_in_words(after)}"
        layers = [name for name in (*before, *after) if name in KERNELS]
        if layers:
            reason = f"{where}, and folding it into {_names_in_words(layers)} would cost more than it saves"
            return _refusal_line(node, reason, "another `cost` may decide otherwise")
        return _refusal_line(
            node, f"{where}, which cannot take it", "next to a convolution or linear layer it could fold"
        )


def _unrecorded_lines(model: nn.Module, nodes: Iterable[Node]) -> Iterator[RefusalLine]:
    """The outermost modules of TorchScript; without any, the operations that read a tensor of unknown origin."""
    scripts = dict.fromkeys(name for name, module in model.named_modules() if is_script(module))
    for name in scripts:
        if scripts.keys().isdisjoint(paths_around(name)):
            reason = "it runs outside Python, where nothing can be recorded"
            remedy = "convert the model before torch.jit.script or torch.jit.trace"
            yield RefusalLine(name or "the model itself", "TorchScript", reason, remedy)
    for node in nodes if not scripts else ():
        if has_unknown_origin(node):
            reason = (
                "it reads a tensor of unknown origin: made by a scripted function or an extension, or held by no module"
            )
            remedy = "compute it with torch functions from tensors that modules hold"
            yield RefusalLine((*node.readers, node)[0].path, "unknown", reason, remedy)


def _refusal_of(node: Node, sink: Node, refusal: Refusal, naive_error: float | None = None) -> RefusalLine:
    """The line of a node that was kept because the fold of `sink`, which includes it, was refused."""
    reason = refusal.reason if node is sink else f"{operation_name(sink)} cannot take it: {refusal.reason}"
    return _refusal_line(node, reason, refusal.remedy, naive_error)


def _refusal_line(node: Node, reason: str, remedy: str, naive_error: float | None = None) -> RefusalLine:
    return RefusalLine(node.path, operation_name(node), reason, remedy, naive_error)


def _only_layer_after(node: Node) -> Node | None:
    """The convolution or linear layer that alone reads it, directly or moved or padded on the way."""
    while len(node.readers) == 1:
        node = node.readers[0]
        if node.op in KERNELS:
            return node
        if node.op not in REARRANGING and node.op != "pad":
            break
    return None


def _is_scale(node: Node) -> bool:
    return node.name == "batch_norm" or node.function is affine_part


def _source(node: Node) -> str:
    """What computed a tensor, as texts name it."""
    if node.function is not None:
        return node.op
    return "a tensor of unknown origin" if has_unknown_origin(node) else "the input"


def _names_in_words(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`, each once."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last
