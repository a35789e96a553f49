"""ACNet: a square kernel whose centre row and column are trained twice.

Ding, Guo, Ding, Han: ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks,
ICCV 2019, https://arxiv.org/abs/1908.03930
"""

from __future__ import annotations

from reparam.nn.layers import (
    Activation,
    BranchSum,
    check_groups,
    check_padding,
    check_positive,
    conv_norm,
    margins,
    pad_or_crop,
)


class ACBlock(BranchSum):
    """`activation(norm(conv kxk) + norm(conv kx1) + norm(conv 1xk))`.

    The kx1 and the 1xk convolution are aligned with the centre of the kxk window; if `padding < kernel_size // 2`, by a
    crop, as published.

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
        activation: Activation = None,
    ) -> None:
        check_positive("ACBlock", kernel_size=kernel_size, stride=stride, dilation=dilation)
        check_groups("ACBlock", groups, in_channels=in_channels, out_channels=out_channels)
        padding = check_padding("ACBlock", padding, kernel_size)
        centre = margins(kernel_size, padding, dilation)
        channels, rest = (in_channels, out_channels), (dilation, groups)
        tall, wide = (kernel_size, 1), (1, kernel_size)
        super().__init__(
            {
                "square": conv_norm(*channels, kernel_size, stride, padding, *rest),
                "vertical": conv_norm(*channels, tall, stride, (padding, 0), *rest, pad_or_crop((0, 0), centre)),
                "horizontal": conv_norm(*channels, wide, stride, (0, padding), *rest, pad_or_crop(centre, (0, 0))),
            },
            activation,
        )
