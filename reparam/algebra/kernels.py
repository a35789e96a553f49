"""The numbers behind the laws: kernels laid out, regrouped and composed. All are (out, in / groups, *taps)."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.algebra.axis import Axis

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


_LARGE = 2**20  # bytes


def float64_copy(tensor: Tensor) -> Tensor:
    """A copy in float64, on the CPU; a large one in memory that goes back to the system with it.

    Of what is freed, C libraries keep much for later, and where it lies in pieces, the next tensor of that very size
    may not fit into any of them: then a process grows by every kernel that it has ever needed.
    """
    held = tensor.detach().cpu()
    size = 8 * held.numel()
    if size < _LARGE:
        return held.to(torch.float64, copy=True)
    return torch.frombuffer(_own_memory(size), dtype=torch.float64).view(held.shape).copy_(held)


def _own_memory(size: int) -> mmap.mmap:
    """Bytes from the system, in large pages if it has them: to get small ones takes longer than to write to them."""
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def fills(axes: Sequence[Axis], onto: Sequence[Axis]) -> bool:
    """Whether a kernel with the geometry `axes` is as large as the windows `onto`."""
    return all(
        (a.taps, a.lo) == (b.taps, b.lo) and (a.taps == 1 or a.dilation == b.dilation)
        for a, b in zip(axes, onto, strict=True)
    )


def laid(kernel: Tensor, axes: Sequence[Axis], onto: Sequence[Axis]) -> Tensor:
    """A kernel with the geometry `axes`, laid with zeros into the larger windows `onto`."""
    if fills(axes, onto):
        return kernel
    wide = kernel.new_zeros([*kernel.shape[:2], *(axis.taps for axis in onto)])
    _window(wide, axes, onto).copy_(kernel)
    return wide


def regroup(kernel: Tensor, groups: int, target: int) -> Tensor:
    """From `groups` to fewer, `target` groups: the blocks laid on the diagonal of larger blocks."""
    if groups == target:
        return kernel
    wide = kernel.new_zeros([kernel.shape[0], kernel.shape[1] * (groups // target), *kernel.shape[2:]])
    _diagonal(wide, groups, target).copy_(_blocks(kernel, groups, target))
    return wide


def add_laid(
    wide: Tensor, onto: Sequence[Axis], target: int, kernel: Tensor, axes: Sequence[Axis], groups: int
) -> Tensor:
    """Add to a kernel of `target` groups and the windows `onto`, in place, another that may have more and smaller ones.

    Nothing as large as `wide` is made for that.
    """
    _diagonal(_window(wide, axes, onto), groups, target).add_(_blocks(kernel, groups, target))
    return wide


def _window(wide: Tensor, axes: Sequence[Axis], onto: Sequence[Axis]) -> Tensor:
    """The taps of a kernel with the windows `onto` that are those of smaller ones, `axes`: a view."""
    for dim, (a, b) in enumerate(zip(axes, onto, strict=True), start=2):
        step, offset = a.dilation // b.dilation if a.taps > 1 else 1, (b.lo - a.lo) // b.dilation
        wide = wide.narrow(dim, offset, (a.taps - 1) * step + 1)[(slice(None),) * dim + (slice(None, None, step),)]
    return wide


def _diagonal(wide: Tensor, groups: int, target: int) -> Tensor:
    """Of a kernel of `target` groups the blocks in which one of `groups` lies, as `_blocks` has them: a view."""
    many = groups // target
    out, inner, *taps = wide.shape
    blocks = wide.view(target, many, out // groups, many, inner // many, *taps)
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _blocks(kernel: Tensor, groups: int, target: int) -> Tensor:
    """A kernel of `groups`, so many together as make one of `target`: a view."""
    out, *rest = kernel.shape
    return kernel.view(target, groups // target, out // groups, *rest)


def finest_groups(kernel: Tensor, groups: int) -> tuple[int, Tensor]:
    """The most groups, a multiple of `groups`, between which the kernel is exactly zero, and the kernel in as many.

    Shuffles and slices may leave more of them than was known. A block of nothing but zeros is no group.
    """
    out, inner, *taps = kernel.shape
    if kernel[0, -1].any():
        return groups, kernel  # the first output reads the last input: they are of one group, and so is all between
    reads = (kernel != 0).flatten(2).any(2) if taps else kernel != 0
    for many in range(math.gcd(out // groups, inner), 1, -1):
        if (out // groups) % many == 0 and inner % many == 0:
            blocks = reads.view(groups, many, out // groups // many, many, inner // many).any(4).any(2)
            if torch.equal(blocks, torch.eye(many, dtype=torch.bool).expand(groups, -1, -1)):
                each = torch.arange(many)
                parted = kernel.reshape(groups, many, out // groups // many, many, inner // many, *taps)
                own = parted[:, each, :, each].transpose(0, 1)
                return groups * many, own.reshape(out, inner // many, *taps)
    return groups, kernel


def densified(kernel: Tensor, steps: Sequence[int]) -> Tensor:
    """Zeros between the taps: from one tap every `step` to one every 1."""
    for dim, step in enumerate(steps, start=2):
        taps = kernel.shape[dim]
        if taps > 1 and step > 1:
            wide = kernel.new_zeros([*kernel.shape[:dim], (taps - 1) * step + 1, *kernel.shape[dim + 1 :]])
            wide[(slice(None),) * dim + (slice(None, None, step),)] = kernel
            kernel = wide
    return kernel


def transposed(kernel: Tensor, groups: int) -> Tensor:
    """Inputs and outputs exchanged in every group, taps in opposite order: from one layout of torch to the other."""
    ins, outs, *taps = kernel.shape
    blocks = kernel.view(groups, ins // groups, outs, *taps).transpose(1, 2)
    return blocks.reshape(groups * outs, ins // groups, *taps).flip(list(range(2, kernel.dim())))


def convolved(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Group by group the full convolution of two kernels; a matrix product where one of them has a single tap."""
    taps, more = first.shape[2:], second.shape[2:]
    middle, inner, out = first.shape[0] // groups, first.shape[1], second.shape[0]
    if math.prod(more) == 1:
        product = second.reshape(groups, -1, middle) @ first.reshape(groups, middle, -1)
        return product.view(out, inner, *taps)
    if math.prod(taps) == 1:
        rows = second.reshape(groups, out // groups, middle, -1).transpose(2, 3).reshape(groups, -1, middle)
        product = (rows @ first.reshape(groups, middle, inner)).view(out, -1, inner)
        return product.transpose(1, 2).reshape(out, inner, *more)
    dims = list(range(2, second.dim()))
    images = first.view(groups * middle, inner, *taps).transpose(0, 1)
    padding = [t - 1 for t in more]
    return CONV[len(dims)](images, second.flip(dims), None, 1, padding, 1, groups).transpose(0, 1).contiguous()


def repeated(kernel: Tensor, times: int, apart: bool) -> Tensor:
    """The matrix of a 1x1 kernel for channels that are there several times, side by side; `apart`: as many groups."""
    matrix = kernel.flatten(1)
    return matrix.repeat_interleave(times, 0) if apart else torch.kron(matrix, torch.eye(times, dtype=matrix.dtype))


def rows(kernel: Tensor, factor: Tensor) -> Tensor:
    """Each output channel times its factor, in place."""
    return kernel.mul_(column(factor, kernel.dim()))


def columns(kernel: Tensor, factor: Tensor, groups: int) -> Tensor:
    """Each input channel times its factor, in place."""
    if not bool((factor == 1).all()):
        _blocks(kernel, groups, 1).mul_(factor.view(1, groups, 1, kernel.shape[1], *[1] * (kernel.dim() - 2)))
    return kernel


def column(factor: Tensor, dims: int) -> Tensor:
    """One number per channel (or one for all) as it broadcasts onto so many dimensions, the first of them channels."""
    return factor.view(-1, *[1] * (dims - 1))


def reframed(biases: Tensor, pads: Sequence[tuple[int, int]], value: Callable[[], Tensor] | None) -> Tensor:
    """Biases per channel and pixel, padded by a value per channel (None: zero); negative amounts crop."""
    sides = [side for pad in reversed(pads) for side in pad]
    if value is None:
        return F.pad(biases, sides)
    around = column(value(), biases.dim())
    return F.pad(biases - around, sides) + around
