"""Random networks convert exactly, a planted bug is found and made small, and what was found once stays found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fuzz import check as fuzz
from reparam.algebra.affine import AffineConv
from reparam.rules import RULES

# --- networks that a conversion once got wrong


# --- what depends on the order of memory, on sizes and on torch itself


# --- random networks


def test_random_networks_convert_exactly() -> None:
    said: list[str] = []
    tally = fuzz.run(range(150), said.append)
    assert not tally.failures, "\n".join(said)
    assert tally.folds > 100
    assert tally.removed > 150
    assert not tally.questioned["right"], "a fold was refused that is right"
    assert sum(tally.rejected.values()) < 5


def forgotten_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm folds with another eps than it has."""
    rule = RULES["batch_norm"]

    def wrong(*args: Any, eps: float = 1e-5, **kwargs: Any) -> Any:
        return rule.apply(*args[:7], **kwargs)

    monkeypatch.setitem(RULES, "batch_norm", replace(rule, apply=wrong))


def lenient_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding folds whatever comes before it."""
    monkeypatch.setattr(AffineConv, "pad", fuzz.naive_pad)


@pytest.mark.parametrize("bug", [forgotten_eps, lenient_padding])
def test_a_planted_bug_is_found_and_made_small(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    programs = map(fuzz.drawn, range(4, 804, 8))  # of middle length
    found = next((program, failure) for program in programs if (failure := fuzz.check(program).failure))
    small = fuzz.shrunk(*found)
    assert fuzz.check(small).failure
    assert sum(len(block.lines) for block in small.used()) <= 4
    assert "reparameterize" in small.script()


def test_a_shrunk_network_is_a_program_of_its_own() -> None:
    exec(compile(fuzz.drawn(7).script(), "<script>", "exec"), {})
