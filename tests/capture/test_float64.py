"""Float64 leaves no lower precision anywhere, and disturbs nothing else."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture.float64 import Float64, as_float64, double
from reparam.capture.tree import leaves, tensors

X = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(3, 4)
LOW = torch.linspace(0.1, 0.7, 4)  # a float32 tensor from outside, as a plain attribute of a module is

WIDENED: dict[str, Callable[[], Tensor]] = {
    "default factory": lambda: torch.zeros(2),
    "named factory": lambda: torch.ones(2, dtype=torch.float32),
    "full": lambda: torch.full((2,), 0.1, dtype=torch.float16),
    "full by default": lambda: torch.full((2,), 0.1),
    "empty": lambda: torch.empty(2, dtype=torch.bfloat16),
    "linspace": lambda: torch.linspace(0, 1, 3, dtype=torch.float32),
    "arange of floats": lambda: torch.arange(0, 1, 0.1),
    "scalar tensor": lambda: torch.scalar_tensor(1.0, dtype=torch.float32),
    "rand": lambda: torch.rand(2, dtype=torch.float32),
    "tensor": lambda: torch.tensor(0.1),
    "integers times a number": lambda: torch.arange(3) * 0.1,
    "integers divided": lambda: torch.arange(3) / 3,
    "new_zeros of float32": lambda: LOW.new_zeros(2),
    "to": lambda: X.to(torch.float32),
    "to like": lambda: X.to(LOW),
    "float": lambda: X.float(),
    "half": lambda: X.half(),
    "bfloat16": lambda: X.bfloat16(),
    "type": lambda: X.type(torch.float32),
    "type_as": lambda: X.type_as(LOW),
    "sum with dtype": lambda: X.sum(dtype=torch.float32),
    "softmax with dtype": lambda: F.softmax(X, -1, dtype=torch.float32),
    "float32 alone": lambda: torch.exp(LOW),
    "float32 view, then computed": lambda: LOW[1:] * 2,
    "float32 list": lambda: torch.cat([LOW, LOW]),
    "float32 weight": lambda: F.linear(X, LOW[None]),
    "float32 conv weight": lambda: F.conv1d(X[None], LOW.expand(2, 3, 4)),
    "float32 norm": lambda: F.layer_norm(X, (4,), LOW),
    "float32 statistics": lambda: F.batch_norm(X, LOW, LOW),
}  # fmt: skip


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", WIDENED)
def test_every_floating_result_is_float64(name: str, context: Callable[[], torch.no_grad]) -> None:
    with context(), Float64():
        assert WIDENED[name]().dtype == torch.float64


def test_cases_lose_precision_or_fail_without_the_mode() -> None:
    """Otherwise the test above could not fail."""

    def is_float64(make: Callable[[], Tensor]) -> bool:
        try:
            return make().dtype == torch.float64
        except RuntimeError:
            return False

    assert [name for name, make in WIDENED.items() if is_float64(make)] == []


def test_values_are_those_of_float64() -> None:
    with torch.no_grad(), Float64():
        assert torch.equal(X.float(), X)
        assert torch.equal(torch.arange(3) / 3, torch.tensor([0 / 3, 1 / 3, 2 / 3]))
        assert torch.tensor(0.1).item() == 0.1
        assert torch.equal(torch.exp(LOW), torch.exp(LOW.double()))


def test_complex_becomes_complex128() -> None:
    with torch.no_grad(), Float64():
        assert torch.zeros(2, dtype=torch.complex64).dtype == torch.complex128
        assert (torch.ones(2, dtype=torch.complex64) * X[0, :2]).dtype == torch.complex128


def test_integers_and_bools_stay() -> None:
    with torch.no_grad(), Float64():
        assert torch.arange(3).dtype == torch.int64
        assert (X > 0).dtype == torch.bool
        assert X.to(torch.int32).dtype == torch.int32


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.mul_(2.0),
        lambda t: t.add_(X[0]),
        lambda t: t.fill_(2.0),
        lambda t: t.__setitem__(0, 3.5),
        lambda t: t.__setitem__(torch.tensor([1]), X[0, :1].to(t.dtype)),
        lambda t: torch.add(X[0], 1.0, out=t),
        lambda t: t[1:].zero_(),
        lambda t: t.copy_(X[0]),
    ],
)
def test_a_destination_stays_itself(write: Callable[[Tensor], object]) -> None:
    expected, found = LOW.clone(), LOW.clone()
    write(expected)
    place = found.data_ptr()
    with torch.no_grad(), Float64():
        write(found)
    assert found.dtype == torch.float32
    assert found.data_ptr() == place
    assert not torch.equal(found, LOW)
    torch.testing.assert_close(found, expected)  # an operand may be rounded before it is added, not after


def test_a_matrix_destination_is_followed() -> None:
    found = torch.zeros(3, 4)
    with torch.no_grad(), Float64():
        found.addmm_(X[:, :2], X[:2])  # refuses mixed dtypes
    assert torch.allclose(found.double(), X[:, :2] @ X[:2])


def test_a_float64_destination_takes_float32() -> None:
    found = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad(), Float64():
        found[torch.tensor([1, 2])] = LOW[:2]  # index_put refuses mixed dtypes
    assert torch.equal(found[1:3], LOW[:2].double())


def test_views_share_memory_and_bits() -> None:
    low = LOW.clone()
    with torch.no_grad(), Float64():
        assert low[1:].data_ptr() == low.data_ptr() + low.element_size()
        assert torch.equal(low.view(torch.int32).view(torch.float32), LOW)


def test_default_dtype_is_restored_even_after_an_error() -> None:
    before = torch.get_default_dtype()
    with pytest.raises(RuntimeError, match="shapes"), Float64(), Float64():
        X @ X
    assert torch.get_default_dtype() == before


class Casts(nn.Module):
    """Operations in which a model in float64 would still round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (3, 1), padding=(1, 0))
        self.mean = torch.tensor([0.4488, 0.4371, 0.4040])  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv((x - self.mean.view(1, 3, 1, 1)).float()).to(torch.bfloat16)
        box = torch.full((1, 1, 1, 3), 1 / 3, dtype=torch.float32).expand(4, 1, 1, 3)
        return F.conv2d(y.float(), box, groups=4)


