"""How far apart two outputs are: the one place where errors are measured.

An output is a dict of leaves by path: tensors, and whatever else a model returns. `compare` looks at its form first
(structure, shapes, dtypes, and every value that is no float), and measures each tensor and float relative to
max|truth|. Which errors pass is decided by `Bounds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Leaves: TypeAlias = dict[str, Any]
"""The leaves of an output by path, such as `out['logits'][0]`."""

_HUGE = 1e30  # masks are filled with finfo(dtype).min, which differs by dtype and would dwarf every real value


@dataclass(frozen=True)
class Difference:
    """How an output differs from the true one.

    form: the first difference in structure, shape, dtype or plain value, in words; "" where there is none.
    errors: the relative error of each tensor and float of the truth, by path; inf where the other output lacks it.
    """

    form: str
    errors: Mapping[str, float]


def compare(truth: Leaves, value: Leaves, like: Leaves | None = None, dtypes: bool = True) -> Difference:
    """Compare two outputs.

    like: the output whose form `value` must have, if not that of `truth`: a model in its own dtype is measured against
        the float64 truth, but returns other dtypes.
    dtypes: whether dtypes are part of the form.
    """
    return Difference(_form_difference(truth if like is None else like, value, dtypes), relative_errors(truth, value))


def relative_errors(truth: Leaves, value: Leaves) -> dict[str, float]:
    """The relative error of each tensor and float of the truth, by path; inf where `value` lacks it."""
    values = numbers(value)
    return {
        path: relative_error(tensor, values[path]) if path in values else float("inf")
        for path, tensor in numbers(truth).items()
    }


def relative_error(truth: Tensor, value: Tensor, scale: float | None = None) -> float:
    """max|value - truth| / max|truth| over the finite entries of two tensors, computed in float64.

    scale: what to divide by instead of max|truth|, where `truth` is a part of a larger tensor.

    0 where both are all zero or empty; inf where the shapes differ, where only the truth is all zero, and where one is
    non-finite and the other is not the same (NaN equals NaN, an infinity itself; magnitudes beyond 1e30 count as
    infinite). Integer and bool tensors: the share of entries that differ.
    """
    if truth.shape != value.shape:
        return float("inf")
    if not truth.numel():
        return 0.0
    if not (is_floating(truth) or is_floating(value)):
        return (truth != value.to(truth.device)).double().mean().item()
    wide = torch.complex128 if truth.is_complex() or value.is_complex() else torch.float64
    truth, value = truth.detach().to(wide), value.detach().to(truth.device, wide)
    if wide == torch.complex128:
        truth, value = torch.view_as_real(truth), torch.view_as_real(value)
    largest, error = truth.abs().max().item(), (value - truth).abs().max().item()
    if not largest + error <= _HUGE:  # there is a NaN, an infinity or a mask: compare entry by entry
        largest, error = _finite_part(_unmasked(truth), _unmasked(value))
    if error == 0.0:
        return 0.0
    size = largest if scale is None else scale
    return error / size if size else float("inf")


def numbers(output: Leaves) -> dict[str, Tensor]:
    """The leaves that have an error: tensors, and floats as tensors."""
    floats = {path: torch.tensor(leaf, dtype=torch.float64) for path, leaf in output.items() if isinstance(leaf, float)}
    return floats | {path: leaf for path, leaf in output.items() if isinstance(leaf, Tensor)}


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor holds real or complex floating numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def _form_difference(expected: Leaves, value: Leaves, dtypes: bool) -> str:
    if missing := [path for path in expected if path not in value]:
        return f"the output of the candidate lacks {missing[0]}"
    if extra := [path for path in value if path not in expected]:
        return f"only the output of the candidate has {extra[0]}"
    for path, leaf in expected.items():
        theirs, ours = _form(leaf, dtypes), _form(value[path], dtypes)
        if theirs != ours:
            return f"{path} is {theirs} in the original and {ours} in the candidate"
    return ""


def _form(leaf: Any, dtypes: bool) -> str:
    """The part of a leaf that must be equal. Of an unknown object that is its class: its text may hold an address."""
    if isinstance(leaf, Tensor):
        dtype = f"{str(leaf.dtype).removeprefix('torch.')} " if dtypes else ""
        return f"a {dtype}tensor of shape {tuple(leaf.shape)}"
    return repr(leaf) if isinstance(leaf, bool | int | str | bytes | None) else f"a {type(leaf).__name__}"


def _finite_part(truth: Tensor, value: Tensor) -> tuple[float, float]:
    """max|truth| and max|value - truth| where the truth is finite; an infinite error where the rest is not the same."""
    finite = truth.isfinite()
    same = torch.allclose(truth[~finite], value[~finite], rtol=0, atol=0, equal_nan=True)
    truth, value = truth[finite], value[finite]
    largest = truth.abs().max().item() if finite.any() else 0.0
    if not same or not value.isfinite().all():
        return largest, float("inf")
    return largest, (value - truth).abs().max().item() if finite.any() else 0.0


def _unmasked(tensor: Tensor) -> Tensor:
    """Huge entries as infinities."""
    return torch.where(tensor.abs() > _HUGE, tensor.sign() * float("inf"), tensor)
