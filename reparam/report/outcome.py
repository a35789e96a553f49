"""What a conversion has come to, as values: made in `report`, shown by `render`."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.compare.levels import FOLDS, FULL, NOTHING, Checked
from reparam.compare.verification import Verification
from reparam.report.quantisation import Weights

START = -1
"""What a step of a fold reads that reads the tensor that the fold starts from."""


@dataclass(frozen=True)
class Step:
    """One operation of a fold.

    operation: torch's name for it; geometry: kernel, channels, stride, ... in the field's shorthand; where: the module
    that computed it; reads: the steps that it reads, by index, or `START`; count: so many of its kind in a row.
    """

    operation: str
    geometry: str = ""
    where: str = ""
    reads: tuple[int, ...] = ()
    count: int = 1


NOISE = 0.02
"""The share of the time below which hardly any measurement tells two models apart."""


@dataclass(frozen=True)
class Gain:
    """Microseconds of one forward pass, before and after."""

    before: float
    after: float

    @property
    def saved(self) -> float:
        """The share of the time that is saved, below zero where it takes longer."""
        return 1 - self.after / self.before if self.before else 0.0

    def __str__(self) -> str:
        if abs(self.saved) < 0.0005:
            return "as long as before"
        return f"{percent(abs(self.saved))} {'less' if self.saved > 0 else 'more'} time"

    def __add__(self, other: Gain) -> Gain:
        return Gain(self.before + other.before, self.after + other.after)


@dataclass(frozen=True)
class FoldLine:
    """One fold: the module that holds it now, what it stands for, what it is; error in float64 relative to max|y|.

    steps: the operations that it stands for, in order, the last one being its result.
    becomes: what is computed instead, in order; nothing where others have taken it.
    weights: the ranges of the kernels before and after; None where none came out.
    predicted, measured: what it takes instead of the operations that it makes superfluous (an operation that several
        folds do is counted with the first); None where it was not.
    merged: where one convolution computes this and others, all modules that computed them before.
    made_by: the search that found it: "region", "distribute" (over the sides of a join) or "horizontal" (fusion).
    """

    name: str
    before: str
    after: str
    error: float | None
    steps: tuple[Step, ...] = ()
    becomes: tuple[str, ...] = ()
    weights: Weights | None = None
    predicted: Gain | None = None
    measured: Gain | None = None
    merged: tuple[str, ...] = ()
    made_by: str = "region"


@dataclass(frozen=True)
class RefusalLine:
    """One operation that was kept: where, what was decided about, why, and what would change it.

    naive_error: how wrong a fold would be that overlooks the border, measured in float64, relative to max|y|; None
        where the reason is another one, nothing was measured, or a transposed convolution has zeros between its pixels:
        there, what a fold that overlooks them makes of a bias depends on how it does.
    """

    where: str
    operation: str
    reason: str
    remedy: str
    naive_error: float | None = None

    def __str__(self) -> str:
        text = f"{self.where} ({self.operation}) kept: {self.reason}" + (f"; {self.remedy}" if self.remedy else "")
        wrong = self.naive_error
        return text if wrong is None else f"{text}; a naive fold would be wrong by {percent(wrong)} at the border"


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
class Outcome:
    """All of it; `model` is the class of the original, `inputs` the sizes of the example.

    cost: what the plan was judged by; predicted: the time of the whole network.
    """

    folds: tuple[FoldLine, ...]
    refusals: tuple[RefusalLine, ...]
    before: Counts
    after: Counts
    verification: Verification | None = None
    dead: tuple[DeadWeight, ...] = ()
    baked: tuple[Look, ...] = ()
    model: str = ""
    inputs: str = ""
    cost: str = ""
    predicted: Gain | None = None

    @property
    def measured(self) -> Gain | None:
        """The sum of what was measured of all folds; None where nothing was."""
        found = [fold.measured for fold in self.folds if fold.measured is not None]
        return sum(found, Gain(0.0, 0.0)) if found else None

    @property
    def checked(self) -> Checked:
        """What has been verified: the whole model and each fold, each fold alone, or nothing."""
        if self.verification is not None:
            return FULL
        return FOLDS if any(fold.error is not None for fold in self.folds) else NOTHING

    @property
    def fold_error(self) -> float:
        """The largest error of a fold alone, in float64 and relative to max|y|, of those that were checked."""
        return max((fold.error for fold in self.folds if fold.error is not None), default=0.0)

    @property
    def worth(self) -> str:
        """What it is worth, in plain words: also where that is nothing, before anybody has to find out."""
        told = [self._time()]
        before, after = self.before.parameters, self.after.parameters
        if after > before > 0:
            told.append(f"It holds {percent(after / before - 1)} more parameters than before.")
        return " ".join(filter(None, told))

    def _time(self) -> str:
        if not self.folds:
            return "Nothing was folded: the network takes as long as before."
        told = [] if self.measured is None else [f"Measured: what was folded takes {self.measured}."]
        if self.predicted is not None:
            hidden = "" if self.predicted.saved >= NOISE else ": do not expect it to be faster"
            told.append(f"Predicted: the network takes {self.predicted}{hidden}.")
        return " ".join(told)

    def reasons(self) -> tuple[Reason, ...]:
        """The refusals by what they say, the most frequent first."""
        met: dict[tuple[str, str, str], list[RefusalLine]] = {}
        for line in self.refusals:
            met.setdefault((line.operation, line.reason, line.remedy), []).append(line)
        return tuple(Reason(tuple(lines)) for lines in sorted(met.values(), key=len, reverse=True))

    def looks(self) -> dict[str, list[str]]:
        """Where code has looked, by what it did, each in the order of the calls."""
        places: dict[str, list[str]] = {}
        for look in self.baked:
            places.setdefault(look.what, []).append(look.where)
        return places


@dataclass(frozen=True)
class Reason:
    """Refusals that say the same, in order; at least one."""

    lines: tuple[RefusalLine, ...]

    @property
    def example(self) -> RefusalLine:
        """Of several the worst, for what a naive fold would do there is the reason to look; else the first."""
        return max(self.lines, key=lambda line: -1.0 if line.naive_error is None else line.naive_error)


def percent(share: float) -> str:
    """A share for people: `12 %`, `0.34 %`."""
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
