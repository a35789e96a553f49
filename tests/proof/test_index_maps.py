"""Where entries come from: digits of indices, for all lengths and indices; and the lengths that code asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from reparam.algebra import index_map, views
from reparam.algebra.index_map import Digit, Length, Reshape
from reparam.errors import Refusal
from tests.proof.laws import Laws, Mutant, check_refuted
from tests.proof.prover import Case, Statement, prove

LAWS = Laws()


def value_of(digit: Digit, index: Any) -> Any:
    """The value of a digit. The first of a growing dimension has no bound."""
    return index // digit.step if digit.grows else index // digit.step % digit.size


def number(digits: Sequence[Digit], indices: Sequence[Any]) -> Any:
    """The number that digits make; `indices` are those of the dimensions that they come from."""
    total: Any = 0
    for digit in digits:
        total = total * digit.size + value_of(digit, indices[digit.source])
    return total


def draw_digits(case: Case, grows: bool) -> tuple[Digit, Digit]:
    """Two digits of one dimension, side by side."""
    first, second = ((case.integer(f"step{i}", 1), case.integer(f"size{i}", 1)) for i in (1, 2))
    return Digit(0, *first, grows), Digit(0, *second)


@LAWS.law(
    Mutant(index_map, "_merged", "last.step == digit.step * digit.size", "last.step == digit.size"),
    Mutant(index_map, "_merged", "size=last.size * digit.size", "size=last.size"),
    Mutant(index_map, "_merged", "digit.size > 1", "digit.size > 2"),
)
def merged_digits_are_the_same_number(case: Case) -> None:
    _merging(case, grows=False)


@LAWS.law(
    Mutant(index_map, "_merged", "step=digit.step", "step=last.step"),
    Mutant(index_map, "_merged", "or digit.grows", ""),
)
def merged_digits_of_a_growing_dimension_are_the_same_number(case: Case) -> None:
    _merging(case, grows=True)


def _merging(case: Case, grows: bool) -> None:
    index, digits = case.integer("index", 0), draw_digits(case, grows)
    first, second = digits
    if first.step == second.step * second.size:  # two steps on the way: dividing twice is dividing by the product
        once = index // second.step
        case.claim(index // first.step == once // second.size)
        case.claim(once // (second.size * first.size) == once // second.size // first.size)
    case.claim(number(index_map._merged(digits), [index]) == number(digits, [index]))


@LAWS.law(
    Mutant(index_map, "_values", "index //= digit.size", "index //= digit.size + 1"),
    Mutant(index_map, "_values", "index % digit.size", "(index + 1) % digit.size"),
)
def the_values_of_digits_make_the_index(case: Case) -> None:
    sizes = [case.integer(f"size{i}", 1) for i in range(3)]
    index = case.integer("index", 0)
    case.require(index < sizes[0] * sizes[1] * sizes[2])
    values = index_map._values([Digit(0, 1, size) for size in sizes], index)
    for value, size in zip(values, sizes, strict=True):
        case.claim(value >= 0, value < size)
    case.claim((values[0] * sizes[1] + values[1]) * sizes[2] + values[2] == index)


def _splits() -> list[tuple[list[int], list[int]]]:
    """Sizes of up to three digits, and up to three lengths with the same product."""
    shapes = [list(shape) for rank in (1, 2, 3) for shape in itertools.product((1, 2, 3, 4, 6), repeat=rank)]
    return [(a, b) for a in shapes if len(a) <= 2 for b in shapes if math.prod(a) == math.prod(b) <= 12]


@LAWS.law(
    Mutant(index_map, "_split_digits", "digit.step * (digit.size // length)", "digit.step * digit.size"),
    Mutant(
        index_map,
        "_split_digits",
        "digits.insert(0, Digit(digit.source, digit.step",
        "digits.insert(0, Digit(digit.source, 1",
    ),
)
def a_reshape_keeps_the_order_of_entries(case: Case) -> None:
    """For all indices, and a first dimension that grows beyond its recorded length; that is up to 12."""
    indices = [case.integer(f"index{i}", 0) for i in range(2)]
    for sizes, lengths in _splits():
        digits = [Digit(i, 2 + i, size, grows=i == 0) for i, size in enumerate(sizes)]
        try:
            dims = index_map._split_digits(list(digits), lengths)
        except Refusal:
            continue
        after = [digit for dim in dims for digit in dim]
        case.claim(number(after, indices) == number(digits, indices))


@LAWS.law(
    Mutant(views, "_channel_after_reshape", "[:i]) == outer", "[:i]) <= outer"),
    Mutant(views, "_channel_after_reshape", "size == before[channel]", "size <= before[channel]"),
    Mutant(views, "_channel_after_reshape", "+ len(move.lengths)", "+ 1"),
)
def channels_stay_whole(case: Case) -> None:
    """If the channels are one dimension after a reshape of three dimensions to two, each entry keeps its channel."""
    before = [case.integer(name, 1) for name in ("batch", "channels", "pixels")]
    lengths = [case.integer(f"length{i}", 1) for i in range(2)]
    for channel, (start, stop) in itertools.product(range(3), ((0, 3), (0, 2), (1, 3))):
        inside = math.prod(before[start:stop])
        if lengths[0] * lengths[1] != inside:
            continue
        move = Reshape(tuple(lengths), start, stop)
        after, where = views.track_channel(tuple(before), channel, [move])
        if where is not None:
            old, new = math.prod(before[channel + 1 :]), math.prod(after[where + 1 :])
            case.claim(after[where] == before[channel], old == new)


@LAWS.law(
    Mutant(Length, "__floordiv__", "self.exact and scale.denominator == 1", "self.exact"),
    Mutant(Length, "__floordiv__", "math.floor(scale)", "math.ceil(scale)"),
    Mutant(Length, "__floordiv__", "rest.remove(length)", "rest.clear()"),
)
def an_exact_length_is_the_quotient(case: Case) -> None:
    """For all lengths, with factors up to 3; where these are fractions, for multiples of their denominators."""
    drawn = {name: case.integer(name, 1) for name in ("high", "wide")}

    def actual(length: Length) -> Any:
        product = math.prod(sizes[str(name)] for name in length.of)
        return length.scale.numerator * product // length.scale.denominator

    shapes = ((("high", "wide"), ("high",)), (("high",), ("high",)))
    for unit, factors in ((1, [Fraction(1), Fraction(2), Fraction(3)]), (6, [Fraction(1, 2), Fraction(2, 3)])):
        sizes = {name: unit * length for name, length in drawn.items()}
        for a, b, (of, by) in itertools.product(factors, factors, shapes):
            quotient = Length(a, of) // Length(b, by)
            assert quotient is not None
            if quotient.exact:
                product = math.prod(sizes[str(name)] for name in quotient.of)
                case.claim(quotient.scale.numerator * product % quotient.scale.denominator == 0)
                case.claim(actual(quotient) == actual(Length(a, of)) // actual(Length(b, by)))


@pytest.mark.parametrize("statement", LAWS.statements)
def test_law(statement: Statement) -> None:
    prove(statement)


@pytest.mark.parametrize(("statement", "mutant"), LAWS.mutants)
def test_mutant(statement: Statement, mutant: Mutant) -> None:
    check_refuted(statement, mutant)
