"""What comes out is the user's own model: its class, methods, names, dtype and memory format."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture.float64 import double
from reparam.nn import RepVGGBlock
from tests.helpers import (
    EXACT,
    Block,
    bn,
    conv,
    converted,
    convs_ran,
    distance,
    image,
    norms_ran,
    plain_convs,
    seq,
    trained,
    trained_and_converted,
)
from tests.networks import Network, X, network


class _Defaulted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
        return self.bn(self.conv(x)) + x


def test_a_rewritten_forward_keeps_its_defaults() -> None:
    # timm vit_tiny_patch16_dinov3_qkvb
    x = torch.randn(2, 4, 8, 8)
    folded = trained_and_converted(_Defaulted(), x)
    assert norms_ran(folded, x) == 0
    torch.testing.assert_close(pickle.loads(pickle.dumps(folded))(x, mask=None), folded(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_stays_and_the_fold_is_as_near_to_the_truth(dtype: torch.dtype) -> None:
    """The fold is composed in float64 and rounded once, so it is about as near to the truth as the original."""
    model = trained(seq(RepVGGBlock(8, 8), RepVGGBlock(8, 8), conv(8, 8, 3), bn(8)))
    model = model.to(dtype)
    x = image(2, 8, 15, 12, dtype=dtype)
    folded = converted(model, x)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    with torch.no_grad():
        truth = double(model)(x.double())
        errors = [(m(x).double() - truth).abs().max().item() for m in (model, folded)]
    assert errors[1] <= (1.5 * errors[0] if dtype.itemsize == 2 else 3 * errors[0] + 1e-5)
    assert convs_ran(folded, x) == 3


def test_float32_constants_do_not_leak_into_float64() -> None:
    """1 / 9 in float32 is off by 1e-9: more than a float64 fold may be."""
    model = trained(
        Block(lambda m, x: m.bn(m.pool(x)) + m.conv(x), pool=nn.AvgPool2d(3, 1, 1), conv=conv(4, 4, 1), bn=bn())
    )
    x = image(2, 4, 9, 7)
    assert distance(model, converted(model, x), x) < 1e-14


def test_a_model_that_is_one_batch_norm() -> None:
    model = trained(bn())
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert distance(model, folded, x) < EXACT
    assert type(folded) is nn.BatchNorm2d


def test_tied_weights_stay_tied_where_nothing_folds() -> None:
    first, second = conv(4, 4, 3, padding=1), conv(4, 4, 3, padding=1)
    second.weight = first.weight
    model = trained(seq(first, nn.ReLU(), second, nn.ReLU(), conv(4, 4, 1), bn()))
    folded = converted(model, image(2, 4, 9, 7))
    assert folded[0].weight is folded[2].weight
    assert folded[0].weight is not model[0].weight


def test_a_convolution_without_a_norm_keeps_its_bias() -> None:
    model = trained(seq(conv(4, 4, 3, bias=True), nn.ReLU(), conv(4, 4, 3), bn(), nn.ReLU()))
    folded = converted(model, image(1, 4, 9, 7))
    assert torch.equal(folded[0].bias, model[0].bias)
    assert torch.equal(folded[0].weight, model[0].weight)


def test_a_returned_intermediate_stays() -> None:
    def forward(m: nn.Module, x: Tensor) -> dict[str, object]:
        y = m.conv(x)
        z = m.bn(y)
        return {"features": [y, z], "size": tuple(z.shape), "last": (F.relu(z),)}

    model = trained(Block(forward, conv=conv(4, 4, 3), bn=bn()))
    x = image(2, 4, 9, 7)
    assert distance(model, converted(model, x), x) < EXACT


def test_features_of_every_stage() -> None:
    def forward(m: nn.Module, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage in m.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    stages = nn.ModuleList(seq(RepVGGBlock(4, 4), conv(4, 4, 3, stride=2, padding=1), bn()) for _ in range(3))
    model = trained(Block(forward, stages=stages))
    x = image(2, 4, 17, 23)
    folded = converted(model, x)
    assert distance(model, folded, x) < EXACT
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (6, 0)


def test_it_is_the_user_s_own_model() -> None:
    model = network()
    folded = reparam.reparameterize(model, X)
    assert type(folded) is Network
    assert folded is not model
    assert not any(module.training for module in folded.modules())
    assert folded.num_features == 4
    assert folded.config == model.config
    assert folded.config is not model.config
    assert torch.equal(folded.predict(X), model.predict(X))
    assert torch.allclose(folded.forward_features(X), model.forward_features(X), rtol=1e-12, atol=1e-12)
    assert distance(model, folded, X, torch.rand(4, dtype=torch.float64)) < EXACT
    assert {"stem", "stem.0", "blocks.0", "blocks.1", "head", "norm"} <= {name for name, _ in folded.named_modules()}
    assert isinstance(folded.blocks, nn.ModuleList)
    assert isinstance(folded.stem[0], nn.Conv2d)
    assert [type(layer) for layer in plain_convs(folded)].count(nn.Conv2d) == 3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (64, 33)])
def test_it_computes_the_same_at_every_size(size: tuple[int, int]) -> None:
    model = network()
    assert distance(model, reparam.reparameterize(model, X), image(3, 3, *size)) < EXACT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_device_and_format(dtype: torch.dtype) -> None:
    model = network(dtype).to(memory_format=torch.channels_last)
    folded = reparam.reparameterize(model, X.to(dtype))
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert {p.device for p in folded.parameters()} == {torch.device("cpu")}
    convs = [m for m in plain_convs(folded) if isinstance(m, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    assert not any(conv.weight.is_contiguous() for conv in convs)


def test_contiguous_weights_stay_contiguous() -> None:
    folded = reparam.reparameterize(network(), X)
    assert all(layer.weight.is_contiguous() for layer in plain_convs(folded))


def test_new_weights_are_not_trained() -> None:
    folded = reparam.reparameterize(network(), X)
    assert not any(p.requires_grad for layer in plain_convs(folded)[:-1] for p in layer.parameters())


def roundtrips() -> dict[str, Callable[[nn.Module], nn.Module]]:
    def saved(model: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        result: nn.Module = torch.load(file, weights_only=False)
        return result

    def reloaded(model: nn.Module) -> nn.Module:
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            nn.init.zeros_(parameter)
        twin.load_state_dict(model.state_dict(), strict=True)
        return twin

    return {
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "torch.save": saved,
        "deepcopy": copy.deepcopy,
        "state_dict": reloaded,
        "twice": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
    }


@pytest.mark.parametrize("how", roundtrips())
def test_it_is_copied_and_stored(how: str) -> None:
    folded = reparam.reparameterize(network(), X)
    again = roundtrips()[how](folded)
    assert type(again) is Network
    assert torch.equal(again(X), folded(X))
    assert [(n, type(m).__name__) for n, m in again.named_modules()] == [
        (n, type(m).__name__) for n, m in folded.named_modules()
    ]
    assert isinstance(again.blocks[0], type(folded.blocks[0]).__mro__[1])


def test_a_copy_is_independent() -> None:
    folded = reparam.reparameterize(network(), X)
    before = folded(X)
    for parameter in copy.deepcopy(folded).parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(folded(X), before)


def test_it_exports() -> None:
    folded = reparam.reparameterize(network(), X)
    exported = torch.export.export(folded, (X,)).module()
    assert torch.allclose(exported(X), folded(X), rtol=1e-12, atol=1e-12)


def test_it_is_traced_as_before() -> None:
    folded = reparam.reparameterize(network(), X)
    traced = torch.fx.symbolic_trace(folded, concrete_args={"scale": None})
    assert torch.allclose(traced(X), folded(X))


def test_the_code_of_a_rewritten_block_is_readable() -> None:
    block = reparam.reparameterize(network(), X).blocks[0]
    assert [name for name, _ in block.named_children()] == ["activation", "conv"]
    lines = [line.strip().partition(";")[0] for line in block.code.strip().splitlines()]
    assert lines == [
        "def forward(self, x):",
        "conv = self.conv(x)",
        "activation = self.activation(conv)",
        "return activation",
    ]
