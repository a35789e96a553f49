"""Statements about our code, proven for all integers by z3, and refuted for mutants of the code.

A statement is a function of a `Case`: it draws integers, requires premises, calls the code, claims what must hold.
`prove` runs it with symbols. Wherever the code decides by one (`if`, `max`, `any`), the run splits into the decisions
that are possible: the statement is run once for each path through the code, and each claim is proven under the premises
and the decisions before it. `holds` runs the same statement with plain integers.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import z3

from reparam.algebra import axis
from reparam.errors import Refusal
from tests.proof.symbols import Condition, Integer, Symbol, gcd

TIMEOUT = 30_000  # milliseconds for one question to z3; one that takes longer has failed


class Case(Protocol):
    """What a statement is run with."""

    def integer(self, name: str, least: int | None = None) -> Any:
        """Any integer, from `least` on if there is one."""

    def require(self, *premises: Any) -> None:
        """The rest of the statement is about integers for which these hold."""

    def claim(self, *conclusions: Any) -> None:
        """These hold."""


Statement = Callable[[Case], None]


class Unproven(AssertionError):
    """z3 found neither a proof nor a counterexample, or nothing that the statement is about."""


class Refuted(AssertionError):
    """A claim that does not hold: `counterexample` has the integers that were drawn."""

    def __init__(self, counterexample: Mapping[str, int]) -> None:
        super().__init__(f"it does not hold for {counterexample}")
        self.counterexample = dict(counterexample)


class _Beside(Exception):
    """The integers do not fulfil the premises, so nothing is claimed of them."""


@dataclass
class Proof:
    """paths: how many ways through the code there are; refused: on how many of them the code refuses; claims: proven.

    A path on which the code refuses claims nothing.
    """

    paths: int = 0
    refused: int = 0
    claims: int = 0


def prove(statement: Statement) -> Proof:
    """Prove every claim of a statement. Raises Refuted, or Unproven.

    At least one path has claims whose premises z3 fulfils.
    """
    proof, pending, witnessed = Proof(), [()], False
    while pending:
        path = Path(pending.pop(), pending)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(axis, "math", SimpleNamespace(gcd=gcd))
            try:
                statement(path)
            except Refusal:
                proof.refused += 1
            except _Beside:
                continue
        proof.paths += 1
        proof.claims += path.claims
        witnessed = witnessed or (path.claims > 0 and path.check() == z3.sat)
    if not witnessed:
        raise Unproven("no integers fulfil the premises")
    return proof


@dataclass
class Path:
    """One way through the code: its decisions are those of `script`, and after its end the first possible ones.

    pending: the scripts of the other ways that were seen to be possible.
    facts: premises, decisions and claims so far.
    quotients: number, divisor, quotient and remainder of the divisions so far.
    multiples: the numbers of which a symbol is a divisor, each with its quotient.
    combinations: of common divisors, that they are the greatest.
    """

    script: tuple[bool, ...]
    pending: list[tuple[bool, ...]]
    decisions: tuple[bool, ...] = ()
    facts: list[z3.BoolRef] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)
    quotients: list[tuple[Symbol, Symbol, Integer, Integer]] = field(default_factory=list)
    multiples: dict[Any, list[tuple[Symbol, Integer]]] = field(default_factory=dict)
    combinations: list[z3.BoolRef] = field(default_factory=list)
    unknowns: int = 0
    claims: int = 0

    def integer(self, name: str, least: int | None = None) -> Symbol:
        """Any integer, from `least` on if there is one."""
        self.drawn.append(name)
        symbol = Symbol.of(name, self)
        if least is not None:
            self.require(symbol >= least)
        return symbol

    def require(self, *premises: Condition | bool) -> None:
        """The rest of the statement is about integers for which these hold."""
        for premise in premises:
            if premise is False:
                raise _Beside
            self.facts.append(_z3(premise))

    def claim(self, *conclusions: Condition | bool) -> None:
        """Prove these, one after another."""
        for conclusion in map(_z3, conclusions):
            # What comes before the last decision of the script was proven on the path that it branches off from.
            if len(self.decisions) >= len(self.script) and not z3.is_true(conclusion):
                self._prove(conclusion)
            self.claims += 1
            self.facts.append(conclusion)

    def _prove(self, conclusion: z3.BoolRef) -> None:
        for facts in ((), self.combinations)[: 1 + bool(self.combinations)]:  # most proofs do without the second
            solver = self._solver(z3.Not(conclusion), *facts)
            answer = solver.check()
            if answer == z3.unsat:
                return
            if answer != z3.sat:
                raise Unproven(f"z3 does not know whether {conclusion}: {solver.reason_unknown()}")
        model = solver.model()
        drawn = {name: model.eval(z3.Int(name, solver.ctx), model_completion=True) for name in self.drawn}
        raise Refuted({name: value.as_long() for name, value in drawn.items()})

    def check(self, *conditions: z3.BoolRef) -> z3.CheckSatResult:
        """Whether integers fulfil all facts and these conditions."""
        return self._solver(*conditions).check()

    def _solver(self, *conditions: z3.BoolRef) -> z3.Solver:
        context = z3.Context()  # of its own: how long z3 takes depends on what else a context has seen
        solver = z3.Then("simplify", "solve-eqs", "smt", ctx=context).solver()
        solver.set("timeout", TIMEOUT)
        solver.add(*(each.translate(context) for each in (*self.facts, *conditions)))
        return solver

    def decide(self, condition: z3.BoolRef) -> bool:
        """Which way the code goes where it asks for a condition. A way that z3 cannot exclude counts as possible."""
        if len(self.decisions) < len(self.script):
            choice = self.script[len(self.decisions)]
        else:
            choice = self.check(condition) != z3.unsat
            if choice and self.check(z3.Not(condition)) != z3.unsat:
                self.pending.append((*self.decisions, False))
        self.decisions += (choice,)
        self.facts.append(condition if choice else z3.Not(condition))
        return choice

    def divide(self, number: Symbol, divisor: Symbol) -> tuple[Integer, Integer]:
        """Quotient and remainder as Python rounds them; the divisor must be positive."""
        for n, d, quotient, rest in self.quotients:
            if (n.key, d.key) == (number.key, divisor.key):
                return quotient, rest
        if all(d.key != divisor.key for _, d, _, _ in self.quotients):
            self.claim(divisor > 0)
        quotient, rest = self._exact_quotient(number, divisor), 0
        if quotient is None:
            quotient, rest = self._unknown(), self._unknown()
            self.require(number == divisor * quotient + rest, rest >= 0, rest < divisor)
            for n, d, other, _ in self.quotients:  # rounding keeps the order
                if d.key == divisor.key:
                    self.facts.append(z3.Implies(_z3(n <= number), _z3(other <= quotient)))
                    self.facts.append(z3.Implies(_z3(n >= number), _z3(other >= quotient)))
        self.quotients.append((number, divisor, quotient, rest))
        return quotient, rest

    def _exact_quotient(self, number: Symbol, divisor: Symbol) -> Integer | None:
        """The quotient, if the number is a sum of multiples of the divisor."""
        multiples = self.multiples.get(divisor.key, [(divisor, Symbol({(): 1}, self))])
        cofactors, rest = number.divided([multiple for multiple, _ in multiples])
        if rest.terms:
            return None
        quotient = sum(cofactor * factor for cofactor, (_, factor) in zip(cofactors, multiples, strict=True))
        self.require(number == divisor * quotient)
        return quotient

    def common_divisor(self, a: Symbol, b: Symbol) -> Symbol:
        """The positive number of which both are multiples, and which is a sum of multiples of them: their gcd."""
        self.claim(Condition(z3.Or(_z3(a != 0), _z3(b != 0)), self))
        divisor = self._unknown()
        multiples = self.multiples[divisor.key] = []
        for number in (a, b):
            factor = self._unknown()
            for multiple, times in [(number, 1), *self.multiples.get(number.key, [])]:
                multiples.append((multiple, factor * times))
                self.require(multiple == divisor * (factor * times))
        self.require(divisor > 0)
        self.combinations.append(_z3(divisor == a * self._unknown() + b * self._unknown()))
        return divisor

    def _unknown(self) -> Symbol:
        """An integer that conditions describe."""
        self.unknowns += 1
        return Symbol.of(f"?{self.unknowns}", self)


def _z3(condition: Condition | bool) -> z3.BoolRef:
    return condition.z3 if isinstance(condition, Condition) else z3.BoolVal(condition)


@dataclass
class _Numbers:
    """A case of given integers."""

    values: Mapping[str, int]

    def integer(self, name: str, least: int | None = None) -> int:
        self.require(least is None or self.values[name] >= least)
        return self.values[name]

    def require(self, *premises: object) -> None:
        if not all(premises):
            raise _Beside

    def claim(self, *conclusions: object) -> None:
        if not all(conclusions):
            raise Refuted(self.values)


def holds(statement: Statement, values: Mapping[str, int]) -> bool:
    """Whether the claims hold for given integers, or the code refuses them, or they do not fulfil the premises."""
    try:
        statement(_Numbers(values))
    except Refuted:
        return False
    except (Refusal, _Beside):
        pass
    return True


def mutate(patch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace a part of the text of a function or method by another, for as long as `patch` lasts."""
    found = vars(owner)[name]
    function = getattr(found, "fget", None) or getattr(found, "__func__", found)
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1, f"{name} does not have {old!r} once: adapt the mutant"
    names: dict[str, Any] = {}
    exec(compile(text.replace(old, new), f"<mutant of {name}>", "exec"), function.__globals__, names)
    patch.setattr(owner, name, names[name])
