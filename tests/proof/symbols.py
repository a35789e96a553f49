"""Integers that stand for all integers: polynomials of unknowns, and conditions on them.

They take part in Python's arithmetic like `int`. Where code decides by one, `Path.decide` says which way it goes.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, reduce
from typing import TYPE_CHECKING, Any, Union

import z3

if TYPE_CHECKING:
    from tests.proof.prover import Path

Monomial = tuple[str, ...]  # the names of its factors, sorted
Terms = Mapping[Monomial, int]  # a polynomial: the coefficients of its monomials
Integer = Union[int, "Symbol"]


class Symbol:
    """A polynomial of unknown integers."""

    def __init__(self, terms: Terms, path: Path) -> None:
        self.terms = {monomial: factor for monomial, factor in sorted(terms.items()) if factor}
        self.key = tuple(self.terms.items())  # equal for equal polynomials
        self.path = path

    @staticmethod
    def of(name: str, path: Path) -> Symbol:
        """The unknown of a name."""
        return Symbol({(name,): 1}, path)

    def divided(self, divisors: list[Symbol]) -> tuple[list[Symbol], Symbol]:
        """Polynomial division: cofactors and a rest, with self = sum of cofactors * divisors + rest."""
        zero = Symbol({}, self.path)
        cofactors, todo, rest = [zero] * len(divisors), self, zero
        while todo.terms:
            lead, factor = max(todo.terms.items())
            for i, divisor in enumerate(divisors):
                head, unit = max(divisor.terms.items())
                if abs(unit) == 1 and not Counter(head) - Counter(lead):
                    part = Symbol({tuple(sorted((Counter(lead) - Counter(head)).elements())): factor * unit}, self.path)
                    cofactors[i], todo = _symbol(cofactors[i] + part, todo), _symbol(todo - part * divisor, todo)
                    break
            else:
                part = Symbol({lead: factor}, self.path)
                rest, todo = _symbol(rest + part, todo), _symbol(todo - part, todo)
        return cofactors, rest

    def _with(self, terms: Terms) -> Integer:
        result = Symbol(terms, self.path)
        return result.terms.get((), 0) if set(result.terms) <= {()} else result

    def __add__(self, other: Integer) -> Integer:
        more = _symbol(other, self).terms
        return self._with({key: self.terms.get(key, 0) + more.get(key, 0) for key in {**self.terms, **more}})

    def __mul__(self, other: Integer) -> Integer:
        product: Counter[Monomial] = Counter()
        for a, x in self.terms.items():
            for b, y in _symbol(other, self).terms.items():
                product[tuple(sorted(a + b))] += x * y
        return self._with(product)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Integer:
        return self * -1

    def __sub__(self, other: Integer) -> Integer:
        return self + -other

    def __rsub__(self, other: Integer) -> Integer:
        return -self + other

    def __abs__(self) -> Integer:
        return self if self >= 0 else -self

    def __divmod__(self, other: Integer) -> tuple[Integer, Integer]:
        return self.path.divide(self, _symbol(other, self))

    def __rdivmod__(self, other: int) -> tuple[Integer, Integer]:
        return self.path.divide(_symbol(other, self), self)

    def __floordiv__(self, other: Integer) -> Integer:
        return divmod(self, other)[0]

    def __rfloordiv__(self, other: int) -> Integer:
        return divmod(other, self)[0]

    def __mod__(self, other: Integer) -> Integer:
        return divmod(self, other)[1]

    def __rmod__(self, other: int) -> Integer:
        return divmod(other, self)[1]

    def __eq__(self, other: object) -> Any:
        return self._compared(other, "==") if isinstance(other, int | Symbol) else NotImplemented

    def __ne__(self, other: object) -> Any:
        return self._compared(other, "!=") if isinstance(other, int | Symbol) else NotImplemented

    def __lt__(self, other: Integer) -> Any:
        return self._compared(other, "<")

    def __le__(self, other: Integer) -> Any:
        return self._compared(other, "<=")

    def __gt__(self, other: Integer) -> Any:
        return self._compared(other, ">")

    def __ge__(self, other: Integer) -> Any:
        return self._compared(other, ">=")

    def _compared(self, other: Integer, sign: str) -> Any:
        """A condition; a plain bool where the difference is a number."""
        difference = self - other
        if isinstance(difference, int):
            return _COMPARE[sign](difference, 0)
        return Condition(_comparison(difference.key, sign), self.path)

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __repr__(self) -> str:
        return " + ".join("*".join(map(str, (factor, *names))) for names, factor in self.terms.items()) or "0"

    __hash__ = None  # type: ignore[assignment]


_COMPARE: dict[str, Callable[[Any, int], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@cache
def _comparison(terms: tuple[tuple[Monomial, int], ...], sign: str) -> z3.BoolRef:
    """A polynomial compared with 0, for z3."""
    polynomial = z3.Sum([factor * z3.Product([z3.Int(name) for name in names]) for names, factor in terms])
    condition: z3.BoolRef = z3.simplify(_COMPARE[sign](polynomial, 0))
    return condition


class Condition:
    """What holds for some integers and not for others."""

    def __init__(self, z3: z3.BoolRef, path: Path) -> None:
        self.z3, self.path = z3, path

    def __bool__(self) -> bool:
        return self.path.decide(self.z3)

    def __repr__(self) -> str:
        return str(self.z3)


def _symbol(number: Integer, like: Symbol) -> Symbol:
    return number if isinstance(number, Symbol) else Symbol({(): number}, like.path)


def gcd(*numbers: Integer) -> Integer:
    """math.gcd, for symbols as well."""
    return reduce(_gcd, numbers, 0)


def _gcd(a: Integer, b: Integer) -> Integer:
    if isinstance(a, int) and isinstance(b, int):
        return math.gcd(a, b)
    if 1 in [number for number in (a, b) if isinstance(number, int)]:
        return 1
    if isinstance(a, int) and a == 0:
        return abs(b)
    if isinstance(b, int) and b == 0:
        return abs(a)
    symbol = a if isinstance(a, Symbol) else b
    assert isinstance(symbol, Symbol)
    first, second = _symbol(a, symbol), _symbol(b, symbol)
    return abs(first) if first.key == second.key else symbol.path.common_divisor(first, second)
