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
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reparam
import reparam.algebra.lazy as lazy
import reparam.rewrite.apply as emit
from reparam.errors import ModelError
from reparam.nn import RepVGGBlock
from reparam.rewrite import weights
from reparam.rewrite.weights import aliases, copy_aliases
from tests.helpers import Block, distance, image, trained

X = image(2, 8, 9, 11)


def repvgg_blocks(blocks: int = 4) -> nn.Module:
    return trained(nn.Sequential(*(RepVGGBlock(8, 8) for _ in range(blocks))), X)


# --- numbers that are written into


class Peak(TorchDispatchMode):
    """The peak of float64 memory: bytes of the tensors that operations made or read and that were alive together."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for each in tree_leaves((args, result)):
            if isinstance(each, Tensor) and each.dtype == torch.float64 and each.device.type == "cpu":
                storage = each.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return result


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["norm", "norm in front", "branches", "linear"])
def test_one_kernel_of_a_layer_in_float64_at_once(monkeypatch: pytest.MonkeyPatch, kind: str, inplace: bool) -> None:
    monkeypatch.setattr(lazy, "_SMALL", 2**15)
    wide, kinds = 256, dict[str, Callable[[], nn.Module]]()
    kinds["norm"] = lambda: nn.Sequential(nn.Conv2d(wide, wide, 3), nn.BatchNorm2d(wide))
    kinds["norm in front"] = lambda: nn.Sequential(nn.BatchNorm2d(wide), nn.Conv2d(wide, wide, 3))
    kinds["branches"] = lambda: RepVGGBlock(wide, wide)
    kinds["linear"] = lambda: nn.Sequential(nn.BatchNorm1d(wide), nn.Linear(wide, 9 * wide), nn.BatchNorm1d(9 * wide))
    x = image(2, wide) if kind == "linear" else image(1, wide, 5, 5)
    model, x = trained(kinds[kind](), x).float(), x.float()
    right, peak = emit.emit, Peak()

    def emitted(*arguments: Any, **options: Any) -> Any:
        with peak:
            return right(*arguments, **options)

    monkeypatch.setattr("reparam.convert.emit", emitted)
    folded = reparam.reparameterize(model, x, verify=False, inplace=inplace)
    largest = max(8 * each.numel() for each in folded.parameters())
    assert len(folded.reparam_report.folds) == 1
    assert largest <= peak.most < 1.6 * largest  # a kernel, and the 64 channels whose rounding is looked at, twice


def doubles() -> int:
    """Elements of all float64 tensors that are alive."""
    held = (each for each in gc.get_objects() if isinstance(each, Tensor) and each.dtype == torch.float64)
    return sum(each.numel() for each in held)


@pytest.mark.parametrize("verify", [False, "folds"])
def test_the_kernels_of_one_fold_are_gone_before_those_of_the_next(
    monkeypatch: pytest.MonkeyPatch, verify: Any
) -> None:
    model = repvgg_blocks().float()
    right, found = emit.plain_layer, []

    def plain(*arguments: Any) -> Any:
        found.append(doubles())
        return right(*arguments)

    monkeypatch.setattr(emit, "plain_layer", plain)
    reparam.reparameterize(model, X.float(), verify=verify)
    assert len(found) == 4
    kernel = 8 * 8 * 9
    assert found[-1] - found[0] < 3 * kernel  # less than one for each fold before; there were a dozen


def test_folded_parameters_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = repvgg_blocks()
    memory = {each.data_ptr() for each in model.parameters()}
    right, seen = emit.emit, []

    def looked(target: nn.Module, *arguments: Any, **options: Any) -> Any:
        seen.append({each.data_ptr() for each in target.parameters()})
        return right(target, *arguments, **options)

    monkeypatch.setattr("reparam.convert.emit", looked)
    reparam.reparameterize(model, X, verify=False)
    assert seen == [memory]


@pytest.mark.parametrize("verify", [False, "folds", "full"])
def test_the_result_shares_no_memory_with_the_model(verify: Any) -> None:
    model = nn.Sequential(repvgg_blocks(), nn.GELU(), nn.LayerNorm(11), nn.PReLU()).double().eval()
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
    copy_aliases(folded, aliases(model).values())


# --- in place


def normed(kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(8))


def chain() -> nn.Module:
    return nn.Sequential(normed(), nn.ReLU(), normed(1, bias=False), nn.ReLU(), normed(groups=2), nn.GELU())


def shared() -> nn.Module:
    """One convolution that is called twice, with two norms, and a block that is called twice."""
    block, conv = nn.Sequential(normed(), nn.ReLU()), nn.Conv2d(8, 8, 3, padding=1)
    norms = [nn.BatchNorm2d(8) for _ in range(2)]
    return nn.Sequential(block, block, conv, norms[0], nn.ReLU(), conv, norms[1], nn.ReLU())


def tied() -> nn.Module:
    first, second, third = normed(), normed(), nn.Conv2d(8, 8, 3)
    second[0].weight = third.weight = first[0].weight
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU())


def read_elsewhere() -> nn.Module:
    """Its norm is folded, and other code reads the weight of the convolution."""
    return Block(lambda self, x: self.layer(x).relu() * self.layer[0].weight.abs().sum(), layer=normed())


def padded() -> nn.Module:
    """A module pads the input; at a fixed size the first bias becomes a map."""
    strided = nn.Sequential(nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(strided, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


KINDS: list[Callable[[], nn.Module]] = [chain, repvgg_blocks, shared, tied, read_elsewhere, padded]


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
    """Bytes of all tensors that are alive, each storage once."""
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
    right, found = weights.plain_layer, []

    def plain(*arguments: Any) -> Any:
        found.append(held())
        return right(*arguments)

    monkeypatch.setattr(weights, "plain_layer", plain)
    gc.collect()
    before, kernel = held(), 4 * 64 * 64 * 9
    reparam.reparameterize(model, x, verify=verify, inplace=True)
    assert len(found) == 3
    assert found[0] < before + kernel / 4  # of the new weights there is none yet
    assert all(later < earlier for earlier, later in pairwise([*found, held()]))


def test_in_place_a_module_that_others_hold_stays() -> None:
    model = repvgg_blocks()
    before, block = copy.deepcopy(model[1]), model[1]
    reparam.reparameterize(model, X, verify=False, inplace=True)
    assert block is not model[1]
    assert distance(before, block, X) == 0


def test_in_place_out_of_memory_says_that_the_model_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    right, made = weights.plain_layer, []

    def plain(*arguments: Any) -> Any:
        if made:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        made.append(right(*arguments))
        return made[-1]

    monkeypatch.setattr(weights, "plain_layer", plain)
    with pytest.raises(ModelError, match="can't allocate memory; the model has lost its weights and has to be loaded"):
        reparam.reparameterize(repvgg_blocks(), X, verify=False, inplace=True)


def test_in_place_nothing_is_given_up_before_the_folds_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = repvgg_blocks()
    before = copy.deepcopy(model)
    monkeypatch.setattr("reparam.convert.fold_error", lambda *_: 1.0)
    with pytest.raises(reparam.VerificationError, match="Nothing has been changed"):
        reparam.reparameterize(model, X, verify="folds", inplace=True)
    assert distance(before, model, X) == 0
