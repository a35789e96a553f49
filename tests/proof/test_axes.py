"""The geometry of the laws, along one axis, for all sizes, taps, strides, dilations and paddings."""

from __future__ import annotations

import pytest

from reparam.algebra import index_map
from reparam.algebra.affine import AffineConv
from reparam.algebra.axis import ZEROS, Axis
from tests.algebra.laws import pixel_at, position
from tests.proof.axes import UNPADDED, draw_axis, draw_sizes, draw_tap, settled, value
from tests.proof.laws import Laws, Mutant, check_refuted
from tests.proof.prover import Case, Statement, prove

LAWS = Laws()


# --- one after the other


@LAWS.law(
    Mutant(Axis, "then", "outer.span - 1", "outer.span"),
    Mutant(Axis, "behind", "stride=self.stride * inner.stride", "stride=self.stride"),
)
def then_has_the_sizes(case: Case) -> None:
    inner, outer = draw_axis(case, "inner"), draw_axis(case, "outer", **UNPADDED)
    length = case.integer("length", 1)
    case.require(settled(inner, length))
    law = value(inner).then(value(outer)).axes[0]
    case.claim(law.outputs(length) == outer.outputs(inner.outputs(length)), settled(law, length))


@LAWS.law(
    Mutant(Axis, "then", "// dilation + 1", "// dilation"),
    Mutant(Axis, "behind", "self.dilation * inner.stride", "self.dilation"),
    Mutant(Axis, "then", "_lattice(self, outer) or 1", "outer.dilation"),
)
def then_reads_the_same_pixels(case: Case) -> None:
    inner, outer = draw_axis(case, "inner"), draw_axis(case, "outer", **UNPADDED)
    output, i, j = case.integer("output", 0), draw_tap(case, "i", inner), draw_tap(case, "j", outer)
    law = value(inner).then(value(outer)).axes[0]
    (first, step), (start, stride) = inner.place_in(law), outer.behind(inner).place_in(law)
    case.claim(first == 0, start == 0, law.taps == step * (inner.taps - 1) + stride * (outer.taps - 1) + 1)
    case.claim(position(law, output, step * i + stride * j) == position(inner, position(outer, output, j), i))
    case.claim(law.input_dilation == inner.input_dilation)


# --- side by side


def _two_axes(case: Case, mode: str = ZEROS) -> tuple[Axis, Axis]:
    a = draw_axis(case, "a", mode, dilation=1, input_dilation=1)
    return a, draw_axis(case, "b", mode, dilation=1, input_dilation=1, stride=a.stride)


@LAWS.law(
    Mutant(Axis, "same_size_as", "<= min", "- 1 <= min"),
    Mutant(Axis, "joined", "slack + span - lo", "slack + span - lo + 1"),
)
def a_sum_has_the_sizes(case: Case) -> None:
    a = draw_axis(case, "a", spare=0)
    b = draw_axis(case, "b", spare=0, stride=a.stride, input_dilation=a.input_dilation)
    length = case.integer("length", 1)
    law = (value(a) + value(b)).axes[0]
    case.claim(law.outputs(length) == a.outputs(length), law.outputs(length) == b.outputs(length), law.spare == 0)


@LAWS.law(
    Mutant(Axis, "same_size_as", "<= min", "- 1 <= min"),
    Mutant(Axis, "joined", "hi = slack + span - lo", "hi = slack + span - lo + 1"),
)
def a_sum_has_the_sizes_with_spare_padding(case: Case) -> None:
    """Sizes depend on taps and dilation by the span alone, and taps of dilation 1 have every span.

    A stretch takes no spare padding along.
    """
    a, b = _two_axes(case)
    length = case.integer("length", 1)
    case.require(settled(a, length), settled(b, length), a.same_size_as(b))
    law = a.joined(b)
    case.claim(law.outputs(length) == a.outputs(length), a.outputs(length) == b.outputs(length), settled(law, length))


