"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from reparam.errors import VerificationError

EXACT = 1e-10
"""Largest float64 error of an exact fold, relative to max|y|. Deep nets round to 1e-14 in float64, while the smallest
real mistake on record (a constant that went through float32) shows up as 1e-9: the bound sits between the two."""

_LOST = "the original in its own dtype is not comparable with its float64 truth"

_FP64, _OWN, _REJECTED = "fp64", "own dtype", "not accepted"

_OTHERS = {"batch": "another batch size", "size": "another resolution", "odd size": "odd changes of it"}


@dataclass(frozen=True)
class Check:
    """One comparison: of the output tensor `name` (or of the whole call), on `inputs`, of a `kind`.

    `error` and `bound` are relative to max|truth| of that tensor, and for integer and bool tensors the share of entries
    that differ. `noise` is what the original itself shows: in its own dtype, or in float64 with its weights re-rounded,
    which is left unmeasured, and 0, where everything passes without it.
    """

    name: str
    inputs: str
    kind: str
    error: float
    bound: float
    noise: float
    passed: bool
    detail: str = ""

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare: the original itself may not take these inputs."""
        return self.kind != _REJECTED

    def __str__(self) -> str:
        text = f"{self.name} on {self.inputs} ({self.kind}): error {self.error:.2g}, bound {self.bound:.2g}"
        return f"{text}; {self.detail}" if self.detail else text


@dataclass(frozen=True)
class Verification:
    """The checks of one call of `verify`; prints as a table and a verdict."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def fp64_error(self) -> float:
        """The largest float64 error: of the function itself, before any rounding where `exact` was given."""
        return self._largest(_FP64, "error")

    @property
    def own_error(self) -> float:
        """The candidate's largest error in its own dtype."""
        return self._largest(_OWN, "error")

    @property
    def noise_floor(self) -> float:
        """The original's largest error in its own dtype: the noise that any conversion is allowed to have."""
        return self._largest(_OWN, "noise")

    @property
    def worst(self) -> Check | None:
        """The failed check furthest beyond its bound; None where none failed."""
        failed = [check for check in self.checks if not check.passed]
        return max(failed, key=lambda check: check.error / (check.bound or EXACT), default=None)

    def _largest(self, kind: str, what: str) -> float:
        return max((getattr(check, what) for check in self.checks if check.kind == kind), default=0.0)

    @property
    def findings(self) -> tuple[str, ...]:
        """The outputs that the original itself gets wrong in its own dtype: they were compared in float64 alone."""
        lost = dict.fromkeys(check.name for check in self.checks if check.detail.startswith(_LOST))
        return tuple(f"{name}: {_LOST}, which alone was compared" for name in lost)

    def raise_if_failed(self) -> Verification:
        """Itself where every check passed; raises VerificationError with the worst check otherwise."""
        if self.worst is not None:
            raise VerificationError(f"the candidate is not equal to the original: {self.worst}")
        return self

    def __str__(self) -> str:
        headers = ("inputs", "kind", "worst output", "error", "bound", "", "note")
        rows = [
            (c.inputs, c.kind, c.name, f"{c.error:.2g}", f"{c.bound:.2g}", "ok" if c.passed else "FAILED", c.detail)
            for c in self.shown()
        ]
        return f"{tabulate(rows, headers=headers, disable_numparse=True)}\n\n{self.summary}"

    def shown(self) -> list[Check]:
        """Every failed check, and of the passed ones the worst of each inputs and kind: some models return hundreds."""
        worst: dict[tuple[str, str], Check] = {}
        for check in self.checks:
            seen = worst.setdefault((check.inputs, check.kind), check)
            if check.error > seen.error:
                worst[check.inputs, check.kind] = check
        return [c for c in self.checks if not c.passed or any(c is shown for shown in worst.values())]

    @property
    def summary(self) -> str:
        """The verdict in a line, and a line for each finding."""
        if self.worst is not None:
            failed = sum(not check.passed for check in self.checks)
            return f"NOT EQUAL: {failed} of {len(self.checks)} checks failed, worst: {self.worst}"
        doubled = any(check.kind == _FP64 for check in self.checks)
        exactly = f"float64 error {self.fp64_error:.2g}; " if doubled else ""
        verdict = (
            f"equal: {exactly}in its own dtype the candidate is {self.own_error:.2g} from "
            f"the truth, the original {self.noise_floor:.2g}; {self._where()}"
        )
        return "\n".join([verdict, *(f"Found: {finding}" for finding in self.findings)])

    def _where(self) -> str:
        """What else than the example was compared, and what the original itself does not take."""
        refused = {_variant(check) for check in self.checks if check.kind == _REJECTED}
        accepted = {_variant(check) for check in self.checks} - refused
        others = [text for name, text in _OTHERS.items() if name in accepted]
        wrong = [text for name, text in _OTHERS.items() if name in refused]
        parts = [f"also at {_listed(others)}"] if others else ["at the example's size and batch alone"]
        return "; ".join([*parts, *([f"the original itself does not take {_listed(wrong)}"] if wrong else [])])


def _variant(check: Check) -> str:
    """Which inputs a check is of: the example's, or a name of `_variants`."""
    return next((name for name in _OTHERS if check.inputs.startswith(f"{name} ")), "example")


def _listed(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
