"""What a conversion keeps while it runs: numbers in float64 are forgotten, parameters are not copied in advance."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
import reparam.emit as emit
import reparam.waiting as waiting
from helpers import Block, distance, image, trained
from reparam.deferred import Deferred, passing
from reparam.errors import ModelError
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


# --- in place


def normed(kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(8))


def chain() -> nn.Module:
    return nn.Sequential(normed(), nn.ReLU(), normed(1, bias=False), nn.ReLU(), normed(groups=2), nn.GELU())


def shared() -> nn.Module:
    """One convolution between norms of two places, and a whole block that is called twice."""
    block, conv = nn.Sequential(normed(), nn.ReLU()), nn.Conv2d(8, 8, 3, padding=1)
    norms = [nn.BatchNorm2d(8) for _ in range(2)]
    return nn.Sequential(block, block, conv, norms[0], nn.ReLU(), conv, norms[1], nn.ReLU())


def tied() -> nn.Module:
    first, second, third = normed(), normed(), nn.Conv2d(8, 8, 3)
    second[0].weight = third.weight = first[0].weight
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU())


def read_elsewhere() -> nn.Module:
    """Its norm is folded, and the weight that goes with it is read by other code as well."""
    return Block(lambda self, x: self.layer(x).relu() * self.layer[0].weight.abs().sum(), layer=normed())


def padded() -> nn.Module:
    """Its kernel is padded by a module of its own, and what comes of the first bias is a map where sizes are fixed."""
    strided = nn.Sequential(nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(strided, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


KINDS: list[Callable[[], nn.Module]] = [chain, network, shared, tied, read_elsewhere, padded]


@pytest.mark.parametrize("verify", [False, "folds"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed_size", [False, True])
def test_in_place_gives_the_same_bits(kind: Callable[[], nn.Module], verify: Any, fixed_size: bool) -> None:
    model = trained(kind(), X)
    like, x = copy.deepcopy(model).float().to(memory_format=torch.channels_last), X.float()
    apart = reparam.reparameterize(like, x, verify=verify, fixed_size=fixed_size)
    assert reparam.reparameterize(like, x, verify=verify, fixed_size=fixed_size, inplace=True) is like
    truth, found = apart.state_dict(), like.state_dict()
    assert list(found) == list(truth)
    for key, each in truth.items():
        assert torch.equal(each, found[key])
        assert each.stride() == found[key].stride()
    assert [p.requires_grad for p in like.parameters()] == [p.requires_grad for p in apart.parameters()]
    assert torch.equal(like(x), apart(x))
    assert like.reparam_report.folds
    assert like.reparam_report == apart.reparam_report
    assert like.reparam_origin.keys == apart.reparam_origin.keys


def held() -> int:
    """Bytes of all tensors that live, each memory once."""
    kinds = (Tensor, nn.Parameter)  # and not what exporters trace with: it has no memory
    every = (each for each in gc.get_objects() if type(each) in kinds and each.device.type == "cpu")
    storages = [each.untyped_storage() for each in every]
    return sum({each._cdata: each.nbytes() for each in storages}.values())


@pytest.mark.parametrize("verify", [False, "folds"])
def test_in_place_old_and_new_weights_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch, verify: Any) -> None:
    layers = [RepVGGBlock(64, 64), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), RepVGGBlock(64, 64)]
    x = image(2, 64, 9, 11).float()
    model = trained(nn.Sequential(*layers, nn.Conv2d(64, 64, 1), nn.ReLU()), x.double()).float()
    del layers
    right, found = waiting.plain, []

    def plain(*arguments: Any) -> Any:
        found.append(held())
        return right(*arguments)

    monkeypatch.setattr(waiting, "plain", plain)
    gc.collect()
    before, kernel = held(), 4 * 64 * 64 * 9
    reparam.reparameterize(model, x, verify=verify, inplace=True)
    assert len(found) == 3
    assert found[0] < before + kernel / 4  # of the new weights there is none yet
    assert all(later < earlier for earlier, later in pairwise([*found, held()]))


def test_in_place_what_others_hold_stays_as_it_was() -> None:
    model = network()
    before, block = copy.deepcopy(model[1]), model[1]
    reparam.reparameterize(model, X, verify=False, inplace=True)
    assert block is not model[1]
    assert distance(before, block, X) == 0


def test_in_place_without_enough_memory_says_that_the_model_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    right, made = waiting.plain, []

    def plain(*arguments: Any) -> Any:
        if made:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        made.append(right(*arguments))
        return made[-1]

    monkeypatch.setattr(waiting, "plain", plain)
    with pytest.raises(ModelError, match="can't allocate memory; the model has lost its old ones and has to be loaded"):
        reparam.reparameterize(network(), X, verify=False, inplace=True)


def test_in_place_nothing_is_given_up_before_the_folds_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = copy.deepcopy(model)
    monkeypatch.setattr("reparam.pipeline.fold_error", lambda *_: 1.0)
    with pytest.raises(reparam.VerificationError, match="nothing has been changed"):
        reparam.reparameterize(model, X, verify="folds", inplace=True)
    assert distance(before, model, X) == 0
