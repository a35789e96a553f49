"""The arithmetic behind the laws, on kernels of shape (out, in / groups, *taps)."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.algebra.axis import ZEROS, Axis

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


_LARGE = 2**20  # bytes


def float64_copy(tensor: Tensor) -> Tensor:
    """A copy in float64, on the CPU; a large one in memory that goes back to the system when it is freed.

    C libraries keep freed memory for later. It fragments, so that the next tensor of the same size may not fit into
    it: the process would grow by every kernel that it has ever needed.
    """
    source = tensor.detach().cpu()
    size = 8 * source.numel()
    if size < _LARGE:
        return source.to(torch.float64, copy=True)
    return torch.frombuffer(_system_memory(size), dtype=torch.float64).view(source.shape).copy_(source)


def _system_memory(size: int) -> mmap.mmap:
    """Bytes from the system, in huge pages if it has them: getting small pages takes longer than writing to them."""
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # the system has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def fills(axes: Sequence[Axis], window: Sequence[Axis]) -> bool:
    """Whether a kernel with the geometry `axes` has exactly the taps of `window`."""
    return all(
        (a.taps, a.lo) == (b.taps, b.lo) and (a.taps == 1 or a.dilation == b.dilation)
        for a, b in zip(axes, window, strict=True)
    )


def embedded(kernel: Tensor, axes: Sequence[Axis], window: Sequence[Axis]) -> Tensor:
    """A kernel with the geometry `axes`, surrounded and interspersed by zeros to fill the larger `window`."""
    if fills(axes, window):
        return kernel
    wide = kernel.new_zeros([*kernel.shape[:2], *(axis.taps for axis in window)])
    _taps_of(wide, axes, window).copy_(kernel)
    return wide


def regroup(kernel: Tensor, groups: int, target: int) -> Tensor:
    """From `groups` to fewer groups, `target`: the blocks become the diagonal of larger blocks."""
    if groups == target:
        return kernel
    wide = kernel.new_zeros([kernel.shape[0], kernel.shape[1] * (groups // target), *kernel.shape[2:]])
    _diagonal(wide, groups, target).copy_(_blocks(kernel, groups, target))
    return wide


def add_embedded(
    total: Tensor, window: Sequence[Axis], target: int, kernel: Tensor, axes: Sequence[Axis], groups: int
) -> Tensor:
    """Add a kernel of `groups` and the geometry `axes` to `total`, which has `target` groups and the larger `window`.

    In place: it allocates nothing as large as `total`.
    """
    _diagonal(_taps_of(total, axes, window), groups, target).add_(_blocks(kernel, groups, target))
    return total


def _taps_of(wide: Tensor, axes: Sequence[Axis], window: Sequence[Axis]) -> Tensor:
    """Of a kernel that fills `window`, the taps of the smaller geometry `axes`: a view."""
    for dim, (a, b) in enumerate(zip(axes, window, strict=True), start=2):
        offset, step = a.place_in(b)
        wide = wide.narrow(dim, offset, (a.taps - 1) * step + 1)[(slice(None),) * dim + (slice(None, None, step),)]
    return wide


def _diagonal(wide: Tensor, groups: int, target: int) -> Tensor:
    """Of a kernel of `target` groups, the blocks that a kernel of `groups` fills, in the shape of `_blocks`: a view."""
    many = groups // target
    out, inner, *taps = wide.shape
    blocks = wide.view(target, many, out // groups, many, inner // many, *taps)
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _blocks(kernel: Tensor, groups: int, target: int) -> Tensor:
    """A kernel of `groups`, with those groups in one dimension that are one group of `target`: a view."""
    out, *rest = kernel.shape
    return kernel.view(target, groups // target, out // groups, *rest)


def finest_groups(kernel: Tensor, groups: int) -> tuple[int, Tensor]:
    """The most groups, a multiple of `groups`, between which the kernel is exactly zero; and the kernel in those.

    Shuffles and slices may leave more groups than their laws know of. A block of zeros is no group.
    """
    out, inner, *taps = kernel.shape
    if kernel[0, -1].any():
        return groups, kernel  # the first output reads the last input, so both are in one group with all between them
    reads = (kernel != 0).flatten(2).any(2) if taps else kernel != 0
    if not reads.any():
        return groups, kernel
    for many in range(math.gcd(out // groups, inner), 1, -1):
        if (out // groups) % many == 0 and inner % many == 0:
            blocks = reads.view(groups, many, out // groups // many, many, inner // many).any(4).any(2)
            if torch.equal(blocks, torch.eye(many, dtype=torch.bool).expand(groups, -1, -1)):
                index = torch.arange(many)
                parted = kernel.reshape(groups, many, out // groups // many, many, inner // many, *taps)
                own = parted[:, index, :, index].transpose(0, 1)
                return groups * many, own.reshape(out, inner // many, *taps)
    return groups, kernel


def dilated(kernel: Tensor, steps: Sequence[int]) -> Tensor:
    """The kernel (or image) with `step - 1` zeros between neighbours along each axis."""
    for dim, step in enumerate(steps, start=2):
        taps = kernel.shape[dim]
        if taps > 1 and step > 1:
            wide = kernel.new_zeros([*kernel.shape[:dim], (taps - 1) * step + 1, *kernel.shape[dim + 1 :]])
            wide[(slice(None),) * dim + (slice(None, None, step),)] = kernel
            kernel = wide
    return kernel


def transposed(kernel: Tensor, groups: int) -> Tensor:
    """Inputs and outputs swapped in every group, taps reversed: from the layout of nn.ConvTranspose to that of nn.Conv.

    And back, as it is its own inverse.
    """
    ins, outs, *taps = kernel.shape
    blocks = kernel.view(groups, ins // groups, outs, *taps).transpose(1, 2)
    return blocks.reshape(groups * outs, ins // groups, *taps).flip(list(range(2, kernel.dim())))


def convolve_kernels(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """The full convolution of two kernels, group by group; a matrix product if one of them has a single tap."""
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


def repeat_channels(kernel: Tensor, times: int, grouped: bool) -> Tensor:
    """The matrix of a 1x1 kernel whose inputs and outputs come `times` times each, side by side.

    grouped: the result has as many groups as channels.
    """
    matrix = kernel.flatten(1)
    return matrix.repeat_interleave(times, 0) if grouped else torch.kron(matrix, torch.eye(times, dtype=matrix.dtype))


def scale_outputs_(kernel: Tensor, factor: Tensor) -> Tensor:
    """Each output channel times its factor, in place."""
    return kernel.mul_(broadcast_channels(factor, kernel.dim()))


def scale_inputs_(kernel: Tensor, factor: Tensor, groups: int) -> Tensor:
    """Each input channel times its factor, in place."""
    if not bool((factor == 1).all()):
        _blocks(kernel, groups, 1).mul_(factor.view(1, groups, 1, kernel.shape[1], *[1] * (kernel.dim() - 2)))
    return kernel


def broadcast_channels(factor: Tensor, dims: int) -> Tensor:
    """One number per channel (or one for all) as a tensor of so many dimensions, of which channels are the first."""
    return factor.view(-1, *[1] * (dims - 1))


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Pixels at the two ends of each axis in the order of F.pad: the last axis first."""
    return [side for pad in reversed(pads) for side in pad]


def pad_in_mode(x: Tensor, sides: Sequence[int], mode: str) -> Tensor:
    """F.pad in one of the modes of nn.Conv."""
    return F.pad(x, list(sides), "constant" if mode == ZEROS else mode)


def pad_bias_map(biases: Tensor, pads: Sequence[tuple[int, int]], value: Callable[[], Tensor] | None) -> Tensor:
    """Biases per channel and pixel, padded by one value per channel (None: zero); negative amounts crop."""
    if value is None:
        return F.pad(biases, flat_pads(pads))
    around = broadcast_channels(value(), biases.dim())
    return F.pad(biases - around, flat_pads(pads)) + around
