"""Numbers that are computed when they are asked for, and forgotten behind the scope that asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam.algebra.kernels as kernels
import reparam.algebra.lazy as lazy
from reparam.algebra.affine import AffineConv, Anchor, Constant
from reparam.algebra.lazy import Fresh, Lazy, Uncached, cache_scope, writable
from tests.helpers import image

LARGE = 2**19  # elements: more than what is always kept


def counted(size: int = LARGE) -> tuple[Lazy[Tensor], list[int]]:
    calls: list[int] = []
    return Lazy(lambda: calls.append(1) or torch.zeros(size)), calls  # type: ignore[func-returns-value]


def test_values_are_cached_within_the_scope_alone() -> None:
    number, calls = counted()
    with cache_scope():
        first = number()
        assert number() is first
    assert number() is not first
    assert len(calls) == 2
    assert number() is number()


def test_a_large_value_is_computed_twice_at_most() -> None:
    (one, ones), (other, others) = counted(), counted()
    with cache_scope():
        for _ in range(5):
            one()
            other()
    assert len(ones) <= 2
    assert len(others) <= 2


def test_small_values_are_computed_once() -> None:
    pairs = [counted(8) for _ in range(5)]
    with cache_scope():
        for number, _ in pairs * 3:
            number()
    assert all(len(calls) == 1 for _, calls in pairs)


@pytest.mark.parametrize("scope", [cache_scope, nullcontext])
def test_an_unread_value_is_handed_over_without_a_copy(scope: Callable[[], AbstractContextManager[None]]) -> None:
    made = list[Tensor]()
    number = Fresh(lambda: made.append(torch.zeros(LARGE)) or made[-1])  # type: ignore[func-returns-value]
    behind = Lazy(lambda: writable(number).add_(1), number)
    with scope():
        assert behind() is made[0]
        assert torch.equal(number(), torch.zeros(LARGE))  # made anew
    assert len(made) == 2


@pytest.mark.parametrize("seen", ["before", "small", "kept", "outside", "not its own"])
def test_a_value_that_was_read_is_copied(seen: str) -> None:
    stored = torch.zeros(8 if seen == "small" else LARGE)
    number = Lazy(lambda: stored) if seen == "not its own" else Fresh(lambda: stored.clone())
    with cache_scope() if seen != "outside" else nullcontext():
        before = number() if seen == "before" else None
        if seen == "kept":
            for other in (number, counted()[0], number, counted()[0]):
                before = other() if other is number else before
                other()
        writable(number).add_(1)
        assert torch.equal(number(), torch.zeros_like(stored))
        assert before is None or torch.equal(before, torch.zeros_like(stored))
    assert not stored.any()


def test_parameters_are_read_anew_and_never_written() -> None:
    weight = nn.Parameter(torch.randn(LARGE, dtype=torch.float64))
    number = Uncached(lambda: kernels.float64_copy(weight))
    before = weight.detach().clone()
    with cache_scope():
        first, second = writable(number), number()
        first.zero_()
        assert torch.equal(second, before)
        assert torch.equal(weight, before)
        assert torch.equal(writable(number), before)


SHAPES = [(), (1,), (0, 4), (3, 1, 5, 2)]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_copies_in_float64(monkeypatch: pytest.MonkeyPatch, large: bool, shape: Any, dtype: torch.dtype) -> None:
    monkeypatch.setattr(kernels, "_LARGE", 1 if large else kernels._LARGE)
    tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
    for each in (tensor, tensor.T if tensor.dim() == 2 else tensor, tensor.expand(2, *shape)):
        copy = kernels.float64_copy(each)
        assert copy.dtype == torch.float64
        assert torch.equal(copy, each.double())
        copy.add_(1)  # its elements lie apart
        assert torch.equal(copy - 1, each.double()) or dtype == torch.float64
        assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not tensor.numel()


def padded_conv(taps: int, groups: int) -> AffineConv:
    weight = torch.randn(8, 8 // groups, taps, taps, dtype=torch.float64)
    number = Uncached(lambda: kernels.float64_copy(weight))
    bordered = AffineConv.of(Anchor("x", (1, 8, 9, 9)), 2).pad([(taps // 2, taps // 2)] * 2)
    assert isinstance(bordered, AffineConv)
    return bordered.then(AffineConv.conv(Constant(weight.shape, number), groups=groups))


@pytest.mark.parametrize("groups", [(1, 1), (1, 2), (4, 1), (2, 4), (4, 4)])
@pytest.mark.parametrize("taps", [(3, 1), (1, 3), (3, 3), (1, 1), (5, 3)])
def test_values_that_are_read_again_are_unchanged(
    monkeypatch: pytest.MonkeyPatch, groups: tuple[int, int], taps: tuple[int, int]
) -> None:
    """Sums of a convolution with itself, scaled before and after: none overwrites a kernel that another reads."""
    monkeypatch.setattr(lazy, "_SMALL", 0)
    one, two = map(padded_conv, taps, groups)
    factor, half = torch.linspace(-1, 2, 8, dtype=torch.float64), torch.full((8,), 0.5, dtype=torch.float64)
    x = image(1, 8, 9, 9)
    sums = one(x) + two(x)
    truth = sums * factor.view(-1, 1, 1) + one(x) + sums
    with cache_scope():
        both = one + two
        whole = both.scale_shift(Lazy.of(factor)) + (one + both)
        again = (whole + whole).scale_shift(Lazy.of(half))
        for value, right in ((whole, truth), (again, truth), (both, sums), (whole, truth)):
            assert (value(x) - right).abs().max() <= 1e-13 * right.abs().max()