@LAWS.law(
    Mutant(Axis, "joined", "lo = max(", "lo = min("),
    Mutant(Axis, "joined", "abs(self.lo - other.lo)", "0"),
    Mutant(Axis, "place_in", "window.lo - self.lo", "self.lo - window.lo"),
    Mutant(AffineConv, "_require_same_form", "a.stride != b.stride or ", ""),
)
def a_sum_reads_the_same_pixels(case: Case) -> None:
    a, b = draw_axis(case, "a", spare=0), draw_axis(case, "b", spare=0)
    output, i, j = case.integer("output", 0), draw_tap(case, "i", a), draw_tap(case, "j", b)
    law = (value(a) + value(b)).axes[0]
    for axis, tap in ((a, i), (b, j)):
        first, step = axis.place_in(law)
        case.claim(first >= 0, first + step * (axis.taps - 1) < law.taps)
        case.claim(position(law, output, first + step * tap) == position(axis, output, tap))


@LAWS.law(Mutant(Axis, "joined", "self.mode if self.has_padding else other.mode", "other.mode"))
def a_sum_reads_the_same_copies(case: Case) -> None:
    """A side whose padding is not that of the sum has none, so it reads pixels of the input alone."""
    a, b = draw_axis(case, "a", "reflect"), draw_axis(case, "b", spare=0)
    length, output = draw_sizes(case, a, b)
    law = (value(a) + value(b)).axes[0]
    for axis, tap in ((a, draw_tap(case, "i", a)), (b, draw_tap(case, "j", b))):
        if law.mode != axis.mode:
            at = position(axis, output, tap)
            case.claim(at >= 0, at <= axis.input_dilation * (length - 1))


@LAWS.law(Mutant(Axis, "joined", "hi = slack + span - lo", "hi = slack + span"))
def a_sum_needs_no_longer_input(case: Case) -> None:
    a, b = _two_axes(case, "reflect")
    length = case.integer("length", 1)
    case.require(a.slack == b.slack, length >= a.min_length, length >= b.min_length)
    case.claim(length >= a.joined(b).min_length)


@LAWS.law(Mutant(Axis, "joined", "slack = max(self.slack, other.slack)", "slack = self.slack + other.slack"))
def a_concatenation_has_the_sizes_wherever_there_is_one(case: Case) -> None:
    a, b = _two_axes(case)
    length = case.integer("length", 1)
    case.require(settled(a, length), settled(b, length), a.outputs(length) == b.outputs(length))
    law = a.joined(b)
    case.claim(law.outputs(length) == a.outputs(length), settled(law, length))


@LAWS.law(Mutant(Axis, "trimmed", "(length + self.slack)", "(length + self.slack + 1)"))
def trimming_changes_no_output(case: Case) -> None:
    axis = draw_axis(case, "axis")
    length, _ = draw_sizes(case, axis)
    law = axis.trimmed(length)
    case.claim(law.outputs(length) == axis.outputs(length), law.lo == axis.lo)
    case.claim(
        law.stride * (law.outputs(length) - 1) + law.span == law.input_dilation * (length - 1) + 1 + law.lo + law.hi
    )


# --- borders


@LAWS.law(
    Mutant(AffineConv, "pad", "axis.lo < axis.span - axis.stride", "axis.lo < axis.span - axis.stride - 1"),
    Mutant(AffineConv, "pad", "axis.hi < axis.span - 1", "axis.hi < axis.span - axis.stride"),
    Mutant(Axis, "padded", "hi=self.hi + hi * self.stride", "hi=self.hi + hi"),
    Mutant(Axis, "padded", "lo=self.lo + lo * self.stride", "lo=self.lo + lo"),
)
def padding_reads_nothing_outside(case: Case) -> None:
    axis = draw_axis(case, "axis")
    length, front, end = case.integer("length", 1), case.integer("front"), case.integer("end")
    output, tap = case.integer("output", 0), draw_tap(case, "tap", axis)
    before = axis.outputs(length)
    case.require(before >= 1, settled(axis, length), output < before + front + end)
    law = value(axis).pad([(front, end)]).axes[0]
    case.claim(law.outputs(length) == before + front + end, settled(law, length))
    if front <= output < front + before:
        case.claim(position(law, output, tap) == position(axis, output - front, tap))
    else:
        case.claim(pixel_at(law, position(law, output, tap), length) is None)


