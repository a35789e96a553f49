"""What the blocks are built from: a sum of named branches, a convolution with its norm, and how windows line up.

Every branch of a block has to land on the pixels of the block's largest window. With k taps, a dilation d and a
padding p that window reads `d * (k - 1) + 1` pixels from `stride * n - p` on, and its centre is tap `k // 2`. A smaller
window (the 1x1 branch, the average, the identity) therefore needs more or less padding than p, possibly a crop, and
where k is even not the same amount on both sides. `margins` is that one piece of arithmetic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module] | None
Margins = tuple[int, int]


def chain(**steps: nn.Module | None) -> nn.Sequential:
    """The steps one after another under their names; a step that is None is left out."""
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
    """A convolution without bias and its batch norm, after `align` where one is given."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
    return chain(align=align, conv=conv, norm=nn.BatchNorm2d(out_channels))


def margins(kernel_size: int, padding: int, dilation: int, taps: int = 1) -> Margins:
    """Pixels to add before and after an axis (negative: to cut) so that a dense window of `taps` lines up.

    Its centre, tap `taps // 2`, then lies on the centre of the block's window, and it has as many positions.
    """
    before = padding - dilation * (kernel_size // 2) + taps // 2
    both = 2 * padding - (dilation * (kernel_size - 1) + 1) + taps
    return before, both - before


def pad_or_crop(rows: Margins, columns: Margins) -> nn.ZeroPad2d | None:
    """Zeros around an image, or a crop where a margin is negative; None where there is nothing to do."""
    return nn.ZeroPad2d((*columns, *rows)) if any(rows + columns) else None


class BranchSum(nn.Module):
    """`activation(sum of the branches)`: the forward that all blocks share. Branches given as None are left out."""

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
            raise ValueError(f"{where}: {name}={size!r}, but it is a number of things; give an integer of at least 1")


def check_groups(where: str, groups: int, **channels: int) -> None:
    """Raises ValueError where channels cannot be dealt out evenly to the groups."""
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
            f"{where}: padding={padding!r}, but it is a number of pixels; "
            f"give an integer of at least 0, or None for kernel_size // 2"
        )
    return padding
