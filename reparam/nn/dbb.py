"""Diverse Branch Block: a convolution trained as an inception-like unit.

Ding, Zhang, Han, Ding: Diverse Branch Block: Building a Convolution as an Inception-like Unit, CVPR 2021,
https://arxiv.org/abs/2103.13425
"""

from __future__ import annotations

from torch import nn

from reparam.nn.identity_conv import IdentityBasedConv1x1
from reparam.nn.layers import (
    Activation,
    BranchSum,
    Margins,
    chain,
    check_groups,
    check_padding,
    check_positive,
    conv_norm,
    margins,
    pad_or_crop,
)
from reparam.nn.padded_norm import PaddedBatchNorm2d


class DiverseBranchBlock(BranchSum):
    """`activation(dense + pointwise + bottleneck + average)`; no convolution has a bias:

    - dense: conv kxk, norm
    - pointwise: conv 1x1, norm
    - bottleneck: conv 1x1 to `internal_channels`, norm padded with its own bias, conv kxk, norm; the 1x1 convolution
      starts as the identity where `internal_channels == in_channels`
    - average: conv 1x1, norm padded with its own bias, average over kxk pixels, norm

    In a depthwise block (`in_channels == out_channels == groups`) a 1x1 convolution is only a scale. As published, such
    a block has no pointwise branch, and averages the input itself.

    With any padding and dilation, the pointwise convolution and the average (of neighbouring pixels, never dilated) are
    aligned with the centre of the kxk window, by a crop if necessary.

    internal_channels: of the bottleneck; None for `in_channels`, twice that in a depthwise block.
    padding: pixels on every side; None for `kernel_size // 2`.
    activation: called without arguments to make the activation; None for none.

    Input (N, in_channels, H, W), output (N, out_channels, H', W') with
    `H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1`, and so for W'; dtype as the parameters.

    Raises ValueError for sizes that are not positive integers, a negative padding, channels (`internal_channels`
    among them) that groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        internal_channels: int | None = None,
        activation: Activation = None,
    ) -> None:
        check_positive("DiverseBranchBlock", kernel_size=kernel_size, stride=stride, dilation=dilation)
        check_groups("DiverseBranchBlock", groups, in_channels=in_channels, out_channels=out_channels)
        padding = check_padding("DiverseBranchBlock", padding, kernel_size)
        depthwise = in_channels == out_channels == groups
        if internal_channels is None:
            internal_channels = 2 * in_channels if depthwise else in_channels
        check_groups("DiverseBranchBlock", groups, internal_channels=internal_channels)

        centre = margins(kernel_size, padding, dilation)
        around = margins(kernel_size, padding, dilation, taps=kernel_size)
        channels = in_channels, out_channels
        pointwise = conv_norm(*channels, 1, stride, groups=groups, align=pad_or_crop(centre, centre))
        average = nn.AvgPool2d(kernel_size, stride)
        super().__init__(
            {
                "dense": conv_norm(*channels, kernel_size, stride, padding, dilation, groups),
                "pointwise": None if depthwise else pointwise,
                "bottleneck": chain(
                    squeeze=_pointwise_conv(in_channels, internal_channels, groups),
                    padded=PaddedBatchNorm2d(internal_channels, (padding, padding)),
                    conv=nn.Conv2d(
                        internal_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias=False
                    ),
                    norm=nn.BatchNorm2d(out_channels),
                ),
                "average": chain(align=pad_or_crop(around, around), average=average, norm=nn.BatchNorm2d(out_channels))
                if depthwise
                else _mixed_average(*channels, groups, around, average),
            },
            activation,
        )


def _pointwise_conv(in_channels: int, internal_channels: int, groups: int) -> nn.Module:
    if internal_channels == in_channels:
        return IdentityBasedConv1x1(in_channels, groups)
    return nn.Conv2d(in_channels, internal_channels, 1, groups=groups, bias=False)


def _mixed_average(
    in_channels: int, out_channels: int, groups: int, around: Margins, average: nn.Module
) -> nn.Sequential:
    return chain(
        mix=nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False),
        padded=PaddedBatchNorm2d(out_channels, around),
        average=average,
        norm=nn.BatchNorm2d(out_channels),
    )
