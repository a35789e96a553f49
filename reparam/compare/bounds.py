"""How large an error may be: one policy for every comparison.

All errors are relative to max|truth|. No tolerance is typed in: a bound is `EXACT`, or a multiple of the noise that the
original itself shows, whichever is larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

EXACT = 1e-10
"""Largest float64 error of an exact fold. Deep networks round to 1e-14 in float64, while the smallest real mistake on
record (a constant that went through float32) shows up as 1e-9: the bound sits between the two."""

NOISE = 3
"""How many times the original's own rounding noise a conversion may have. Noise is a maximum over a few thousand random
values and varies by less than 2 from one order of additions to another; a fold that is wrong is off by far more."""

FLOOR = 4
"""A bound is at least this many eps. An original may round less by luck: an identity does not round at all."""

RUNTIME = 3
"""How many times more noise another runtime may have: it computes convolutions by other algorithms."""

REBUILT = 30
"""How many times the noise of its weights a model may be off that is rebuilt on another machine, by another torch."""


@dataclass(frozen=True)
class Bounds:
    """The bounds for the conversions of one model.

    eps: of the coarsest floating dtype that the model uses; 0 where it uses none.
    rounded: the candidate's weights have been rounded to that dtype, and their exact values are not known.
    """

    eps: float
    rounded: bool = False

    def float64(self, weight_noise: float) -> float:
        """For a candidate in float64. weight_noise: the error that re-rounding the original's weights makes."""
        if self.rounded:
            return max(EXACT, NOISE * weight_noise)
        # The noise is that of one ulp of the model's dtype; the ulp of float64 is this much smaller.
        finer = torch.finfo(torch.float64).eps / self.eps if self.eps else 0.0
        return max(EXACT, NOISE * weight_noise * finer)

    @property
    def summing_eps(self) -> float:
        """That of the dtype in which sums are made: float32 for what is coarser, too."""
        return min(self.eps, torch.finfo(torch.float32).eps)

    def own_dtype(self, noise: float) -> float:
        """For a candidate in its own dtype. noise: the largest of the original's error there, that of re-rounding its
        weights, and that of adding up its products in another order (see `summing`)."""
        return max(EXACT, FLOOR * self.eps, NOISE * noise)

    def timed(self, noise: float, other_runtime: bool) -> float:
        """For models that are timed against each other. noise: as for `own_dtype`."""
        return max(EXACT, FLOOR * self.eps, (RUNTIME if other_runtime else 1) * NOISE * noise)

    @staticmethod
    def rebuilt(weight_noise: float) -> float:
        """For a model that is rebuilt from a file, in float64. weight_noise: as for `float64`."""
        return max(EXACT, REBUILT * weight_noise)
