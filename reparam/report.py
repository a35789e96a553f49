"""What was done, what was not and why, and what it is worth: for people to read and programs to use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tabulate import tabulate
from torch import nn

from reparam import cost
from reparam.affine import AffineConv
from reparam.axis import ZEROS, Axis
from reparam.capture import READ, SIZE, Node, Record
from reparam.dead import Dead
from reparam.fold import Fold
from reparam.plan import Plan
from reparam.rules import operation
from reparam.split import affine_part
from reparam.trace import user_code
from reparam.verify import Verification

_KINDS = {
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear",
    "bn": "batch_norm",
    "elementwise": "add sub rsub mul div neg",
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_SHORT = {"batch_norm": "bn", "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "avg_pool2d": "pool"}
_ORDER = {name: i for i, name in enumerate(("conv", "linear", "bn", "pool"))}  # then the others as they come
_CLASS = {0: "Linear", 1: "Conv1d", 2: "Conv2d", 3: "Conv3d"}


_KINDS_OF_LOOKS = (SIZE, READ)


@dataclass(frozen=True)
class FoldLine:
    """One fold: the module that holds it now, what it stands for, what it is; error in float64 relative to max|y|."""

    name: str
    before: str
    after: str
    error: float | None


@dataclass(frozen=True)
class RefusalLine:
    """One operation that was kept: where, what was decided about, why, and what would change it.

    naive_error: how wrong a fold would be that overlooks the border, measured in float64, relative to max|y|; None
        where the reason is another one, or nothing was measured.
    """

    where: str
    operation: str
    reason: str
    remedy: str
    naive_error: float | None = None

    def __str__(self) -> str:
        text = f"{self.where} ({self.operation}) kept: {self.reason}" + (f"; {self.remedy}" if self.remedy else "")
        wrong = self.naive_error
        return text if wrong is None else f"{text}; a naive fold would be wrong by {_percent(wrong)} at the border"


@dataclass(frozen=True)
class DeadWeight:
    """What no output of the recorded run depends on: a module that is dead as a whole, or a single tensor.

    why: "never called", "never read" or "its result is dropped"; fate: "left", "removed", or why it was kept.
    """

    name: str
    kind: str
    why: str
    elements: int
    bytes: int
    fate: str = "left"


@dataclass(frozen=True)
class Look:
    """A module of the user's whose code has looked at what another input may have otherwise."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Counts:
    """What one forward pass runs: calls of convolutions and linear layers, batch norms, sums and products.

    parameters: elements of all parameters and buffers; macs: multiply-adds at the example inputs.
    """

    convs: int
    norms: int
    elementwise: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Report:
    """The outcome of `reparameterize`; prints as tables."""

    folds: tuple[FoldLine, ...]
    refusals: tuple[RefusalLine, ...]
    before: Counts
    after: Counts
    verification: Verification | None = None
    dead: tuple[DeadWeight, ...] = ()
    baked: tuple[Look, ...] = ()

    def __str__(self) -> str:
        parts = [self._folds(), self._counts(), self._refusals(), self._dead(), self._baked(), self._verdict()]
        return "\n\n".join(part for part in parts if part)

    def _folds(self) -> str:
        if not self.folds:
            return "Nothing to fold."
        rows = [(f.name, f.before, f.after, "" if f.error is None else f"{f.error:.1e}") for f in self.folds]
        return tabulate(rows, headers=("folded", "what it was", "what it is", "fp64 error"), disable_numparse=True)

    def _counts(self) -> str:
        names = {"convs": "convolutions and linear layers", "norms": "batch norms", "elementwise": "sums and products",
                 "parameters": "parameters", "macs": "multiply-adds"}  # fmt: skip
        rows = [
            (text, f"{getattr(self.before, key):,}", f"{getattr(self.after, key):,}") for key, text in names.items()
        ]
        return tabulate(
            rows, headers=("", "before", "after"), colalign=("left", "right", "right"), disable_numparse=True
        )

    def _refusals(self) -> str:
        """Every reason once, with how often and where it was met first."""
        if not self.refusals:
            return ""
        met = Counter((r.operation, r.reason, r.remedy) for r in self.refusals)
        first = {(r.operation, r.reason, r.remedy): r for r in reversed(self.refusals)}
        # Of several the worst, for what a naive fold would do there is the reason to look.
        first |= {
            (r.operation, r.reason, r.remedy): r
            for r in sorted(self.refusals, key=lambda each: each.naive_error or 0.0)
            if r.naive_error is not None
        }
        lines = [
            f"{first[key]}" + (f" (and {count - 1} more)" if count > 1 else "") for key, count in met.most_common()
        ]
        return "Kept as they are:\n" + "\n".join(f"  {line}" for line in lines)

    def _dead(self) -> str:
        if not self.dead:
            return ""
        rows = [(d.name, d.kind, d.why, f"{d.elements:,}", f"{d.bytes:,}", d.fate) for d in self.dead]
        headers = ("dead weight", "which is", "in eval", "elements", "bytes", "here")
        align = ("left", "left", "left", "right", "right", "left")
        return tabulate(rows, headers=headers, colalign=align, disable_numparse=True)

    def _baked(self) -> str:
        """Every kind of look once, with the first modules that did."""
        if not self.baked:
            return ""
        places = {what: [look.where for look in self.baked if look.what == what] for what in _KINDS_OF_LOOKS}
        lines = [
            f"  {', '.join(where[:3])}" + (f" and {len(where) - 3} more" if len(where) > 3 else "") + f": {what}"
            for what, where in places.items()
            if where
        ]
        return "May take another way for other inputs (no fold relies on the way recorded):\n" + "\n".join(lines)

    def _verdict(self) -> str:
        if self.verification is None:
            return "Not verified." if self.folds else ""
        return f"Verified: {self.verification.summary}"


