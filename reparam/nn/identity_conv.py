"""A 1x1 convolution that starts as the identity.

Ding, Zhang, Han, Ding: Diverse Branch Block: Building a Convolution as an Inception-like Unit, CVPR 2021,
https://arxiv.org/abs/2103.13425
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.nn.layers import check_groups


class IdentityBasedConv1x1(nn.Module):
    """A 1x1 convolution without bias whose kernel is `weight + id_tensor`.

    weight: a parameter of shape (channels, channels / groups, 1, 1). It starts at zero, so the layer starts as the
        identity.
    id_tensor: the identity kernel for these groups, of the same shape. It is a buffer to follow the module's device and
        dtype, and not in the state dict, because `groups` determines it.

    Input and output: (N, channels, H, W), of the dtype of the weight.

    Raises ValueError if channels or groups are not positive integers, or groups does not divide channels.
    """

    id_tensor: Tensor

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        check_groups("IdentityBasedConv1x1", groups, channels=channels)
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(channels, channels // groups, 1, 1))
        # Each group counts its input channels from 0: one identity per group, one below the other.
        identity = torch.eye(channels // groups).repeat(groups, 1)
        self.register_buffer("id_tensor", identity.reshape(self.weight.shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.id_tensor, groups=self.groups)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, groups={self.groups}"
