"""The geometry of a convolution along one axis, and how geometries combine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce


@dataclass(frozen=True)
class Axis:
    """The geometry along one spatial axis; negative `lo` or `hi` crop. Units: pixels of the anchor."""

    taps: int = 1
    dilation: int = 1
    stride: int = 1
    lo: int = 0
    hi: int = 0

    @property
    def span(self) -> int:
        return self.dilation * (self.taps - 1) + 1

    @property
    def slack(self) -> int:
        """lo + hi - span: two convolutions of one stride give equally many outputs at every size iff it is equal."""
        return self.lo + self.hi - self.span

    def outputs(self, length: int) -> int:
        return (length + self.slack) // self.stride + 1

    @property
    def smallest(self) -> int:
        """The smallest input length that gives an output."""
        return max(1, -self.slack)

    def padded(self, lo: int, hi: int) -> Axis:
        """`lo` and `hi` more outputs at the two ends (fewer where negative)."""
        return replace(self, lo=self.lo + lo * self.stride, hi=self.hi + hi * self.stride)

    def then(self, outer: Axis) -> Axis:
        """`outer`, unpadded, applied to the outputs of this."""
        dilation = _lattice(self, Axis(outer.taps, outer.dilation * self.stride)) or 1
        span = self.span + self.stride * (outer.span - 1)
        return Axis((span - 1) // dilation + 1, dilation, self.stride * outer.stride, self.lo, self.hi)

    def joined(self, other: Axis) -> Axis:
        """The smallest window that holds the taps of both; strides and slacks are equal."""
        lo = max(self.lo, other.lo)
        span = lo + max(self.span - self.lo, other.span - other.lo)
        dilation = _lattice(self, other, abs(self.lo - other.lo)) or 1
        return Axis((span - 1) // dilation + 1, dilation, self.stride, lo, self.slack + span - lo)

    def widened(self) -> Axis:
        """Padded equally at both ends, as nn.Conv wants it: the window grows by taps that will be zero."""
        padding = max(self.lo, self.hi, 0)
        span = 2 * padding - self.slack
        dilation = math.gcd(_lattice(self, self, padding - self.lo), span - 1) or 1
        return Axis((span - 1) // dilation + 1, dilation, self.stride, padding, padding)


def _lattice(a: Axis, b: Axis, offset: int = 0) -> int:
    """The coarsest step that reaches every tap of both windows, `offset` pixels apart; 0 where there is but one tap."""
    return reduce(math.gcd, [axis.dilation for axis in (a, b) if axis.taps > 1], offset)
