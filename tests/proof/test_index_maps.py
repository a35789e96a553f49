"""Where entries come from: digits of indices, for all lengths and indices; and the lengths that code asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from reparam.algebra import index_map, views
from reparam.algebra.index_map import Digit, IndexMap, Length, Reshape
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


@pytest.mark.parametrize("statement", LAWS.statements)
def test_law(statement: Statement) -> None:
    prove(statement)


@pytest.mark.parametrize(("statement", "mutant"), LAWS.mutants)
def test_mutant(statement: Statement, mutant: Mutant) -> None:
    check_refuted(statement, mutant)
