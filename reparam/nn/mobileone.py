"""MobileOne: several copies of every convolution, a scale and a skip while training.

Vasu, Gabriel, Zhu, Tuzel, Ranjan: MobileOne: An Improved One millisecond Mobile Backbone, CVPR 2023,
https://arxiv.org/abs/2206.04040
"""

from __future__ import annotations

from torch import nn

from reparam.nn.layers import (
    Activation,
    BranchSum,
    chain,
    check_groups,
    check_positive,
    conv_norm,
    margins,
    pad_or_crop,
)


class MobileOneBlock(BranchSum):
    """`activation(sum of `branches` norm(conv kxk), + norm(conv 1x1) + norm(x))`.

    The 1x1 convolution (the paper's scale branch) exists if `kernel_size > 1`, the norm of the input (its skip) if
    in_channels equal out_channels and the stride is 1. The padding is `kernel_size // 2` pixels on every side. A
    depthwise block has `groups == in_channels == out_channels`, a pointwise one `kernel_size == 1`. The optional
    squeeze-and-excitation of the paper is not part of the block.

    branches: the number of kxk convolutions.
    activation: called without arguments to make the activation; None for none.

    Input (N, in_channels, H, W), output (N, out_channels, H', W') with
    `H' = (H + 2 * (kernel_size // 2) - kernel_size) // stride + 1`, and so for W'; dtype as the parameters.

    Raises ValueError for sizes that are not positive integers and for channels that groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 4,
        activation: Activation = nn.ReLU,
    ) -> None:
        check_positive("MobileOneBlock", kernel_size=kernel_size, stride=stride, branches=branches)
        check_groups("MobileOneBlock", groups, in_channels=in_channels, out_channels=out_channels)
        padding = kernel_size // 2
        centre = margins(kernel_size, padding, dilation=1)
        channels = in_channels, out_channels
        parts: dict[str, nn.Module | None] = {
            f"conv{i}": conv_norm(*channels, kernel_size, stride, padding, groups=groups) for i in range(branches)
        }
        if kernel_size > 1:
            parts["scale"] = conv_norm(*channels, 1, stride, groups=groups, align=pad_or_crop(centre, centre))
        if in_channels == out_channels and stride == 1:
            parts["skip"] = chain(align=pad_or_crop(centre, centre), norm=nn.BatchNorm2d(out_channels))
        super().__init__(parts, activation)
