"""RepVGG: a plain network that trains with two shortcuts around every convolution.

Ding, Zhang, Ma, Han, Ding, Sun: RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021,
https://arxiv.org/abs/2101.03697
"""

from __future__ import annotations

from torch import nn

from reparam.nn.layers import (
    Activation,
    BranchSum,
    chain,
    check_groups,
    check_padding,
    check_positive,
    conv_norm,
    margins,
    pad_or_crop,
)


class RepVGGBlock(BranchSum):
    """`activation(norm(conv kxk) + norm(conv 1x1) + norm(x))`.

    The norm of the input is there if in_channels equal out_channels and the stride is 1.

    The 1x1 convolution and the input are padded or cropped to align with the centre of the kxk window. In the
    published case (odd kernel, dilation 1, padding `kernel_size // 2`) there is nothing to align.

    padding: pixels on every side; None for `kernel_size // 2`.
    activation: called without arguments to make the activation; None for none.

    Input (N, in_channels, H, W), output (N, out_channels, H', W') with
    `H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1`, and so for W'; dtype as the parameters.

    Raises ValueError for sizes that are not positive integers, a negative padding, channels that groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        activation: Activation = nn.ReLU,
    ) -> None:
        check_positive("RepVGGBlock", kernel_size=kernel_size, stride=stride, dilation=dilation)
        check_groups("RepVGGBlock", groups, in_channels=in_channels, out_channels=out_channels)
        padding = check_padding("RepVGGBlock", padding, kernel_size)
        centre = margins(kernel_size, padding, dilation)
        channels = in_channels, out_channels
        keeps_shape = in_channels == out_channels and stride == 1
        super().__init__(
            {
                "dense": conv_norm(*channels, kernel_size, stride, padding, dilation, groups),
                "pointwise": conv_norm(*channels, 1, stride, groups=groups, align=pad_or_crop(centre, centre)),
                "identity": chain(align=pad_or_crop(centre, centre), norm=nn.BatchNorm2d(out_channels))
                if keeps_shape
                else None,
            },
            activation,
        )
