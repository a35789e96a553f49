"""Axes and values of symbols, and what statements say about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from reparam.algebra.affine import AffineConv, Anchor
from reparam.algebra.axis import ZEROS, Axis
from reparam.algebra.lazy import Lazy
from tests.proof.prover import Case

_LEAST = {"taps": 1, "dilation": 1, "stride": 1, "lo": None, "hi": None, "spare": 0, "input_dilation": 1}
UNPADDED = {"lo": 0, "hi": 0, "spare": 0, "input_dilation": 1}


def draw_axis(case: Case, name: str, mode: str = ZEROS, **given: Any) -> Axis:
    """Any axis that a layer of torch can have, with some fields given."""
    given = {"spare": 0, **given} if mode != ZEROS else given
    drawn = {field: case.integer(f"{name}_{field}", least) for field, least in _LEAST.items() if field not in given}
    axis = Axis(mode=mode, **drawn, **given)
    case.require((axis.input_dilation - 1) * (axis.stride - 1) == 0)
    return axis


def draw_sizes(case: Case, *axes: Axis) -> tuple[Any, Any]:
    """An input length that the axes take, and an output that all of them give."""
    length, output = case.integer("length", 1), case.integer("output", 0)
    for axis in axes:
        case.require(output < axis.outputs(length), settled(axis, length))
    return length, output


def draw_tap(case: Case, name: str, axis: Axis) -> Any:
    """A tap of an axis."""
    tap = case.integer(name, 0)
    case.require(tap < axis.taps)
    return tap


def value(axis: Axis, length: Any = 1, fixed: bool = False) -> AffineConv:
    """A convolution with this axis, of one channel."""
    return AffineConv(Anchor("x", (1, 1, length), fixed), 1, 1, 1, (axis,), Lazy(_never))


def _never() -> Tensor:
    raise AssertionError("a law has asked for a kernel")


def settled(axis: Axis, length: Any) -> Any:
    """Whether its spare padding changes nothing at this length; where it does, the model fails."""
    return replace(axis, hi=axis.hi - axis.spare).outputs(length) == axis.outputs(length)
