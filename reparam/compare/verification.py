"""What `verify` returns: every comparison that was made, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from tabulate import tabulate

from reparam.compare.bounds import EXACT
from reparam.errors import VerificationError

FLOAT64, OWN_DTYPE, NOT_ACCEPTED = "fp64", "own dtype", "not accepted"
"""The kinds of checks: both models in float64; both as they are; inputs that the original itself does not take."""

INACCURATE = "the original is too inaccurate in its own dtype to compare with"
"""How the detail of a check begins whose original is as far from its own float64 truth as zeros would be."""

OWN_DTYPE_ONLY = "compared in its own dtype only"
"""How the detail of a check begins whose candidate has no float64."""

COMPILED = "compiled code in its own dtype; in float64, the Python code behind it"
"""The detail of a check that has run a candidate's compiled code."""


@dataclass(frozen=True)
class Check:
    """One comparison: of the output tensor `name` (or of the whole call), on `inputs`, of a `kind`.

    `error` and `bound` are relative to max|truth| of that tensor; for integer and bool tensors they are the share of
    entries that differ. `noise` is the error of the original itself: in its own dtype, or in float64 with its weights
    re-rounded (0 where that was not measured, because the check passes without it).
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
        """Whether anything was compared: the original itself may not take these inputs."""
        return self.kind != NOT_ACCEPTED

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
    def imprecise(self) -> bool:
        """Whether the functions are equal, but the candidate rounds too much in its own dtype."""
        failed = [check for check in self.checks if not check.passed]
        compared = any(check.kind == FLOAT64 for check in self.checks)
        return compared and bool(failed) and all(check.kind == OWN_DTYPE and not check.detail for check in failed)

    @property
    def fp64_error(self) -> float:
        """The candidate's largest error in float64; before its weights were rounded, where `exact` was given."""
        return self._largest(FLOAT64, "error")

    @property
    def own_error(self) -> float:
        """The candidate's largest error in its own dtype."""
        return self._largest(OWN_DTYPE, "error")

    @property
    def noise_floor(self) -> float:
        """The original's largest error in its own dtype: the noise that any conversion may have."""
        return self._largest(OWN_DTYPE, "noise")

    @property
    def worst(self) -> Check | None:
        """The failed check furthest beyond its bound; None where none failed."""
        failed = [check for check in self.checks if not check.passed]
        return max(failed, key=lambda check: check.error / (check.bound or EXACT), default=None)

    def _largest(self, kind: str, field: str) -> float:
        return max((getattr(check, field) for check in self.checks if check.kind == kind), default=0.0)

    @property
    def findings(self) -> tuple[str, ...]:
        """The outputs that the original itself gets wrong in its own dtype: they are compared in float64 only."""
        names = dict.fromkeys(check.name for check in self.checks if check.detail.startswith(INACCURATE))
        return tuple(f"{name}: {INACCURATE}; it was compared in float64 only" for name in names)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the candidate was compared, where it is not a module of Python code that has a float64."""
        details = dict.fromkeys(check.detail for check in self.checks)
        return tuple(detail for detail in details if detail.startswith((OWN_DTYPE_ONLY, COMPILED)))

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
        """Every failed check, and the worst passed one per inputs and kind: some models return hundreds of tensors."""
        worst: dict[tuple[str, str], Check] = {}
        for check in self.checks:
            so_far = worst.setdefault((check.inputs, check.kind), check)
            if check.error > so_far.error:
                worst[check.inputs, check.kind] = check
        return [c for c in self.checks if not c.passed or any(c is check for check in worst.values())]

    @property
    def summary(self) -> str:
        """The verdict in a line, and a line for each note and finding."""
        if self.worst is not None:
            failed = sum(not check.passed for check in self.checks)
            return f"NOT EQUAL: {failed} of {len(self.checks)} checks failed, worst: {self.worst}"
        in_float64 = any(check.kind == FLOAT64 for check in self.checks)
        parts = [f"float64 error {self.fp64_error:.2g}"] if in_float64 else []
        parts += [f"own-dtype error {self.own_error:.2g}, the original's {self.noise_floor:.2g}", self._coverage()]
        notes = (f"Candidate: {note}" for note in self.notes)
        return "\n".join([f"equal: {'; '.join(parts)}", *notes, *(f"Found: {finding}" for finding in self.findings)])

    def _coverage(self) -> str:
        """How many input shapes were compared, and which ones the original itself does not take."""
        shapes = {check.inputs for check in self.checks if check.compared}
        refused = dict.fromkeys(check.inputs for check in self.checks if not check.compared)
        text = f"checked at {len(shapes)} input shape{'s' if len(shapes) != 1 else ''}"
        return f"{text}; the original itself does not take {' and '.join(refused)}" if refused else text
