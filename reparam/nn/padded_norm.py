"""A batch norm that pads its output with its value for a zero input.

Ding, Zhang, Han, Ding: Diverse Branch Block, CVPR 2021, https://arxiv.org/abs/2103.13425
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.nn.layers import Margins, check_positive


class PaddedBatchNorm2d(nn.Module):
    """Batch norm, then a border that holds `beta - mean * gamma / sqrt(var + eps)` per channel.

    That is the norm of a zero. So `conv without bias -> this norm` equals `zero padding -> conv -> plain norm`, and the
    next convolution does not pad. As published, the border is computed from the running statistics, in training as
    well.

    margins: pixels to add before and after each of the two spatial axes; a negative number crops.

    Input (N, channels, H, W), output (N, channels, H + sum(margins), W + sum(margins)), of the input's dtype.

    Raises ValueError if channels is not a positive integer.
    """

    def __init__(self, channels: int, margins: Margins) -> None:
        super().__init__()
        check_positive("PaddedBatchNorm2d", channels=channels)
        self.margins = margins
        self.norm = nn.BatchNorm2d(channels)

    def border(self) -> Tensor:
        """The norm of a zero, of shape (channels, 1, 1)."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # Divide first: autograd then saves the quotient, and not the buffer, which the next forward changes in place.
        shift = norm.running_mean / torch.sqrt(norm.running_var + norm.eps)
        return (norm.bias - norm.weight * shift).reshape(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.margins
        padded = F.pad(self.norm(x), (before, after, before, after))
        border = self.border()
        if before > 0:
            padded[:, :, :before, :] = border
            padded[:, :, :, :before] = border
        if after > 0:
            padded[:, :, -after:, :] = border
            padded[:, :, :, -after:] = border
        return padded

    def extra_repr(self) -> str:
        return f"margins={self.margins}"
