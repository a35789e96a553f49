"""Results as plain data: what `json.dumps` takes, for programs and for files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from reparam.compare.bench import Comparison, Spread
from reparam.compare.verification import Verification
from reparam.report.outcome import Outcome


def plain_data(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, and floats that JSON cannot hold as text ("inf", "nan")."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def verification_data(verification: Verification) -> dict[str, Any]:
    """The verdict, the errors that it rests on, and every check."""
    names = ("ok", "summary", "fp64_error", "own_error", "noise_floor")
    verdict = {name: plain_data(getattr(verification, name)) for name in names}
    return {**verdict, "checks": plain_data(verification.checks)}


def report_data(report: Outcome) -> dict[str, Any]:
    """All fields of the report under their names, and what it derives from them."""
    data: dict[str, Any] = plain_data(dataclasses.replace(report, verification=None))
    for line, fold in zip(data["folds"], report.folds, strict=True):
        if fold.weights is not None:
            line["weights"] |= {"bits_lost": fold.weights.bits_lost, "advice": fold.weights.advice}
    derived = {"checked": report.checked, "measured": plain_data(report.measured), "worth": report.worth}
    verification = None if report.verification is None else verification_data(report.verification)
    return {**data, **derived, "verification": verification}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Seconds per call and ratios to the first model, as medians and quartiles, and every sample of the wall time."""
    models = [
        {
            "name": timing.name,
            "wall": _spread_data(timing.wall),
            "cpu": _spread_data(timing.cpu),
            "ratio": _spread_data(comparison.ratio(timing.name)),
            "repeats": timing.repeats,
            "wall_samples": list(timing.wall_samples),
        }
        for timing in comparison.timings
    ]
    about = {name: getattr(comparison, name) for name in ("inputs", "device", "threads", "checked")}
    return {"models": models, **about}


def _spread_data(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}
