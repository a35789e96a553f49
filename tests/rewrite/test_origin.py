from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from reparam.rewrite.origin import Origin, digest
from tests.helpers import distance, image, trained


class Net(nn.Module):
    """Branches, a kept layer, a tied weight, a buffer that is not in the state, a counter."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.a(x)) + self.b(x)).mean((2, 3))
        return torch.sigmoid(self.second(torch.relu(self.first(y)))) + self.table


def model_and_fold() -> tuple[nn.Module, nn.Module, Tensor]:
    x = image(2, 3, 7, 9)
    model = trained(Net(), x)
    return model, reparam.reparameterize(model, x), x


def test_a_folded_model_knows_what_became_of_each_tensor() -> None:
    model, deployed, _ = model_and_fold()
    origin = deployed.reparam_origin
    assert isinstance(origin, Origin)
    assert set(origin.keys) == set(model.state_dict())
    assert origin.keys["a.weight"] == origin.keys["norm.running_var"] == ("conv.weight", "conv.bias")
    assert origin.keys["first.weight"] == ("first.weight", "second.weight")
    assert origin.keys["norm.num_batches_tracked"] == ()
    assert {key for keys in origin.keys.values() for key in keys} == set(deployed.state_dict())
    assert origin.inputs is not None
    assert origin.inputs["args"][0]["shape"] == [2, 3, 7, 9]
    assert all(tensor.is_meta for tensor in origin.skeleton.state_dict().values())


def test_undo_gives_the_training_form_back() -> None:
    model, deployed, x = model_and_fold()
    restored = reparam.undo(deployed, model.state_dict())
    assert distance(model, restored, x) == 0
    assert type(restored) is Net
    assert restored.second.weight is restored.first.weight
    assert restored.a.weight.requires_grad
    assert not restored.training
    restored.train()(x).sum().backward()
    assert restored.a.weight.grad is not None
    assert "reparam_origin" not in vars(restored)
    assert reparam.reparameterize(restored.eval(), x).reparam_report.folds


def test_undo_shares_no_memory_with_the_state_it_is_given() -> None:
    model, deployed, _ = model_and_fold()
    restored = reparam.undo(deployed, model.state_dict())
    with torch.no_grad():
        restored.a.weight.zero_()
        restored.table.zero_()
    assert model.a.weight.abs().sum() > 0
    assert reparam.undo(deployed, model.state_dict()).table.sum() > 0


def test_undo_of_a_model_that_was_changed_in_place() -> None:
    x = image(2, 3, 7, 9)
    model = trained(Net(), x)
    state, before = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    reparam.reparameterize(model, x, inplace=True)
    assert distance(before, reparam.undo(model, state), x) == 0


def test_undo_refuses_what_is_not_the_original_state() -> None:
    model, deployed, _ = model_and_fold()
    state = model.state_dict()
    with pytest.raises(InputError, match="Missing key"):
        reparam.undo(deployed, {name: tensor for name, tensor in state.items() if name != "a.weight"})
    with pytest.raises(InputError, match="Unexpected key"):
        reparam.undo(deployed, {**state, "more": torch.ones(1)})
    with pytest.raises(InputError, match="size mismatch"):
        reparam.undo(deployed, {**state, "b.bias": torch.ones(5)})
    other = {**state, "b.bias": state["b.bias"] + 1e-9}
    with pytest.raises(InputError, match=r"1 of 12 tensors differ, the first is b\.bias"):
        reparam.undo(deployed, other)
    assert torch.equal(reparam.undo(deployed, other, check=False).b.bias, other["b.bias"])
    with pytest.raises(InputError, match="was not folded"):
        reparam.undo(model, state)


def test_a_pickled_model_carries_no_training_code() -> None:
    model, deployed, x = model_and_fold()
    data = pickle.dumps(deployed)
    loaded = pickle.loads(data)
    assert loaded.reparam_origin.keys == deployed.reparam_origin.keys
    assert loaded.reparam_origin.skeleton is None
    with pytest.raises(InputError, match="model="):
        reparam.undo(loaded, model.state_dict())
    assert distance(model, reparam.undo(loaded, model.state_dict(), model=Net().double()), x) == 0
    assert b"BatchNorm2d" not in data


def test_copies_and_second_conversions_remember_the_same() -> None:
    model, deployed, x = model_and_fold()
    assert copy.deepcopy(deployed).reparam_origin is deployed.reparam_origin
    again = reparam.reparameterize(deployed, x)
    assert distance(model, reparam.undo(again, model.state_dict()), x) == 0


@pytest.mark.parametrize(
    "change",
    [lambda t: t.float(), lambda t: t[:2], lambda t: t + 1e-15, lambda t: t.reshape(-1)],
    ids=["dtype", "length", "value", "shape"],
)
def test_digests_differ_where_tensors_do(change: Callable[[Tensor], Tensor]) -> None:
    tensor = image(4, 3)
    assert digest(change(tensor)) != digest(tensor)
    assert digest(tensor.t().contiguous().t()) == digest(tensor)
    assert digest(torch.ones(2, dtype=torch.bfloat16)) == digest(torch.ones(2, dtype=torch.bfloat16))
    assert digest(torch.ones(())) != digest(torch.zeros(()))
    assert digest(torch.ones(0))
    assert digest(torch.eye(3).to_sparse()) != digest(torch.zeros(3, 3).to_sparse())
    assert digest(torch.tensor([1 + 1j, 2 + 1j]).conj()) == digest(torch.tensor([1 - 1j, 2 - 1j]))


@pytest.mark.parametrize("kind", ["no arguments", "raises", "something else"])
def test_a_custom_state_dict_is_no_obstacle(kind: str) -> None:
    class Own(Net):
        def state_dict(self) -> dict[str, object]:  # type: ignore[override]
            if kind == "raises":
                raise RuntimeError("not now")
            return {"nested": {"a": 1}} if kind == "something else" else dict(self.named_parameters())

    x = image(2, 3, 7, 9)
    model = trained(Own(), x)
    deployed = reparam.reparameterize(model, x)
    assert distance(model, deployed, x) < 1e-12
    assert pickle.loads(pickle.dumps(deployed.reparam_origin)).keys == deployed.reparam_origin.keys