def _copies(case: Case, mode: str) -> None:
    axis = draw_axis(case, "axis", spare=0)
    length, front, end = case.integer("length", 1), case.integer("front", 0), case.integer("end", 0)
    output, tap = case.integer("output", 0), draw_tap(case, "tap", axis)
    before = axis.outputs(length)
    case.require(before >= 1, output < before + front + end)
    law = value(axis).pad_with_copies([(front, end)], mode).axes[0]
    case.require(length >= law.min_length)
    case.claim(law.outputs(length) == before + front + end)
    copied = pixel_at(Axis(mode=mode), output - front, before)
    assert copied is not None
    case.claim(copied >= 0, copied < before)
    read = pixel_at(law, position(law, output, tap), length)
    wanted = pixel_at(axis, position(axis, copied, tap), length)
    case.claim(read is wanted or (read is not None and wanted is not None and read == wanted))


@LAWS.law(Mutant(AffineConv, "pad_with_copies", "lo=pad[0]", "lo=pad[1]"))
def reflections_are_copied(case: Case) -> None:
    _copies(case, "reflect")


@LAWS.law(Mutant(Axis, "single", "self.taps == self.stride == ", "self.taps == "))
def ends_are_copied(case: Case) -> None:
    _copies(case, "replicate")


@LAWS.law(Mutant(Axis, "single", "self.lo == self.hi == 0", "self.lo == self.hi"))
def far_ends_are_copied(case: Case) -> None:
    _copies(case, "circular")


@LAWS.law(
    Mutant(Axis, "min_length", "1 - (self.slack + 1)", "1 - self.slack"),
    Mutant(Axis, "outputs", "(length - 1) + 1", "length"),
)
def min_length_is_the_smallest_that_gives_an_output(case: Case) -> None:
    axis = draw_axis(case, "axis")
    length = case.integer("length", 1)
    if length >= axis.min_length:
        case.claim(axis.outputs(length) >= 1)
    else:
        case.claim(axis.outputs(length) < 1)


