"""The edits made: what stands where afterwards, under which name, with which code and which numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.rewrite.apply import Emitted
from reparam.rewrite.weights import run_refills
from tests.helpers import EXACT, Block, bn, conv, distance, image, seq, summed
from tests.rewrite.lowered import Lowered, lowered

X = image(2, 4, 9, 7)


def emitted(model: nn.Module, x: Tensor = X, **options: Any) -> tuple[Lowered, Emitted]:
    """The model with its edits made, which computes what it did."""
    result = lowered(model, x)
    assert not result.edits.constraints
    truth = result.model(x)
    made = result.emit(**options)
    if not options.get("later"):
        difference = (made.model(x) - truth).abs().max() if isinstance(truth, Tensor) else 0
        assert difference <= EXACT * (truth.abs().max() if isinstance(truth, Tensor) else 1)
    return result, made


def code(module: nn.Module) -> list[str]:
    """The lines of a new forward, without the statements that free what has been read."""
    return [line.strip().partition(";")[0] for line in module.code.strip().splitlines()]


# --- modules that are exchanged


def test_a_module_is_exchanged_wherever_it_is_held() -> None:
    model = seq(conv(4, 4, 3), bn(), nn.ReLU())
    model.same, model.norm = model[0], model[1]  # names without calls
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    _, made = emitted(model)
    assert made.model is model
    assert type(model[0]) is nn.Conv2d
    assert model[0].bias is not None
    assert model.same is model[0]
    assert type(model[1]) is nn.Identity
    assert model.norm is model[1]


def test_a_root_that_is_one_layer_is_another_object() -> None:
    model = Block(lambda m, x: F.conv2d(x, m.a, padding=1) + F.conv2d(x, m.b), **{
        name: nn.Parameter(torch.randn(4, 4, taps, taps)) for name, taps in (("a", 3), ("b", 1))
    })  # fmt: skip
    result, made = emitted(model)
    assert type(made.model) is nn.Conv2d
    assert made.model is not result.model
    assert list(made.names.values()) == [""]


def test_a_norm_loses_its_weights() -> None:
    model = seq(nn.LayerNorm(7), nn.Linear(7, 5))
    _, made = emitted(model)
    assert model[0].weight is None
    assert model[0].bias is None
    assert sorted(made.exact) == ["1.bias", "1.weight"]


# --- forwards that are rewritten


def test_the_code_of_branches() -> None:
    model = summed(seq(conv(4, 4, 3, padding=1), bn()), conv(4, 4, 1))
    _, made = emitted(model)
    assert code(model) == [
        "def forward(self, x):",
        "conv = self.conv(x)",
        "relu = torch.nn.functional.relu(conv, inplace = False)",
        "return relu",
    ]
    assert [name for name, _ in model.named_children()] == ["conv"]
    assert type(model).__name__ == "Block"
    assert list(made.names.values()) == ["conv"]


def test_the_code_of_fused_convolutions() -> None:
    model = Block(lambda m, x: (m.a(x).relu(), m.b(x).tanh()), a=conv(4, 4, 1), b=conv(4, 3, 1))
    result, made = emitted(model)
    assert code(model) == [
        "def forward(self, x):",
        "conv = self.conv(x)",
        "split = conv.split([4, 3], 1)",
        "getitem = split[0]",
        "getitem_1 = split[1]",
        "relu = getitem.relu()",
        "tanh = getitem_1.tanh()",
        "return (relu, tanh)",
    ]
    assert set(made.names.values()) == {"conv"}
    assert len(made.names) == len(result.plan.folds) == 2


def test_an_operation_that_is_absorbed_leaves_its_code() -> None:
    model = seq(conv(4, 4, 3), Block(lambda m, x: (x * m.gain).relu(), gain=nn.Parameter(torch.rand(4, 1, 1))))
    emitted(model)
    assert code(model[1]) == ["def forward(self, x):", "relu = x.relu()", "return relu"]
    assert not list(model[1].parameters())


def test_the_size_of_a_removed_tensor_is_read_of_one_that_is_as_large() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x) + m.b(x)
        return m.norm(y).relu() * y.shape[2]

    model = Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1), norm=bn())
    emitted(model)
    assert code(model) == [
        "def forward(self, x):",
        "conv = self.conv(x)",
        "relu = conv.relu()",
        "size = conv.size(2)",
        "mul = relu * size",
        "return mul",
    ]


def test_a_name_that_is_taken_is_not_used_again() -> None:
    model = Block(lambda m, x: (m.a(x) + m.b(x)).relu() + m.conv(x.tanh()), a=conv(4, 4, 1), b=conv(4, 4, 1), conv=bn())
    emitted(model)
    names = dict(model.named_children())
    assert type(names["conv"]) is nn.BatchNorm2d
    assert [type(module) for name, module in names.items() if name != "conv"] == [nn.Conv2d]


def test_a_pinned_identity_is_still_called() -> None:
    model = summed(seq(conv(4, 4, 3, padding=1), bn()), seq(conv(4, 4, 1), bn()))
    model.tap, plain = nn.Identity(), model.function
    model.function = lambda m, x: plain(m, m.tap(x))
    kept = lowered(model, X, pinned=[model.tap])
    kept.emit()
    assert code(model)[1] == "tap = self.tap(x)"


# --- numbers


def test_exact_weights_are_those_that_were_rounded() -> None:
    made = lowered(seq(conv(4, 4, 3), bn(), nn.ReLU()), X.float()).emit()
    weights = dict(made.model.named_parameters())
    assert sorted(made.exact) == sorted(weights) == ["0.bias", "0.weight"]
    for name, exact in made.exact.items():
        assert exact.dtype == torch.float64
        assert torch.equal(exact.to(weights[name].dtype), weights[name])
    assert not emitted(seq(conv(4, 4, 3), bn(), nn.ReLU()), exact=False)[1].exact


def test_every_fold_is_looked_at_once_while_its_kernel_is_in_memory() -> None:
    model = seq(conv(4, 4, 3), bn(), nn.ReLU(), conv(4, 4, 1), bn(), nn.GELU())
    seen: list[tuple[Any, bool]] = []
    result, _ = emitted(model, look=lambda fold: seen.append((fold, fold.value.kernel() is fold.value.kernel())))
    assert seen == [(fold, True) for fold in result.plan.folds]


def test_refilled_layers_get_the_same_numbers() -> None:
    def model() -> nn.Module:
        torch.manual_seed(3)
        return seq(conv(4, 4, 3), bn(), nn.ReLU(), summed(conv(4, 4, 1), conv(4, 4, 3, padding=1)))

    _, now = emitted(model())
    _, later = emitted(model(), later=True)
    empty = [name for name, parameter in later.model.named_parameters() if parameter.is_meta]
    assert sorted(empty) == ["0.bias", "0.weight", "3.conv.weight"]
    assert not now.refills
    run_refills(later.refills)
    assert not later.refills
    assert distance(now.model, later.model, X) == 0
    assert all(torch.equal(a, b) for a, b in zip(now.model.parameters(), later.model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights_have_the_dtype_and_format_of_the_old(dtype: torch.dtype) -> None:
    model = seq(conv(4, 6, 3), bn(6), nn.ReLU())
    result = lowered(model, X)
    model.to(dtype, memory_format=torch.channels_last)
    weight = result.emit().model[0].weight
    assert weight.dtype == dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.requires_grad
