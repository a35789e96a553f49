"""`inplace=True` changes the model itself."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import reparam
from reparam.nn import RepVGGBlock
from tests.helpers import EXACT, convs_ran, distance, image, trained
from tests.networks import Network, X, network


def test_in_place_changes_the_model_itself() -> None:
    model = network()
    truth, head = model(X), model.head
    result = reparam.reparameterize(model, X, inplace=True)
    assert result is model
    assert type(model) is Network
    assert convs_ran(model, X) == 4
    assert ((model(X) - truth).abs().max() / truth.abs().max()).item() < EXACT
    assert model.head.weight is head.weight
    assert model.reparam_report.folds


def test_in_place_of_a_model_that_is_one_block() -> None:
    model = trained(RepVGGBlock(4, 4))
    x = image(1, 4, 9, 7)
    truth = model(x)
    assert reparam.reparameterize(model, x, inplace=True) is model
    assert convs_ran(model, x) == 1
    assert ((model(x) - truth).abs().max() / truth.abs().max()).item() < EXACT
    assert isinstance(pickle.loads(pickle.dumps(model)), RepVGGBlock)


@pytest.mark.parametrize("inplace", [False, True])
def test_weights_and_calls_of_inference_mode(inplace: bool) -> None:
    with torch.inference_mode():
        model, x = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())), image(2, 3, 7, 10)
        original = copy.deepcopy(model)
        deployed = reparam.reparameterize(model, x, inplace=inplace)
        assert distance(original, deployed, x) < EXACT
    assert [type(layer) for layer in deployed.children()] == [nn.Conv2d, nn.Identity, nn.ReLU]