@LAWS.law(
    Mutant(AffineConv, "slice", "padded(-start, -stop)", "padded(-start, -stop + 1)"),
    Mutant(AffineConv, "slice", "stride=cropped.stride * step", "stride=step"),
)
def a_slice_keeps_its_outputs(case: Case) -> None:
    axis = draw_axis(case, "axis")
    length, tap = case.integer("length", 1), draw_tap(case, "tap", axis)
    start, stop, step = case.integer("start", 0), case.integer("stop", 0), case.integer("step", 1)
    output, rest = case.integer("output", 0), axis.outputs(length) - start - stop
    case.require(rest >= 1, settled(axis, length))
    law = value(axis).slice(0, start, stop, step).axes[0]
    case.claim(law.outputs(length) == (rest - 1) // step + 1, settled(law, length))
    case.claim(position(law, output, tap) == position(axis, start + step * output, tap))


# --- transposed convolutions


@LAWS.law(
    Mutant(AffineConv, "dilate_input", "input_dilation=factor * axis.input_dilation", "input_dilation=factor + 1"),
    Mutant(Axis, "single", "self.lo == self.hi == 0", "self.lo == -self.hi"),
)
def a_stretch_puts_zeros_between(case: Case) -> None:
    """An axis with `input_dilation` and nothing else reads the pixels with zeros between them."""
    axis, factor = draw_axis(case, "axis"), case.integer("factor", 2)
    length, output, tap = case.integer("length", 1), case.integer("output", 0), draw_tap(case, "tap", axis)
    law = value(axis).dilate_input([factor]).axes[0]
    case.claim(position(axis, output, tap) == output, axis.outputs(length) == length)
    case.claim(position(law, output, tap) == output, law.outputs(length) == factor * (length - 1) + 1)
    case.claim(law.input_dilation == factor)


# --- layers


def _same_function(case: Case, axis: Axis, law: Axis, length: object, output: object, tap: object) -> None:
    first, step = axis.place_in(law)
    case.claim(law.outputs(length) == axis.outputs(length), first >= 0, first + step * (axis.taps - 1) < law.taps)
    case.claim(position(law, output, first + step * tap) == position(axis, output, tap))


@LAWS.law(
    Mutant(Axis, "balanced", "max(self.lo, self.hi - self.spare)", "max(self.lo, self.hi - self.spare - 1)"),
    Mutant(Axis, "widened", "max(self.lo, self.hi, 0)", "max(self.lo, 0)"),
    Mutant(Axis, "widened", "span = 2 * padding", "span = padding + self.lo"),
)
def a_widened_window_is_the_same_function(case: Case) -> None:
    axis = draw_axis(case, "axis", input_dilation=1)
    length, output = draw_sizes(case, axis)
    tap = draw_tap(case, "tap", axis)
    law = axis.balanced().widened()
    _same_function(case, axis, law, length, output, tap)
    case.claim(law.lo == law.hi, law.lo >= 0)


@LAWS.law(
    Mutant(Axis, "widened_transposed", "self.lo - self.hi)", "self.lo - self.hi - 1)"),
    Mutant(Axis, "widened_transposed", "if behind else", "if not behind else"),
    Mutant(Axis, "widened_transposed", "surplus - (self.input_dilation - 1)", "surplus - self.input_dilation"),
    Mutant(Axis, "transposed_padding", "self.span - 1", "self.span"),
)
def a_widened_transposed_window_is_the_same_function(case: Case) -> None:
    axis = draw_axis(case, "axis", stride=1)
    length, output = draw_sizes(case, axis)
    tap = draw_tap(case, "tap", axis)
    law = axis.balanced().widened_transposed()
    _same_function(case, axis, law, length, output, tap)
    # What torch requires of nn.ConvTranspose, and the size that its documentation gives.
    stride, padding, output_padding = law.input_dilation, law.transposed_padding, law.hi - law.lo
    case.claim(padding >= 0, output_padding >= 0)
    if output_padding >= stride:
        case.claim(output_padding < law.dilation)
    size = (length - 1) * stride - 2 * padding + law.dilation * (law.taps - 1) + output_padding + 1
    case.claim(law.outputs(length) == size)


# --- blocks of pixels


@LAWS.law(
    Mutant(index_map, "_with_spare", "(block - 1)", "block"),
    Mutant(index_map, "_with_spare", "hi=axis.hi + more", "hi=axis.hi - more"),
)
def space_to_depth_has_the_sizes(case: Case) -> None:
    axis, block, blocks = draw_axis(case, "axis"), case.integer("block", 1), case.integer("blocks", 1)
    length = case.integer("length", 1)
    case.require(settled(axis, length), axis.outputs(length) == block * blocks)
    law = index_map.space_to_depth(value(axis), [block]).axes[0]
    case.claim(law.outputs(length) == blocks, settled(law, length))


@LAWS.law(Mutant(index_map, "space_to_depth", "stride=blocks", "stride=None"))
def space_to_depth_reads_the_pixels_of_its_block(case: Case) -> None:
    axis, block = draw_axis(case, "axis"), case.integer("block", 2)
    output, tap, pixel = case.integer("output", 0), draw_tap(case, "tap", axis), case.integer("pixel", 0)
    case.require(pixel < block)
    law = index_map.space_to_depth(value(axis), [block]).axes[0]
    (_, step), (_, stride) = axis.place_in(law), Axis(block, stride=block).behind(axis).place_in(law)
    case.claim(position(law, output, step * tap + stride * pixel) == position(axis, block * output + pixel, tap))


@pytest.mark.parametrize("statement", LAWS.statements)
def test_law(statement: Statement) -> None:
    prove(statement)


@pytest.mark.parametrize(("statement", "mutant"), LAWS.mutants)
def test_mutant(statement: Statement, mutant: Mutant) -> None:
    check_refuted(statement, mutant)
