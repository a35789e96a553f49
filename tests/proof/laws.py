"""How a law is listed: a statement, and mutants of the code for which the statement does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.proof.prover import Refuted, Statement, holds, mutate, prove


@dataclass(frozen=True)
class Mutant:
    """The code of `owner.name` with `old` replaced by `new`."""

    owner: Any
    name: str
    old: str
    new: str


class Laws:
    """The laws of a file."""

    def __init__(self) -> None:
        self.statements: list[Any] = []
        self.mutants: list[Any] = []

    def law(self, *mutants: Mutant) -> Callable[[Statement], Statement]:
        """Lists a statement, with the mutants that it must tell from the code."""

        def listed(statement: Statement) -> Statement:
            assert mutants, "a law without a mutant may be empty"
            self.statements.append(pytest.param(statement, id=statement.__name__))
            for i, mutant in enumerate(mutants):
                self.mutants.append(pytest.param(statement, mutant, id=f"{statement.__name__}-{mutant.name}-{i}"))
            return statement

        return listed


def check_refuted(statement: Statement, mutant: Mutant) -> None:
    """z3 has a counterexample, and it is one: plain integers for which the mutant is wrong and the code is right."""
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch, mutant.owner, mutant.name, mutant.old, mutant.new)
        with pytest.raises(Refuted) as refuted:
            prove(statement)
        assert not holds(statement, refuted.value.counterexample)
    assert holds(statement, refuted.value.counterexample)
