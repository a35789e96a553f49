"""Convolutions with a kernel that does not depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from reparam.algebra.affine import AffineConv, Constant
from reparam.algebra.kernels import transposed
from reparam.algebra.lazy import Lazy
from reparam.rules.table import Case, Op, Value, affine, as_ints, constant, optional_constant, rule


def _conv_padding(padding: Value, spans: list[int]) -> list[tuple[int, int]]:
    """(front, end) per axis; for "same", torch puts the odd pixel at the end."""
    if padding == "valid":
        return [(0, 0)] * len(spans)
    if padding == "same":
        return [((span - 1) // 2, span - 1 - (span - 1) // 2) for span in spans]
    return [(p, p) for p in as_ints(padding, len(spans))]


@rule(
    "conv1d",
    "conv2d",
    "conv3d",
    folds=lambda: [
        Case(nn.Conv1d(4, 6, 3, stride=2, padding=1), spatial=1),
        Case(nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 3), bias=False)),
        Case(nn.Conv2d(4, 8, 3, padding=4, dilation=4, groups=4)),
        Case(nn.Conv2d(4, 4, 4, padding="same", dilation=3)),
        Case(nn.Conv2d(4, 4, (2, 4), padding="same")),
        Case(nn.Conv2d(4, 6, 2, padding="valid", groups=2), smallest=2),
        Case(nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1), groups=2), spatial=3),
        Case(nn.Conv2d(4, 6, 3, padding=1, stride=2, padding_mode="reflect"), smallest=2),
        Case(nn.Conv1d(4, 4, 4, padding="same", padding_mode="circular"), spatial=1, smallest=2),
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, (3, 5), padding=(1, 2), padding_mode="replicate"))),
        Case(
            Op(
                lambda m, x: F.conv2d(x, m.k + m.i, m.b, padding=1),
                k=torch.randn(4, 4, 3, 3),
                i=torch.eye(4)[:, :, None, None],
                b=torch.randn(4),
            )
        ),
        Case(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, 1))),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))), "bias"),
        (Case(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))), "bias"),
        (Case(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False))), "border"),
        (Case(Op(lambda m, x: F.conv2d(x, x.relu()[:, :, :1, :1])), channels=1), "kernel"),
    ],
)
def conv(
    input: Value,
    weight: Value,
    bias: Value = None,
    stride: Value = 1,
    padding: Value = 0,
    dilation: Value = 1,
    groups: int = 1,
) -> AffineConv:
    """Padding with zeros, then an unpadded convolution."""
    kernel = constant(weight, "kernel")
    spatial = len(kernel.shape) - 2
    outer = AffineConv.conv(
        kernel, optional_constant(bias, "bias"), as_ints(stride, spatial), as_ints(dilation, spatial), groups
    )
    pads = _conv_padding(padding, [axis.span for axis in outer.axes])
    return affine(affine(input).with_layout(spatial).pad(pads)).then(outer)


@rule(
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    folds=lambda: [
        Case(nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), spatial=1),
        Case(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False)),
        Case(nn.ConvTranspose2d(4, 4, (3, 2), stride=(3, 1), padding=(0, 1), groups=4), smallest=2),
        Case(nn.ConvTranspose2d(4, 8, 3, stride=2, dilation=3, output_padding=2)),
        Case(nn.ConvTranspose2d(4, 6, 3, padding=2, dilation=2), smallest=1),
        Case(nn.ConvTranspose3d(4, 2, (1, 2, 3), stride=(1, 2, 3)), spatial=3),
        Case(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))),
        Case(nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.ConvTranspose2d(6, 6, 4, stride=4, groups=3))),
        Case(nn.Sequential(nn.ConvTranspose1d(4, 4, 4, 2), Op(lambda m, x: x[..., 1:-2])), spatial=1),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, stride=2))), "bias"),
        (Case(nn.Sequential(nn.Conv2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 2, stride=2)), smallest=2), "neighbouring"),
        (Case(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), nn.AvgPool2d(2))), "stride"),
        (Case(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1), nn.ZeroPad2d(1))), "border"),
        (Case(Op(lambda m, x: F.conv_transpose2d(x, x.relu()[:1, :, :1, :1].transpose(0, 1)))), "kernel"),
    ],
)
def conv_transpose(
    input: Value,
    weight: Value,
    bias: Value = None,
    stride: Value = 1,
    padding: Value = 0,
    output_padding: Value = 0,
    groups: int = 1,
    dilation: Value = 1,
) -> AffineConv:
    """A convolution of the input with zeros between its pixels, by the flipped kernel.

    The input is padded by span - 1 zeros, of which `padding` takes some away (Dumoulin, Visin 2016, relationship 14).
    """
    given = constant(weight, "kernel")
    ins, outs, *taps = given.shape
    flipped = Lazy(lambda: transposed(given.value(), groups))
    kernel = Constant((outs * groups, ins // groups, *taps), flipped)
    outer = AffineConv.conv(kernel, optional_constant(bias, "bias"), None, as_ints(dilation, len(taps)), groups)
    fronts = [axis.span - 1 - cut for axis, cut in zip(outer.axes, as_ints(padding, len(taps)), strict=True)]
    pads = [(front, front + more) for front, more in zip(fronts, as_ints(output_padding, len(taps)), strict=True)]
    return affine(affine(input).with_layout(len(taps)).dilate_input(as_ints(stride, len(taps))).pad(pads)).then(outer)
