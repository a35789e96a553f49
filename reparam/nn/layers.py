"""Parts of the blocks: a sum of named branches, a convolution with its norm, and the alignment of windows.

All branches of a block have to align with its largest window. With k taps, dilation d and padding p, that window reads
`d * (k - 1) + 1` pixels from `stride * n - p` on, and its centre is tap `k // 2`. A smaller window (the 1x1 branch, the
average, the identity) needs another padding than p, perhaps a crop, and for an even k a different one at the two ends.
`margins` computes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module] | None
Margins = tuple[int, int]


def chain(**steps: nn.Module | None) -> nn.Sequential:
    """The steps in order, under their names, without those that are None."""
    return nn.Sequential(OrderedDict((name, step) for name, step in steps.items() if step is not None))


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
    align: nn.Module | None = None,
) -> nn.Sequential:
    """`align` if given, a convolution without bias, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
    return chain(align=align, conv=conv, norm=nn.BatchNorm2d(out_channels))


def margins(kernel_size: int, padding: int, dilation: int, taps: int = 1) -> Margins:
    """Pixels to add before and after an axis (negative: to crop) to align a window of `taps`, dilation 1.

    The centres of both windows, taps `taps // 2` and `kernel_size // 2`, then coincide, and both have as many outputs.
    """
    before = padding - dilation * (kernel_size // 2) + taps // 2
    both = 2 * padding - (dilation * (kernel_size - 1) + 1) + taps
    return before, both - before


def pad_or_crop(rows: Margins, columns: Margins) -> nn.ZeroPad2d | None:
    """Zeros around an image, or a crop where a margin is negative; None if all margins are 0."""
    return nn.ZeroPad2d((*columns, *rows)) if any(rows + columns) else None


class BranchSum(nn.Module):
    """`activation(sum of the branches)`: the forward of all blocks, without the branches that are None."""

    def __init__(self, branches: dict[str, nn.Module | None], activation: Activation) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: branch for name, branch in branches.items() if branch is not None})
        self.activation = nn.Identity() if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches.values()
        total = first(x)
        for branch in others:
            total = total + branch(x)
        result: Tensor = self.activation(total)
        return result


def check_positive(where: str, **sizes: object) -> None:
    """Raises ValueError for a size that is not an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{where}: {name}={size!r} is not a positive integer; give an integer of at least 1")


def check_groups(where: str, groups: int, **channels: int) -> None:
    """Raises ValueError if the groups do not divide the channels."""
    check_positive(where, groups=groups, **channels)
    for name, count in channels.items():
        if count % groups:
            raise ValueError(
                f"{where}: {name}={count} does not split into groups={groups} equal parts; "
                f"choose groups that divide it, or {count + groups - count % groups} channels"
            )


def check_padding(where: str, padding: object, kernel_size: int) -> int:
    """The padding to use, `kernel_size // 2` for None; raises ValueError for anything but an integer of at least 0."""
    if padding is None:
        return kernel_size // 2
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(
            f"{where}: padding={padding!r} is not a number of pixels; "
            f"give an integer of at least 0, or None for kernel_size // 2"
        )
    return padding
