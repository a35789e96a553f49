"""How well the weights of a layer fit into eight bits: the ranges of its channels, and what rounding does to them.

A quantiser with one scale for a whole tensor takes it from the largest weight. A channel whose weights are a hundred
times smaller is left with one or two of the 255 values. Folding multiplies each channel by a factor of its own and
adds identities to kernels, so it can cause this where training showed no sign of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BIT = 20 * math.log10(2)
"""What one bit is worth, in dB: half the step means a quarter of the noise power."""

SOUND = 10 * math.log10(12 * (127 / 4) ** 2)
"""The signal-to-noise in dB that int8 leaves normally distributed weights whose largest is four standard deviations:
as good as trained layers get."""

BITS = 8
_INT8_MAX = 2 ** (BITS - 1) - 1  # symmetric: from -127 to 127
_CHANNEL_SAMPLE = 64  # channels, evenly spaced over their ranges, so that a conversion need not round every weight


@dataclass(frozen=True)
class Ranges:
    """The ranges of the output channels of one layer; the range of a channel is its max|w|.

    smallest, low, median, high, largest: the least, the quartiles and the largest of the ranges. Channels of nothing
        but zeros (`zeros` out of `channels`) are left out.
    per_tensor, per_channel: signal-to-noise in dB of the median channel after rounding to int8, with one scale for the
        whole tensor and with one for each channel; at most `BITS * BIT`, which a channel has that uses all values.
        Of more than 64 channels, 64 are sampled, evenly spaced over their ranges.
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
        """The largest range divided by the median one."""
        return self.largest / self.median if self.median else 1.0


@dataclass(frozen=True)
class Weights:
    """The kernels that went into one fold, as they were trained, and the one that came out."""

    before: tuple[Ranges, ...]
    after: Ranges

    @property
    def worst(self) -> Ranges | None:
        """The kernel before with the lowest signal-to-noise; None where there was no kernel."""
        return min(self.before, key=lambda ranges: ranges.per_tensor, default=None)

    @property
    def bits_lost(self) -> float:
        """How many bits of precision int8 with one scale has lost, compared with the worst kernel before; at least 0.

        A kernel better than `SOUND` counts as `SOUND`, as more precision than that is of no use.
        """
        return max(0.0, (self._decibels_before - self.after.per_tensor) / BIT)

    @property
    def _decibels_before(self) -> float:
        return 0.0 if self.worst is None else min(self.worst.per_tensor, SOUND)

    @property
    def suffers(self) -> bool:
        """Whether folding has cost a bit or more."""
        return self.bits_lost >= 1

    @property
    def per_channel_suffices(self) -> bool:
        """Whether one scale for each output channel loses less than a bit."""
        return self._decibels_before - self.after.per_channel < BIT

    @property
    def advice(self) -> str:
        """What to do about it; empty where there is nothing to do."""
        if not self.suffers:
            return ""
        return "a scale per output channel" if self.per_channel_suffices else "16 bits, or fine-tuning while quantised"


def ranges(name: str, kernel: Tensor) -> Ranges | None:
    """The ranges of a kernel, (out_channels, ...) of any floating dtype; None where it holds only zeros or nothing."""
    rows = kernel.detach().flatten(1)
    if not rows.numel():
        return None
    peaks = torch.maximum(rows.amax(1), -rows.amin(1))  # faster than abs().amax(1)
    order = peaks.argsort()
    order = order[peaks[order] > 0]
    if not len(order):
        return None
    peaks = peaks.double()
    ordered = peaks[order]
    sampled = _evenly_spaced(order)
    sample, own = rows[sampled].double(), peaks[sampled][:, None]
    per_tensor, per_channel = _signal_to_noise(sample, ordered[-1]), _signal_to_noise(sample, own)
    smallest, low, median, high, largest = _quartiles(ordered.tolist())
    zeros = len(peaks) - len(order)
    return Ranges(name, len(peaks), zeros, smallest, low, median, high, largest, per_tensor, per_channel)


def _evenly_spaced(order: Tensor) -> Tensor:
    count = len(order)
    if count <= _CHANNEL_SAMPLE:
        return order
    return order[[round(i * (count - 1) / (_CHANNEL_SAMPLE - 1)) for i in range(_CHANNEL_SAMPLE)]]


def _quartiles(ordered: list[float]) -> Iterator[float]:
    """The least, the quartiles and the largest of numbers in order, between which they are interpolated."""
    for quarter in range(5):
        place, rest = divmod(quarter * (len(ordered) - 1), 4)
        after = ordered[min(place + 1, len(ordered) - 1)]
        yield ordered[place] + (after - ordered[place]) * rest / 4


def _signal_to_noise(rows: Tensor, largest: Tensor) -> float:
    """That of the median row in dB, after rounding to multiples of a 127th of `largest`."""
    step = largest / _INT8_MAX
    noise = (rows / step).round_().mul_(step).sub_(rows).square_().sum(1)
    signal = rows.square().sum(1)
    floor = signal / 10 ** (BITS * BIT / 10)
    return float((10 * torch.log10(signal / torch.maximum(noise, floor))).median())
