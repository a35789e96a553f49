"""The forms in which example inputs can be given, and what is done without any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from tests.helpers import EXACT, convs_ran, distance, trained
from tests.networks import Network, X, network


@pytest.mark.parametrize(
    "inputs", [X, (X,), [X], {"x": X}, (X, torch.ones(4).double()), {"x": X, "scale": torch.ones(4).double()}, None]
)
def test_forms_of_inputs(inputs: Any) -> None:
    model = network()
    folded = reparam.reparameterize(model, inputs)
    assert distance(model, folded, X) < EXACT
    assert convs_ran(folded, X) == 4


def test_no_inputs_for_a_model_that_cannot_be_traced() -> None:
    class Branching(Network):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(InputError, match="give example_inputs"):
        reparam.reparameterize(trained(Branching()))


def test_no_inputs_for_a_model_whose_shape_is_unknown() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with pytest.raises(InputError, match="give example_inputs"):
        reparam.reparameterize(Bare().eval())


@pytest.mark.parametrize("inputs", ["image", 3, (), {1: X}, [None]])
def test_unusable_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(InputError, match="example_inputs"):
        reparam.reparameterize(network(), inputs)
