"""The prover itself: what is false, empty or too hard is not proven, and symbols compute as integers do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam.algebra import axis
from reparam.algebra.axis import Axis
from reparam.errors import Refusal
from tests.proof import prover
from tests.proof.prover import Case, Refuted, Unproven, holds, prove


def test_a_false_claim_is_refuted() -> None:
    def statement(case: Case) -> None:
        a, b = case.integer("a", 0), case.integer("b", 1)
        case.claim(max(a // b * b, a - 6) == a // b * b)

    with pytest.raises(Refuted) as refuted:
        prove(statement)
    assert not holds(statement, refuted.value.counterexample)


def test_an_empty_premise_proves_nothing() -> None:
    def statement(case: Case) -> None:
        a = case.integer("a", 1)
        case.require(2 * a == 1)
        case.claim(a == 7)

    with pytest.raises(Unproven, match="premises"):
        prove(statement)


def test_a_code_that_always_refuses_proves_nothing() -> None:
    def statement(case: Case) -> None:
        case.claim(case.integer("a", 1) > 0)
        raise Refusal("never")

    def early(case: Case) -> None:
        case.integer("a")
        raise Refusal("never")

    with pytest.raises(Unproven, match="premises"):
        prove(early)
    assert prove(statement).refused == 1


def test_a_timeout_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def statement(case: Case) -> None:
        a, b, c = (case.integer(name, 1) for name in "abc")
        case.claim(a * a * a + b * b * b != c * c * c)

    monkeypatch.setattr(prover, "TIMEOUT", 50)
    with pytest.raises(Unproven, match="does not know"):
        prove(statement)


def test_a_divisor_may_not_be_zero() -> None:
    def statement(case: Case) -> None:
        case.claim(case.integer("a") // case.integer("b", 0) == 0)

    with pytest.raises(Refuted):
        prove(statement)


def test_every_way_through_the_code_is_taken() -> None:
    def statement(case: Case) -> None:
        a, b = case.integer("a"), case.integer("b")
        case.claim(abs(max(a, b) - min(a, b)) == abs(a - b))

    assert prove(statement).paths >= 2


@settings(max_examples=20)
@given(st.integers(-9, 9), st.integers(1, 6), st.integers(-9, 9))
def test_symbols_compute_as_integers_do(a: int, b: int, c: int) -> None:
    def numbers(a: Any, b: Any, c: Any) -> list[Any]:
        return [a // b, a % b, 7 // b, -7 % b, a * c - b, abs(a - c), min(a, b, c), axis.math.gcd(b, a, c)]

    expected = numbers(a, b, c)
    assert expected[-1] == math.gcd(a, b, c)

    def statement(case: Case) -> None:
        x, y, z = case.integer("a"), case.integer("b", 1), case.integer("c")
        case.require(x == a, y == b, z == c)
        for found, number in zip(numbers(x, y, z), expected, strict=True):
            case.claim(found == number)

    prove(statement)


def test_a_mutant_is_gone_afterwards() -> None:
    with pytest.MonkeyPatch.context() as patch:
        prover.mutate(patch, Axis, "span", "+ 1", "+ 2")
        assert Axis().span == 2
    assert Axis().span == 1
