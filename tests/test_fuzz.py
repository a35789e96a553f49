"""Random networks convert exactly, a planted bug is found and made small, and what was found once stays found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from helpers import EXACT, Block, distance, image, ran, trained

# --- networks that a conversion once got wrong


def written_input(m: nn.Module, x: Tensor) -> Tensor:
    x += m.c
    return m.second(m.first(x)).relu()


def kept_on_the_module(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    m.kept = y  # type: ignore[assignment]
    return m.second(y).relu()


def literal(m: nn.Module, x: Tensor) -> Tensor:
    y = x.index_select(1, torch.tensor([2, 0, 3, 1]))
    return (m.first(y) + m.second(y)).relu()


def unpacked(m: nn.Module, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    both = torch.cat([b, a], 1)
    return (m.first(both) + m.second(both)).relu()


def block(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3), c=torch.randn(4, 1, 1)))


def summed(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3, padding=1)))


@pytest.mark.parametrize("function", [written_input, kept_on_the_module])
def test_what_a_forward_does_besides_returning_stays(function: Callable[[Any, Tensor], Any]) -> None:
    model = block(function)
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    given, seen = image(2, 4, 6, 5), image(2, 4, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(folded(seen), model(given), rtol=0, atol=EXACT)
    assert torch.equal(given, seen)
    if function is kept_on_the_module:
        torch.testing.assert_close(folded.kept, model.kept)


@pytest.mark.parametrize("function", [literal, unpacked])
def test_what_is_written_beside_a_fold_stays(function: Callable[[Any, Tensor], Any]) -> None:
    model = summed(function)
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    assert distance(model, folded, image(3, 4, 6, 5)) < EXACT
    assert ran(folded, image(3, 4, 6, 5))["convolution"] == 1
    assert distance(model, copy.deepcopy(folded), image(1, 4, 3, 3)) < EXACT
