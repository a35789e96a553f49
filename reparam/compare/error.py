"""TODO."""

from __future__ import annotations

import torch
from torch import Tensor

_HUGE = 1e30  # masks are filled with finfo(dtype).min, which differs by dtype and would dwarf every real value


def relative_error(truth: Tensor, value: Tensor) -> float:
    """max|value - truth| / max|truth| over the finite entries of two tensors of one shape, computed in float64.

    0 where both are all zero or empty, inf where only the truth is; inf too where one is non-finite and the other is
    not the same (NaN with NaN, an infinity with itself; magnitudes beyond 1e30 count as infinite). Integer and bool
    tensors: the share of entries that differ. Raises ValueError where the shapes differ.
    """
    if truth.shape != value.shape:
        raise ValueError(f"relative_error: shapes {tuple(truth.shape)} and {tuple(value.shape)} differ")
    if not truth.numel():
        return 0.0
    if not (_is_floating(truth) or _is_floating(value)):
        return (truth != value.to(truth.device)).double().mean().item()
    wide = torch.complex128 if truth.is_complex() or value.is_complex() else torch.float64
    truth, value = (torch.view_as_real(t) if t.is_complex() else t for t in _both(truth, value, wide))
    size, error = truth.abs().max().item(), (value - truth).abs().max().item()
    if not size + error <= _HUGE:  # somewhere is NaN, an infinity or a mask: entry by entry
        size, error = _finite_part(_unmasked(truth), _unmasked(value))
    if error == 0.0:
        return 0.0
    return error / size if size else float("inf")


def _finite_part(truth: Tensor, value: Tensor) -> tuple[float, float]:
    """max|truth| and max|value - truth| where the truth is finite; an infinite error where the rest is not the same."""
    finite = truth.isfinite()
    same = torch.allclose(truth[~finite], value[~finite], rtol=0, atol=0, equal_nan=True)
    truth, value = truth[finite], value[finite]
    size = truth.abs().max().item() if finite.any() else 0.0
    if not same or not value.isfinite().all():
        return size, float("inf")
    return size, (value - truth).abs().max().item() if finite.any() else 0.0


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _both(truth: Tensor, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return truth.detach().to(dtype), value.detach().to(truth.device, dtype)


def _unmasked(tensor: Tensor) -> Tensor:
    return torch.where(tensor.abs() > _HUGE, tensor.sign() * float("inf"), tensor)