def test_a_doubled_model_is_exact() -> None:
    model = Casts().eval()
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    twin = double(model)
    with torch.no_grad(), Float64():
        found = twin(x.double())
    convolved = F.conv2d(
        x.double() - model.mean.double().view(1, 3, 1, 1),
        model.conv.weight.detach().double(),
        model.conv.bias.detach().double(),
        padding=(1, 0),
    )
    expected = F.conv2d(convolved, torch.full((4, 1, 1, 3), 1 / 3, dtype=torch.float64), groups=4)
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-14


def test_double_copies_and_keeps_the_rest() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2).half())
    model[0].register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    model[1].tied = model[1].weight
    twin = double(model)
    assert {name: t.dtype for name, t in twin.state_dict().items()} == {
        "0.weight": torch.float64,
        "0.bias": torch.float64,
        "0.running_mean": torch.float64,
        "0.running_var": torch.float64,
        "0.num_batches_tracked": torch.int64,
        "0.phase": torch.complex128,
        "1.weight": torch.float64,
        "1.bias": torch.float64,
        "1.tied": torch.float64,
    }
    assert twin[1].tied is twin[1].weight
    assert model[1].weight.dtype == torch.float16
    assert model[0].phase.dtype == torch.complex64


class Pair(NamedTuple):
    left: Tensor
    right: object


@dataclasses.dataclass(frozen=True)
class Result:
    logits: Tensor
    extra: object = None


class Output(collections.OrderedDict[str, object]):
    """Keys are attributes too, as in the outputs of transformers."""

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


def test_as_float64_keeps_containers_and_what_is_not_floating() -> None:
    low, whole, phase = torch.ones(2), torch.arange(2), torch.ones(2, dtype=torch.complex64)
    tree = {"a": [low, (whole, "text", None)], "b": Pair(low.half(), 3), "c": Result(low.bfloat16(), {"phase": phase})}
    found = as_float64(tree)
    assert found["a"][0].dtype == torch.float64
    assert found["a"][1][0] is whole
    assert found["a"][1][1:] == ("text", None)
    assert isinstance(found["b"], Pair)
    assert found["b"].left.dtype == torch.float64
    assert isinstance(found["c"], Result)
    assert found["c"].logits.dtype == torch.float64
    assert found["c"].extra["phase"].dtype == torch.complex128
    assert tree["a"][0] is low
    assert tree["c"].logits.dtype == torch.bfloat16


def test_as_float64_keeps_mapping_subclasses_and_their_attributes() -> None:
    tree = Output(logits=torch.ones(2))
    found = as_float64(tree)
    assert isinstance(found, Output)
    assert found["logits"].dtype == torch.float64
    assert found.logits.dtype == torch.float64
    assert tree.logits.dtype == torch.float32


def test_as_float64_takes_what_torch_returns() -> None:
    found = as_float64(torch.max(torch.ones(2, 3), dim=1))
    assert found.values.dtype == torch.float64
    assert found.indices.dtype == torch.int64


def test_paths_lead_to_the_tensors() -> None:
    out = {"logits": [torch.ones(1), torch.zeros(1)], "aux": Result(torch.ones(2), (torch.ones(3),)), "n": 3}
    found = tensors(out)
    assert [path for path, _ in found] == [
        "out['logits'][0]",
        "out['logits'][1]",
        "out['aux'].logits",
        "out['aux'].extra[0]",
    ]
    assert all(eval(path, {"out": out}) is tensor for path, tensor in found)
    assert ("out['n']", 3) in leaves(out)


def test_tensors_are_found_in_plain_objects_and_in_circles() -> None:
    class Cache:
        def __init__(self) -> None:
            self.keys = [torch.ones(1)]
            self.me = self

    assert [path for path, _ in tensors((Cache(),))] == ["out[0].keys[0]"]
    assert tensors(torch.ones(1))[0][0] == "out"
    assert tensors((1, "text", None, nn.Linear(1, 1))) == []