def describe(value: AffineConv) -> str:
    """A convolution in the field's shorthand, such as `Conv2d 64->64 3x3 s1 p1`."""
    if value.identity:
        return "nothing"
    frames, value = value.deployable()
    name = _CLASS[len(value.axes)].replace("Conv", "ConvTranspose" if value.stretched else "Conv")
    text = f"{name} {value.in_channels}->{value.out_channels}"
    if value.axes:
        strides, pads = zip(*[_strided(value, axis) for axis in value.axes], strict=True)
        fields = [("", "x".join(str(axis.taps) for axis in value.axes)), ("s", _joined(strides)), ("p", _joined(pads))]
        if value.stretched and any(axis.hi > axis.lo for axis in value.axes):
            fields.append(("o", _joined(axis.hi - axis.lo for axis in value.axes)))
        if any(axis.dilation > 1 for axis in value.axes):
            fields.append(("d", _joined(axis.dilation for axis in value.axes)))
        text += "".join(f" {key}{number}" for key, number in fields) + (f" g{value.groups}" if value.groups > 1 else "")
        text += "".join(f" {mode}" for mode in value.modes if mode != ZEROS)
        text += " + map of biases" if value.mapped else ""
    return " + ".join([*(f"pad {sides}" + (f" {mode}" if mode != ZEROS else "") for mode, sides in frames), text])


def _strided(value: AffineConv, axis: Axis) -> tuple[int, int]:
    """Stride and padding as the layer of torch calls them."""
    return (axis.stretch, axis.cut) if value.stretched else (axis.stride, axis.lo)


def summed(nodes: Iterable[Node]) -> str:
    """Operations counted, such as `3 conv + 3 bn + 2 add`."""
    names = [_called(node) for node in nodes if node.function is not None]
    counted = Counter(_SHORT.get(name, name) for name in names).items()
    return " + ".join(
        f"{count} {name}" for name, count in sorted(counted, key=lambda each: _ORDER.get(each[0], len(_ORDER)))
    )


def counts(nodes: Iterable[Node], model: nn.Module) -> Counts:
    """What runs, from the operations that are computed and the model that holds the weights."""
    computed = [node for node in nodes if node.function is not None]
    kinds = Counter(_KIND.get(operation(node.function)) for node in computed)  # type: ignore[arg-type]
    macs = sum(map(cost.macs_of, computed))
    return Counts(kinds["conv"], kinds["bn"], kinds["elementwise"], _elements(model), macs)


