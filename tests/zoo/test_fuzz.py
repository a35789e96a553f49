"""Random networks convert exactly, a planted bug is found and made small, and what was found once stays found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fuzz.check import check
from benchmarks.fuzz.draw import draw_network
from benchmarks.fuzz.naive_padding import RIGHT, naive_pad
from benchmarks.fuzz.run import run
from benchmarks.fuzz.shrink import shrink
from reparam.algebra.affine import AffineConv
from reparam.rules import RULES

# --- networks that a conversion once got wrong


# --- what depends on the order of memory, on sizes and on torch itself


# --- random networks


def test_random_networks_convert_exactly() -> None:
    said: list[str] = []
    tally = run(range(150), said.append)
    assert not tally.failures, "\n".join(said)
    assert tally.folds > 100
    assert tally.removed > 150
    assert not tally.naive[RIGHT], "a fold was refused that is right"
    assert sum(tally.rejected.values()) < 5


def forgotten_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm folds with another eps than it has."""
    rule = RULES["batch_norm"]

    def wrong(*args: Any, eps: float = 1e-5, **kwargs: Any) -> Any:
        return rule.apply(*args[:7], **kwargs)

    monkeypatch.setitem(RULES, "batch_norm", replace(rule, apply=wrong))


def lenient_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding folds whatever comes before it."""
    monkeypatch.setattr(AffineConv, "pad", naive_pad)


@pytest.mark.parametrize("bug", [forgotten_eps, lenient_padding])
def test_a_planted_bug_is_found_and_shrunk(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    programs = map(draw_network, range(4, 804, 8))  # of middle length
    found = next((program, failure) for program in programs if (failure := check(program).failure))
    small = shrink(*found)
    assert check(small).failure
    assert sum(len(block.lines) for block in small.used_blocks()) <= 4
    assert "reparameterize" in small.script()


def test_a_drawn_network_prints_as_a_program() -> None:
    exec(compile(draw_network(7).script(), "<script>", "exec"), {})
