"""What a conversion keeps while it runs: numbers in float64 are forgotten, parameters are not copied in advance."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
import reparam.emit as emit
from helpers import distance, image, trained
from reparam.deferred import Deferred, passing
from reparam.lent import aliases, own
from reparam.nn import RepVGGBlock

X = image(2, 8, 9, 11)
LARGE = 2**18  # elements: more than what is always kept


def network(blocks: int = 4) -> nn.Module:
    return trained(nn.Sequential(*(RepVGGBlock(8, 8) for _ in range(blocks))), X)


def counted(size: int = LARGE) -> tuple[Deferred[Tensor], list[int]]:
    calls: list[int] = []
    return Deferred(lambda: calls.append(1) or torch.zeros(size)), calls  # type: ignore[func-returns-value]


def test_numbers_are_forgotten_behind_the_passage() -> None:
    number, calls = counted()
    with passing():
        first = number()
        assert number() is first
    assert number() is not first
    assert len(calls) == 2
    assert number() is number()


def test_a_large_number_is_kept_until_the_next_and_worked_out_twice_at_most() -> None:
    (one, ones), (other, others) = counted(), counted()
    with passing():
        for _ in range(5):
            one()
            other()
    assert len(ones) <= 2
    assert len(others) <= 2


def test_small_numbers_are_worked_out_once() -> None:
    pairs = [counted(8) for _ in range(5)]
    with passing():
        for number, _ in pairs * 3:
            number()
    assert all(len(calls) == 1 for _, calls in pairs)


def doubles() -> int:
    """Elements of all float64 tensors that live."""
    held = (each for each in gc.get_objects() if isinstance(each, Tensor) and each.dtype == torch.float64)
    return sum(each.numel() for each in held)


@pytest.mark.parametrize("verify", [False, "folds"])
def test_the_kernels_of_one_fold_are_gone_before_those_of_the_next(
    monkeypatch: pytest.MonkeyPatch, verify: Any
) -> None:
    model = network().float()
    right, found = emit.plain, []

    def plain(*arguments: Any) -> Any:
        found.append(doubles())
        return right(*arguments)

    monkeypatch.setattr(emit, "plain", plain)
    reparam.reparameterize(model, X.float(), verify=verify)
    assert len(found) == 4
    kernel = 8 * 8 * 9
    assert found[-1] - found[0] < 3 * kernel  # less than one for each fold before; there were a dozen


def test_no_parameter_is_copied_that_is_folded_away(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    memory = {each.data_ptr() for each in model.parameters()}
    right, seen = emit.emit, []

    def looked(target: nn.Module, *arguments: Any) -> Any:
        seen.append({each.data_ptr() for each in target.parameters()})
        return right(target, *arguments)

    monkeypatch.setattr("reparam.pipeline.emit", looked)
    reparam.reparameterize(model, X, verify=False)
    assert seen == [memory]


@pytest.mark.parametrize("verify", [False, "folds", "full"])
def test_what_comes_out_shares_no_memory_with_the_model(verify: Any) -> None:
    model = nn.Sequential(network(), nn.GELU(), nn.LayerNorm(11), nn.PReLU()).double().eval()
    model[3].weight.requires_grad_(False)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    folded = reparam.reparameterize(model, X, verify=verify)
    assert not {each.data_ptr() for each in folded.parameters()} & {each.data_ptr() for each in model.parameters()}
    assert folded[2].weight.requires_grad
    assert not folded[3].weight.requires_grad
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())


def test_tied_parameters_stay_tied() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU()).eval()
    folded = reparam.reparameterize(model, torch.randn(2, 4))
    assert folded[0].weight is folded[2].weight
    assert folded[0].weight.data_ptr() != first.weight.data_ptr()


def test_parameters_that_modules_also_keep_in_lists() -> None:
    model = nn.LSTM(4, 4).eval()
    folded = reparam.reparameterize(model, torch.randn(3, 2, 4))
    assert [id(each) for each in folded._flat_weights] == [id(each) for each in folded.parameters()]
    assert distance(lambda x: model(x)[0], lambda x: folded(x)[0], torch.randn(3, 2, 4)) == 0
    own(folded, aliases(model).values())
