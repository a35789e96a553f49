"""Padding with a constant or with copies of pixels, and borders filled by assignment."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv, PendingBorder
from reparam.errors import Refusal
from reparam.rules.table import Case, Op, Value, affine, as_ints, per_channel, rule


def _norm_of_zero(m: Any) -> Tensor:
    """What batch norm makes of zero."""
    norm = m.inner[0]
    value: Tensor = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return value.view(1, -1, 1, 1)


def _fill_three_faces(m: Any, x: Tensor) -> Tensor:
    """Zero padding; three faces are overwritten with what batch norm makes of zero, one is not."""
    y = F.pad(m.inner[0](x), [1, 1, 1, 1])
    y[:, :, 0:1, :] = _norm_of_zero(m)
    y[:, :, -1:, :] = _norm_of_zero(m)
    y[:, :, :, :1] = _norm_of_zero(m)
    return y


def _fill_four_faces(m: Any, x: Tensor) -> Tensor:
    """All four faces are overwritten."""
    y = _fill_three_faces(m, x)
    y[..., -1:] = _norm_of_zero(m)
    return y


def _fill_wrong_face(m: Any, x: Tensor) -> Tensor:
    """All four faces are overwritten, the last one with another number."""
    y = _fill_three_faces(m, x)
    y[..., -1:] = _norm_of_zero(m) + 1
    return y


def _fill_corner(m: Any, x: Tensor) -> Tensor:
    """Only a corner is overwritten."""
    y = F.pad(m.inner[0](x), [1, 1, 1, 1])
    y[:, :, :1, :1] = _norm_of_zero(m)
    return y


@rule(
    "pad",
    "constant_pad_nd",
    folds=lambda: [
        Case(nn.ZeroPad2d((1, 2, 0, 3))),
        Case(nn.ZeroPad2d((-1, -2, 0, 1)), smallest=4),
        Case(nn.ConstantPad1d((2, 0), 0.0), spatial=1),
        Case(nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(4, 4, 4, stride=2, bias=False))),
        Case(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ZeroPad2d(2), nn.Conv2d(4, 4, 5))),
        Case(nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, bias=False), nn.ZeroPad2d(1))),
        Case(Op(lambda m, x: m.inner[0](x) + F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, 1, 2]), nn.Conv2d(4, 7, 3, 2, 1))),
        Case(
            Op(lambda m, x: m.inner[0](F.pad(x, [1, 1, 0, 0, 2, 1], value=0.0)), nn.Conv2d(7, 4, 3, bias=False)),
            smallest=3,
        ),
        Case(Op(lambda m, x: F.pad(m.inner[0](x), [-1, 3], value=1.5), nn.Linear(4, 6)), spatial=1, channels_last=True),
        Case(nn.Sequential(Op(lambda m, x: x - 2.5), nn.ConstantPad2d(1, -2.5), nn.Conv2d(4, 4, 3))),
        Case(nn.ReflectionPad2d((1, 2, 0, 3)), smallest=4),
        Case(nn.Sequential(nn.BatchNorm1d(4), nn.ReplicationPad1d((3, 1)), nn.Conv1d(4, 3, 4)), spatial=1),
        Case(nn.Sequential(nn.Conv3d(4, 4, 1), nn.CircularPad3d(2), nn.Conv3d(4, 4, 3)), spatial=3, smallest=2),
        Case(nn.Sequential(nn.BatchNorm2d(4), nn.ReflectionPad2d(2), Op(lambda m, x: x[:, :, 2:-3])), smallest=4),
        Case(nn.Sequential(nn.CircularPad2d((2, 2, 0, 0)), nn.Conv2d(4, 4, (3, 5), padding=(1, 0))), smallest=2),
        Case(nn.Sequential(nn.Conv2d(4, 4, (3, 1), stride=(2, 1)), nn.ReflectionPad2d((1, 1, 0, 0))), smallest=3),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 4, 3))), "value"),
        (Case(Op(lambda m, x: F.pad(x, [0, 0, 0, 0, 0, 0, 1, 1]))), "batch"),
        (Case(nn.Sequential(nn.Conv2d(4, 4, 2), nn.ReflectionPad2d(1)), smallest=3), "neighbouring"),
        (Case(nn.Sequential(nn.ReplicationPad2d(1), nn.ReflectionPad2d(1))), "pads"),
        (Case(nn.Sequential(nn.ReflectionPad2d(2), nn.ZeroPad2d(1)), smallest=3), "border of reflect"),
        (Case(nn.ReplicationPad2d((1, -1, 0, 0)), smallest=2), "crops"),
        (Case(Op(lambda m, x: F.pad(x, [0, 0, 1, 1], "circular")), spatial=1, smallest=3), "copies channels"),
        (Case(nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.ZeroPad2d(1)), smallest=3), "border"),
    ],
)
def pad(input: Value, pad: Value, mode: str = "constant", value: Value = None) -> AffineConv | PendingBorder:
    """Padding with a constant (negative amounts crop), or by reflection, replication or wrapping around."""
    inside = affine(input)
    amounts = as_ints(pad, 2)
    pads = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    if not inside.axes and len(pads) > 1:
        inside = inside.channels_first()
    batch = pads[len(inside.axes) + 1 :]
    if any(map(any, batch)):
        raise Refusal("it pads the batch, or a dimension that is neither channels nor spatial")
    missing = len(inside.axes) - len(pads)
    spatial = [(0, 0)] * missing + pads[: len(inside.axes)][::-1]
    front, end = (*pads, *[(0, 0)] * missing, (0, 0))[len(inside.axes)]
    if mode != "constant":
        if front or end:
            raise Refusal(f"its {mode} padding copies channels")
        if any(side < 0 for sides in spatial for side in sides):
            raise Refusal(f"its {mode} padding crops as well", "padding first and cropping then would fold")
        return inside.pad_with_copies(spatial, mode)
    number = None if not value else per_channel(value, inside)
    if not front and not end:
        return inside.pad(spatial, number)
    kept = range(inside.out_channels)[max(-front, 0) : inside.out_channels - max(-end, 0)]
    return affine(inside.take(kept).pad(spatial, number)).pad_channels(max(front, 0), max(end, 0), number)


def _indexed_face(index: Value, axes: int) -> tuple[int, int, int]:
    """(axis, end, width) of the face that an index selects. Raises Refusal if it selects anything else."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (axes + 3 - len(entries))
    entries += [slice(None)] * (axes + 2 - len(entries))
    narrowed = [(i, entry) for i, entry in enumerate(entries) if entry != slice(None)]
    if len(narrowed) == 1 and narrowed[0][0] >= 2 and isinstance(narrowed[0][1], slice):
        dim, part = narrowed[0]
        match (part.start, part.stop, part.step):
            case (None | 0, int(stop), None | 1) if stop > 0:
                return dim - 2, 0, stop
            case (int(start), None, None | 1) if start < 0:
                return dim - 2, 1, -start
    raise Refusal("it writes into something other than one face of the border")


@rule(
    "setitem",
    folds=lambda: [
        Case(Op(_fill_four_faces, nn.BatchNorm2d(4))),
        Case(nn.Sequential(Op(_fill_four_faces, nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 3, bias=False))),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(Op(_fill_three_faces, nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3))), "padding holds"),
        (Case(nn.Sequential(Op(_fill_wrong_face, nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3))), "padding holds"),
        (Case(Op(_fill_corner, nn.BatchNorm2d(4))), "one face"),
    ],
)
def setitem(x: Value, index: Value, value: Value) -> AffineConv | PendingBorder:
    """One face of a padding overwritten with one value per channel."""
    if not isinstance(x, PendingBorder):
        raise Refusal("it writes into a tensor that was not padded just before")
    axis, side, width = _indexed_face(index, len(x.inside.axes))
    return x.fill(axis, side, width, per_channel(value, x.inside))