def report(
    record: Record,
    plan: Plan,
    original: nn.Module,
    folded: nn.Module,
    names: dict[Fold, str],
    errors: dict[Fold, float],
    naive: Mapping[Node, float],
    dead: Mapping[Dead, str],
) -> Report:
    """The report of a plan that has been carried out.

    names: the modules that hold the folds now; errors: of the folds, and naive: of those refused at a border;
    dead: the dead weight of the original, and what became of it.
    """
    computed = [node for node in record.nodes if node in plan.live]
    left = counts((node for node in computed if node not in plan.removed), folded)
    made = [fold for fold in plan.folds if not fold.value.identity]
    after = Counts(
        left.convs + len(made),
        left.norms,
        left.elementwise,
        left.parameters,
        left.macs + sum(map(_macs, made)),
    )
    lines = tuple(
        FoldLine(names.get(fold) or _place(fold.sink), summed(fold.nodes), describe(fold.value), errors.get(fold))
        for fold in plan.folds
    )
    folded_nodes = {node for fold in plan.folds for node in fold.nodes}  # refused from afar, folded from nearer
    refusals = tuple(
        RefusalLine(_place(node), _called(node), refusal.reason, refusal.remedy, naive.get(node))
        for node, refusal in plan.refusals.items()
        if node.function is not None and node not in folded_nodes
    )
    staying = [node for node in computed if node not in plan.removed and node not in plan.refusals]
    lonely = tuple(_lonely(node, plan, naive) for node in staying if node.name == "batch_norm")
    scales = tuple(_kept_scale(node, record) for node in staying if node.function is affine_part)
    weights = tuple(DeadWeight(d.name, d.kind, d.why, d.elements, d.bytes, fate) for d, fate in dead.items())
    return Report(
        lines, refusals + lonely + scales, counts(computed, original), after, dead=weights, baked=_looks(record)
    )


def _looks(record: Record) -> tuple[Look, ...]:
    """What the user's own code has looked at, in the order of the calls, each once."""
    calls = [call for call in record.calls if user_code(call.module)]
    looks = (
        Look(call.path or "the model itself", what) for call in calls for what in _KINDS_OF_LOOKS if what in call.looked
    )
    return tuple(dict.fromkeys(looks))


def _lonely(norm: Node, plan: Plan, naive: Mapping[Node, float]) -> RefusalLine:
    """Why a norm is left that no rule has refused."""
    sink = next((sink for sink, border in plan.borders().items() if norm in border.nodes), None)
    if sink is not None:
        refusal = plan.refusals[sink]
        reason = f"{operation(sink.function)} cannot take it: {refusal.reason}"  # type: ignore[arg-type]
        return RefusalLine(_place(norm), "batch_norm", reason, refusal.remedy, naive.get(sink))
    before = [operation(node.function) if node.function is not None else "the input" for node in norm.operands]
    after = [operation(node.function) for node in norm.readers if node.function is not None] or ["the output"]
    beside = any(name in cost.KERNELS for name in (*before, *after))
    why = "taking it into a neighbour would cost more than it saves" if beside else "there is no layer to take it"
    return RefusalLine(
        _place(norm), "batch_norm", f"it stands between {_named(before)} and {_named(after)}, and {why}", ""
    )


def _kept_scale(node: Node, record: Record) -> RefusalLine:
    """Why a normalisation has kept its scale and shift."""
    after = [operation(reader.function) for reader in node.readers if reader.function is not None] or ["the output"]
    why = f"not everything that reads it can take it ({_named(after)})"
    if node in record.walls:
        why = "a hook or `keep` watches what comes out of it"
    return RefusalLine(_place(node), _called(node), why, "")


def _called(node: Node) -> str:
    """What an operation is called in tables."""
    return node.name if node.function is affine_part else operation(node.function)  # type: ignore[arg-type]


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _named(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _macs(fold: Fold) -> int:
    """Multiply-adds of a fold; behind steps there are as many pixels as where it stands."""
    if fold.place is None or not fold.value.pixelwise:
        return cost.macs_of_fold(fold.value)
    pixels: int = math.prod(fold.place.shape) // fold.sizes[fold.place][0]
    return pixels * fold.value.out_channels * (fold.value.in_channels // fold.value.groups)


def _place(node: Node) -> str:
    return (node.call.path if node.call else "") or "the model itself"


def _joined(numbers: Iterable[int]) -> str:
    every = list(numbers)
    return str(every[0]) if len(set(every)) == 1 else "x".join(map(str, every))


def _elements(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
