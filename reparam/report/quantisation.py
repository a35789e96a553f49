"""How well the weights of a layer fit into eight bits: the ranges of its channels, and what rounding does to them.

A quantiser that has one scale for a whole tensor takes it from the largest weight. A channel whose own weights are a
hundred times smaller is then left with one or two of the 255 values. Folding scales every channel by a factor of its
own and lays identities over kernels, so it may bring this about where there was no sign of it in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BIT = 20 * math.log10(2)
"""What one bit is worth, in dB: half the step is a quarter of the noise power."""

SOUND = 10 * math.log10(12 * (127 / 4) ** 2)
"""What int8 leaves of bell-shaped weights whose largest lies at four deviations: as good as trained layers are."""

BITS = 8
_LEVELS = 2 ** (BITS - 1) - 1  # symmetric: from -127 to 127
_LOOKED_AT = 64  # channels, evenly over their ranges: a conversion should not wait for the rounding of every weight
_QUARTILES = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)


@dataclass(frozen=True)
class Ranges:
    """The weights of one layer, channel by channel (output channels).

    smallest, low, median, high, largest: the least, the quartiles and the largest of max|w| over the channels, those of
        nothing but zeros (`zeros` of `channels`) left out.
    per_tensor, per_channel: signal-to-noise in dB of the median channel once int8 has rounded it, with one scale for
        the whole tensor and with one for each channel; `BITS * BIT` at most, what a channel that uses all values has.
        Where there are more than 64 channels, that many are looked at, evenly over their ranges.
    """

    name: str
    channels: int
    zeros: int
    smallest: float
    low: float
    median: float
    high: float
    largest: float
    per_tensor: float
    per_channel: float

    @property
    def ratio(self) -> float:
        """The largest range over that of the median channel."""
        return self.largest / self.median if self.median else 1.0


@dataclass(frozen=True)
class Weights:
    """The kernels that went into one fold, as they were trained, and the one that came out."""

    before: tuple[Ranges, ...]
    after: Ranges

    @property
    def worst(self) -> Ranges | None:
        """The kernel that would have suffered most before."""
        return min(self.before, key=lambda each: each.per_tensor, default=None)

    @property
    def bits_lost(self) -> float:
        """How much precision int8 with one scale has less than on the worst of the kernels before; 0 where none.

        Kernels that were better than `SOUND` count as that: nobody misses what is beyond.
        """
        return max(0.0, (self._sound - self.after.per_tensor) / BIT)

    @property
    def _sound(self) -> float:
        return 0.0 if self.worst is None else min(self.worst.per_tensor, SOUND)

    @property
    def suffers(self) -> bool:
        """Whether folding has cost a bit or more."""
        return self.bits_lost >= 1

    @property
    def mended(self) -> bool:
        """Whether one scale for each output channel is back within a bit of what there was before."""
        return self._sound - self.after.per_channel < BIT

    @property
    def advice(self) -> str:
        """What to do about it; empty where nothing is to be done."""
        if not self.suffers:
            return ""
        return "a scale per output channel" if self.mended else "16 bits, or training on with quantisation"


def ranges(name: str, kernel: Tensor) -> Ranges | None:
    """The ranges of a kernel, (out_channels, ...) of any floating dtype; None where it holds no weight but zeros."""
    rows = kernel.detach().flatten(1)
    if not rows.numel():
        return None
    reach = torch.maximum(rows.amax(1), -rows.amin(1))  # the quickest way to the largest magnitudes
    order = reach.argsort()
    order = order[reach[order] > 0]
    if not len(order):
        return None
    reach = reach.double()
    smallest, low, median, high, largest = torch.quantile(reach[order], _QUARTILES).tolist()
    picked = order[torch.linspace(0, len(order) - 1, min(len(order), _LOOKED_AT)).round().long()]
    shown, own = rows[picked].double(), reach[picked][:, None]
    return Ranges(
        name, len(reach), len(reach) - len(order), smallest, low, median, high, largest,
        _kept(shown, own.new_tensor(largest)), _kept(shown, own),
    )  # fmt: skip


def _kept(rows: Tensor, reach: Tensor) -> float:
    """Signal-to-noise of the median row, rounded to whole multiples of a 127th of `reach`."""
    step = reach / _LEVELS
    noise = (rows / step).round_().mul_(step).sub_(rows).square_().sum(1)
    signal = rows.square().sum(1)
    quiet = signal / 10 ** (BITS * BIT / 10)
    return float((10 * torch.log10(signal / torch.maximum(noise, quiet))).median())
