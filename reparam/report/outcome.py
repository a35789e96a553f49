"""The result of a conversion as values: made by `report`, shown by `render`, written by `as_data`."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.compare.levels import FOLDS, FULL, NONE, Level
from reparam.compare.verification import Verification
from reparam.report.quantisation import Weights

START = -1
"""In `Step.reads`: the tensor that the fold starts from."""


@dataclass(frozen=True)
class Step:
    """One operation of a fold.

    operation: its name in torch; geometry: kernel, channels, stride, ... in short; where: the module that computed it;
    reads: the indices of the steps that it reads, or `START`; count: how many of its kind in a row it stands for.
    """

    operation: str
    geometry: str = ""
    where: str = ""
    reads: tuple[int, ...] = ()
    count: int = 1


NOISE = 0.02
"""The smallest share of the time that a measurement can reliably tell apart."""


@dataclass(frozen=True)
class Gain:
    """Microseconds of one forward pass, before and after."""

    before: float
    after: float

    @property
    def saved(self) -> float:
        """The share of the time that is saved; negative where it takes longer."""
        return 1 - self.after / self.before if self.before else 0.0

    def __str__(self) -> str:
        if abs(self.saved) < 0.0005:
            return "as long as before"
        return f"{percent(abs(self.saved))} {'less' if self.saved > 0 else 'more'} time"

    def __add__(self, other: Gain) -> Gain:
        return Gain(self.before + other.before, self.after + other.after)


@dataclass(frozen=True)
class FoldLine:
    """One fold.

    name: the module that holds it now; before: its operations, counted; after: the layers that replace them.
    error: the float64 error of the fold alone, relative to max|y|; None where it was not checked.
    steps: the operations that it replaces, in order; the last one computes its result.
    becomes: what is computed instead, in order; empty where other folds have taken it.
    weights: the ranges of the kernels before and after; None where there is no kernel after.
    predicted, measured: the time of the operations that it replaces, and its own; None where there is none. An
        operation that several folds replace counts for the first of them.
    merged: where one convolution computes this fold and others, all modules that computed them before.
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
    """One operation that was kept: where, what, why, and what would change it.

    naive_error: the float64 error, relative to max|y|, of a fold that ignores the border. None where the border is not
        the reason, where it was not measured, and for transposed convolutions, where there is no single naive fold.
    """

    where: str
    operation: str
    reason: str
    remedy: str
    naive_error: float | None = None

    def __str__(self) -> str:
        text = f"{self.where} ({self.operation}) kept: {self.reason}" + (f"; {self.remedy}" if self.remedy else "")
        error = self.naive_error
        return text if error is None else f"{text}; a naive fold would be wrong by {percent(error)} at the border"


@dataclass(frozen=True)
class DeadWeight:
    """A module or a tensor that no output of the recorded run depends on.

    why: "never called", "never read" or "its result is dropped"; fate: "left", "removed", or why it was kept.
    """

    name: str
    kind: str
    why: str
    elements: int
    bytes: int
    fate: str = "left"


@dataclass(frozen=True)
class DecisionLine:
    """Where a number of the input, or a question about the process, has become a plain value.

    where: the module whose code it is. at: file and line. expression, value: what was decided, and which way.
    settled: why the folds hold for the other way as well; empty where that is not known.
    """

    where: str
    at: str
    expression: str
    value: str
    settled: str

    def __str__(self) -> str:
        return f"{self.where} ({self.at}): {self.expression} is {self.value}: {self.settled or 'not settled'}"


@dataclass(frozen=True)
class Counts:
    """What one forward pass runs: calls of convolutions and linear layers, batch norms, sums and products.

    parameters: elements of all parameters and buffers; macs: multiply-adds for the example inputs.
    """

    convs: int
    norms: int
    elementwise: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Stage:
    """What one stage of the conversion made of the model: its name, one sentence, and a line for each part."""

    name: str
    summary: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.summary}", *(f"  {line}" for line in self.details)])


@dataclass(frozen=True)
class Outcome:
    """Everything that a report holds.

    model: the class of the original; inputs: the shapes of the example inputs; cost: the name of the cost model;
    predicted: the time of the whole network; verification: None where the whole models were not compared;
    stages: what record, values, plan, edits and result were (see `explain --stages`).
    """

    folds: tuple[FoldLine, ...]
    refusals: tuple[RefusalLine, ...]
    before: Counts
    after: Counts
    verification: Verification | None = None
    dead: tuple[DeadWeight, ...] = ()
    decisions: tuple[DecisionLine, ...] = ()
    model: str = ""
    inputs: str = ""
    cost: str = ""
    predicted: Gain | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def measured(self) -> Gain | None:
        """The measured times of all folds, added up; None where nothing was measured."""
        gains = [fold.measured for fold in self.folds if fold.measured is not None]
        return sum(gains, Gain(0.0, 0.0)) if gains else None

    @property
    def checked(self) -> Level:
        """What was verified: the whole model and each fold, each fold alone, or nothing."""
        if self.verification is not None:
            return FULL
        return FOLDS if any(fold.error is not None for fold in self.folds) else NONE

    @property
    def fold_error(self) -> float:
        """The largest float64 error of a fold alone, relative to max|y|, among those that were checked."""
        return max((fold.error for fold in self.folds if fold.error is not None), default=0.0)

    @property
    def worth(self) -> str:
        """What folding gains, in plain words, also where it gains nothing."""
        sentences = [self._time()]
        before, after = self.before.parameters, self.after.parameters
        if after > before > 0:
            sentences.append(f"It holds {percent(after / before - 1)} more parameters than before.")
        return " ".join(filter(None, sentences))

    def _time(self) -> str:
        if not self.folds:
            return "Nothing was folded: the network takes as long as before."
        sentences = [] if self.measured is None else [f"Measured: what was folded takes {self.measured}."]
        if self.predicted is not None:
            caution = "" if self.predicted.saved >= NOISE else ": do not expect it to be faster"
            sentences.append(f"Predicted: the network takes {self.predicted}{caution}.")
        return " ".join(sentences)

    def reasons(self) -> tuple[Reason, ...]:
        """The refusals grouped by what they say, the most frequent first."""
        groups: dict[tuple[str, str, str], list[RefusalLine]] = {}
        for line in self.refusals:
            groups.setdefault((line.operation, line.reason, line.remedy), []).append(line)
        return tuple(Reason(tuple(lines)) for lines in sorted(groups.values(), key=len, reverse=True))


@dataclass(frozen=True)
class Reason:
    """Refusals with the same operation, reason and remedy, in order; at least one."""

    lines: tuple[RefusalLine, ...]

    @property
    def example(self) -> RefusalLine:
        """The line with the largest naive error, or the first where none was measured."""
        return max(self.lines, key=lambda line: -1.0 if line.naive_error is None else line.naive_error)

    @property
    def places(self) -> tuple[str, ...]:
        """Where it was met, once each, the example first."""
        return tuple(dict.fromkeys(line.where for line in (self.example, *self.lines)))


def percent(share: float) -> str:
    """A share as text: `12 %`, `0.34 %`."""
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
