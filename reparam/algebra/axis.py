"""The geometry of a convolution along one axis, and how geometries combine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce

ZEROS = "zeros"
# A padding that copies pixels needs an input that is longer than the padding by so many pixels: reflection leaves out
# the end itself. (Zeros and replication pad an input of any length.)
_BEYOND = {"reflect": 1, "circular": 0}


@dataclass(frozen=True)
class Axis:
    """The geometry along one spatial axis, in pixels of the anchor (with the zeros of `input_dilation` between them).

    lo, hi: the padding at the two ends; negative numbers crop.
    mode: what the padding holds, as in torch: "zeros", "reflect", "replicate", "circular".
    spare: `hi` may be smaller by this much. At the sizes at which that would change the number of outputs, the model
        itself fails, since it puts tensors of different sizes side by side.
    input_dilation: the window runs over the anchor with input_dilation - 1 zeros between its pixels.
    """

    taps: int = 1
    dilation: int = 1
    stride: int = 1
    lo: int = 0
    hi: int = 0
    mode: str = ZEROS
    spare: int = field(default=0, repr=False)
    input_dilation: int = 1

    @property
    def span(self) -> int:
        """The width of the window."""
        return self.dilation * (self.taps - 1) + 1

    @property
    def slack(self) -> int:
        """How much wider the padding is than the window."""
        return self.lo + self.hi - self.span

    @property
    def size_key(self) -> tuple[int, int, int]:
        """Equal for two geometries if and only if they give equally many outputs at every size."""
        return self.input_dilation, self.stride, self.slack

    def same_size_as(self, other: Axis) -> bool:
        """Whether both, of one stride, give equally many outputs at every size at which both give any."""
        return max(self.slack - self.spare, other.slack - other.spare) <= min(self.slack, other.slack)

    def outputs(self, length: int) -> int:
        """The number of outputs for an input of this length."""
        return (self.input_dilation * (length - 1) + 1 + self.slack) // self.stride + 1

    def trimmed(self, length: int) -> Axis:
        """The same outputs at this very length, without pixels at the end that none of them reads."""
        return replace(self, hi=self.hi - (length + self.slack) % self.stride, spare=0)

    @property
    def single(self) -> bool:
        """Whether every output reads the pixel at its own place and no other."""
        return self.taps == self.stride == self.input_dilation == 1 and self.lo == self.hi == 0

    @property
    def has_padding(self) -> bool:
        """Whether there is padding at one end or both."""
        return self.lo > 0 or self.hi > 0

    @property
    def copies_pixels(self) -> bool:
        """Whether its padding copies pixels."""
        return self.has_padding and self.mode != ZEROS

    @property
    def is_same(self) -> bool:
        """Whether it pads as `padding="same"` of nn.Conv does: to as many outputs as inputs, one more at the end."""
        return self.stride == self.input_dilation == 1 and self.slack == -1 and self.lo == (self.span - 1) // 2

    @property
    def min_length(self) -> int:
        """The smallest input length that may be padded like this and gives an output."""
        reach = max(self.lo, self.hi) + _BEYOND[self.mode] if self.mode in _BEYOND and self.has_padding else 1
        return max(1, reach, 1 - (self.slack + 1) // self.input_dilation)

    def padded(self, lo: int, hi: int) -> Axis:
        """`lo` and `hi` more outputs at the two ends (fewer where negative)."""
        mode = self.mode if self.copies_pixels else ZEROS
        return replace(self, lo=self.lo + lo * self.stride, hi=self.hi + hi * self.stride, mode=mode)

    def without_padding(self) -> Axis:
        """What remains to be done once the input is padded: its crops."""
        return replace(self, lo=min(self.lo, 0), hi=min(self.hi, 0), mode=ZEROS)

    def then(self, outer: Axis) -> Axis:
        """`outer`, unpadded, applied to the outputs of this."""
        outer = outer.behind(self)
        dilation = _lattice(self, outer) or 1
        span = self.span + outer.span - 1
        return replace(outer, taps=(span - 1) // dilation + 1, dilation=dilation)

    def behind(self, inner: Axis) -> Axis:
        """This window, unpadded, over the outputs of `inner`, if those had a single tap each."""
        return replace(inner, taps=self.taps, dilation=self.dilation * inner.stride, stride=self.stride * inner.stride)

    def place_in(self, window: Axis) -> tuple[int, int]:
        """Which taps of a larger window are those of this one: (the first, the step from one to the next)."""
        step = self.dilation // window.dilation if self.taps > 1 else 1
        return (window.lo - self.lo) // window.dilation, step

    def joined(self, other: Axis) -> Axis:
        """The smallest window that holds the taps of both; their strides, modes and numbers of outputs are equal.

        A narrower padding is a wider one with a crop, so in the wider padding a narrow window reads the same pixels.
        """
        lo = max(self.lo, other.lo)
        span = lo + max(self.span - self.lo, other.span - other.lo)
        dilation = _lattice(self, other, abs(self.lo - other.lo)) or 1
        mode = self.mode if self.has_padding else other.mode
        slack = max(self.slack, other.slack)
        spare = slack - min(self.slack - self.spare, other.slack - other.spare)
        hi = slack + span - lo
        return Axis((span - 1) // dilation + 1, dilation, self.stride, lo, hi, mode, spare, self.input_dilation)

    def balanced(self) -> Axis:
        """The same with `hi` as close to `lo` as `spare` allows."""
        if self.copies_pixels or not self.spare:
            return self
        return replace(self, hi=min(max(self.lo, self.hi - self.spare), self.hi), spare=0)

    def widened(self) -> Axis:
        """Padded equally at both ends, as in nn.Conv: the window grows by taps that will be zero.

        More padding that copies pixels would need a longer input, so such an axis stays as it is.
        """
        if self.copies_pixels:
            return self
        padding = max(self.lo, self.hi, 0)
        span = 2 * padding - self.slack
        dilation = math.gcd(_lattice(self, self, padding - self.lo), span - 1) or 1
        return Axis((span - 1) // dilation + 1, dilation, self.stride, padding, padding)

    @property
    def transposed_padding(self) -> int:
        """What nn.ConvTranspose calls its padding: the number of outputs that it cuts off at both ends."""
        return self.span - 1 - self.lo

    def widened_transposed(self) -> Axis:
        """As in nn.ConvTranspose: the window grows by taps that will be zero.

        That layer cuts off at least 0 outputs, equally many at both ends, and adds (as `output_padding`) fewer outputs
        at the end than its stride or its dilation.
        """
        behind = max(0, -self.transposed_padding, self.lo - self.hi)
        surplus = self.hi + behind - self.lo
        allowed = self.input_dilation if behind else max(self.input_dilation, self.dilation)
        front = 0 if surplus < allowed else surplus - (self.input_dilation - 1)
        dilation = math.gcd(_lattice(self, self, front), behind) or self.dilation
        taps = (self.span - 1 + front + behind) // dilation + 1
        return replace(self, taps=taps, dilation=dilation, lo=self.lo + front, hi=self.hi + behind)


def _lattice(a: Axis, b: Axis, offset: int = 0) -> int:
    """The coarsest step that reaches every tap of two windows, `offset` pixels apart; 0 if there is but one tap."""
    return reduce(math.gcd, [axis.dilation for axis in (a, b) if axis.taps > 1], offset)
