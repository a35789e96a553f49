"""Convolutions of one tensor that one wider convolution computes. Truth is the original in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.plan import cost, horizontal
from reparam.plan.plan import plan
from tests.helpers import EXACT, Block, convs_ran, distance, fold_exactly, image, norms_ran, same_conv, trained
from tests.plan.test_plan import CHANNELS, STEPS, Network, Step


def merged(model: nn.Module, *others: Tensor, like: Tensor, **options: Any) -> nn.Module:
    """The model converted: equal on the example and on others; a second conversion finds nothing."""
    folded = fold_exactly(model, like, *others, **options)
    assert not reparam.reparameterize(folded, like, **options).reparam_report.folds
    return folded


def together(folded: nn.Module) -> list[tuple[str, ...]]:
    """The modules of each fusion."""
    return sorted({line.merged for line in folded.reparam_report.folds if line.merged})


def two(m: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([torch.relu(m.a(x)), torch.sigmoid(m.b(x))], 1)


def tokens(m: nn.Module, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))


class Heads(nn.Module):
    """Attention as it is written out, with views that cut the channels of each projection into heads."""

    def __init__(self, channels: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(channels), heads
        self.q, self.k, self.v = nn.Linear(channels, channels), nn.Linear(channels, channels, False), nn.Linear(12, 12)
        self.out = nn.Linear(channels, channels)

    def cut(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = F.scaled_dot_product_attention(self.cut(self.q(y)), self.cut(self.k(y)), self.cut(self.v(y)))
        return x + self.out(z.transpose(1, 2).reshape(*x.shape))


X, ODD, LARGER = image(2, 4, 5, 7), image(1, 4, 3, 1), image(3, 4, 8, 6)


def reader(out: int = 4, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return same_conv(4, out, kernel, **options)


def stem(out: int = 4) -> nn.Sequential:
    return nn.Sequential(reader(out, bias=False), nn.BatchNorm2d(out))


# --- what is merged


@pytest.mark.parametrize("kernel", [1, 3])
def test_two_convolutions_become_one(kernel: int) -> None:
    model = trained(Block(two, a=reader(3, kernel), b=reader(5, kernel, bias=False)))
    folded = merged(model, ODD, LARGER, like=X)
    assert convs_ran(folded, X) == 1
    assert together(folded) == [("a", "b")]
    assert [line.after.partition(",")[2] for line in folded.reparam_report.folds] == [
        " channels 0-2, fused with b",
        " channels 3-7, fused with a",
    ]
    assert (folded.reparam_report.before.convs, folded.reparam_report.after.convs) == (2, 1)
    assert folded.reparam_origin.keys["a.bias"] == ("conv.weight", "conv.bias")
    assert folded.reparam_origin.keys["b.weight"] == ("conv.weight", "conv.bias")
    assert not any(module.training for module in folded.modules())


def test_folds_are_fused_with_one_another_and_with_untouched_layers() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(m.a(x)) + torch.sigmoid(m.b(x)) * torch.tanh(m.c(x) + x)

    model = trained(Block(forward, a=stem(), b=reader(), c=stem()))
    folded = merged(model, ODD, LARGER, like=X)
    assert (convs_ran(folded, X), norms_ran(folded, X)) == (1, 0)


def test_linear_layers_along_the_last_dimension() -> None:
    x = image(2, 7, 12)
    model = trained(Block(tokens, q=nn.Linear(12, 6), k=nn.Linear(12, 6, bias=False), v=nn.Linear(12, 9)))
    assert convs_ran(merged(model, image(1, 1, 12), image(3, 4, 12), like=x), x) == 1
    vector = image(2, 5)
    pair = trained(Block(two, a=nn.Linear(5, 3), b=nn.Linear(5, 2)))
    assert convs_ran(merged(pair, image(1, 5), image(7, 5), like=vector), vector) == 1


def test_the_fused_layer_takes_the_norm_in_front() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return tokens(m, m.norm(x))

    x = image(2, 7, 12)
    parts = {name: nn.Linear(12, 12) for name in "qkv"}
    model = trained(Block(forward, norm=nn.LayerNorm(12), **parts))
    folded = merged(model, image(1, 1, 12), image(3, 4, 12), like=x)
    assert convs_ran(folded, x) == 1
    assert folded.norm.weight is None


def test_views_into_heads_read_their_part() -> None:
    x = image(2, 5, 12)
    model = trained(nn.Sequential(Heads(), Heads()), x)
    folded = merged(model, image(1, 12, 12), image(4, 3, 12), like=x)
    assert together(folded) == [("0.q", "0.k", "0.v"), ("1.q", "1.k", "1.v")]
    assert convs_ran(folded, x) == 4


def test_a_block_that_is_called_twice_is_fused_in_both_calls() -> None:
    inner = Block(two, a=reader(2, 3), b=reader(2, 3))
    model = trained(Block(lambda m, x: m.inner(torch.relu(m.inner(x))), inner=inner))
    folded = merged(model, ODD, LARGER, like=X)
    assert convs_ran(folded, X) == 2
    assert sum(parameter.numel() for parameter in folded.parameters()) == 4 * 4 * 9 + 4


def test_gradients_of_the_input_are_the_same() -> None:
    model = trained(Block(two, a=reader(), b=reader()))
    folded = merged(model, like=X)
    found = []
    for each in (model, folded):
        x = X.clone().requires_grad_()
        each(x).square().sum().backward()
        found.append(x.grad)
    assert torch.allclose(*found, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_memory_formats(dtype: torch.dtype) -> None:
    model = trained(Block(two, a=reader(), b=reader()), dtype=dtype).to(memory_format=torch.channels_last)
    x = X.to(dtype, memory_format=torch.channels_last)
    folded = reparam.reparameterize(model, x)
    assert convs_ran(folded, x) == 1
    assert folded(x).dtype == dtype
    assert folded(x).is_contiguous(memory_format=torch.channels_last)


# --- what is left alone: networks, how they are converted, and how many convolutions run then


def _in_place(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x).relu_() + torch.sigmoid(m.b(x))


def _in_place_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 0].mul_(2)
    return torch.relu(y) + torch.sigmoid(m.b(x))


def _in_place_behind_a_reshape(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    z = y.reshape(y.shape[0], -1)
    z += 1
    return torch.relu(y).flatten(1) + torch.sigmoid(m.b(x)).flatten(1) + z


def _returned(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.a(x), torch.sigmoid(m.b(x))


def _viewed_whole(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.a(x).view(len(x), -1)) + torch.sigmoid(m.b(x)).flatten(1)


def _viewed_with_the_batch(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.a(x).view(-1, *x.shape[2:])) + torch.sigmoid(m.b(x)).flatten(0, 1)


def _viewed_later(m: nn.Module, x: Tensor) -> Tensor:
    return (m.a(x) * 2).view(len(x), -1) + torch.sigmoid(m.b(x)).flatten(1)


def _overwritten_between(m: nn.Module, x: Tensor) -> Tensor:
    x = torch.tanh(x)
    y = torch.relu(m.a(x))
    x.mul_(2)
    return y + torch.sigmoid(m.b(x))


def _overwritten_at_some_sizes(m: nn.Module, x: Tensor) -> Tensor:
    x = torch.tanh(x)
    y, turned = torch.relu(m.a(x)), x.transpose(2, 3).flatten(2)
    turned += 1
    return y + torch.sigmoid(m.b(x)) + turned.mean()


def _read_elsewhere(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.a(x)) + torch.sigmoid(m.b(x)) + m.b.weight.sum()


def _one_call_of_two(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(m.a(x)) + torch.sigmoid(m.b(x))
    return torch.relu(m.a(y)) + m.a(y.square()) + y


def _branching(m: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 1e9:
        return x
    return torch.relu(m.a(x)) + torch.sigmoid(m.b(x))


LEFT: dict[str, Callable[..., Any]] = {
    "a write into one": _in_place,
    "a write into one through a view": _in_place_through_a_view,
    "a write into what is a view of one at some sizes": _in_place_behind_a_reshape,
    "one is returned": _returned,
    "a view of the whole of one": _viewed_whole,
    "a view that joins the batch with channels": _viewed_with_the_batch,
    "a view of what is computed from one": _viewed_later,
    "the input is written to between the two": _overwritten_between,
    "the input is written to between the two at some sizes": _overwritten_at_some_sizes,
    "others read the weight": _read_elsewhere,
    "one has more calls": _one_call_of_two,
    "a forward that goes other ways": _branching,
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_that_cannot_share_an_output_stay_apart(name: str, batch: int) -> None:
    model = trained(Block(LEFT[name], a=reader(), b=reader()))
    x = image(batch, 4, 5, 7)
    folded = merged(model, LARGER, ODD, like=x)
    assert not together(folded)
    assert convs_ran(folded, x) == convs_ran(model, x)


GEOMETRY: dict[str, tuple[nn.Module, nn.Module]] = {
    "kernels": (reader(kernel=1), reader(kernel=3)),
    "dilations": (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
    "what pads": (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "transposed ones": (nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 4, 2, 2)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_layers_of_other_geometry_stay_apart(name: str) -> None:
    a, b = GEOMETRY[name]
    model = trained(Block(lambda m, x: torch.relu(m.a(x)) + torch.sigmoid(m.b(x)), a=a, b=b))
    assert not together(merged(model, LARGER, like=X))


def test_large_images_are_not_fused() -> None:
    model = trained(Block(two, a=reader(64, 3), b=reader(64, 3)))
    assert together(merged(model, like=X))
    assert not together(merged(model, like=image(1, 4, 96, 96)))


def test_fusing_does_not_pay_where_parts_must_be_copied() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y, z = m.a(x), m.b(x)
        return torch.relu(m.c(y)) + torch.tanh(m.d(y)) + torch.relu(m.c(z)) + torch.tanh(m.d(z))

    model = trained(Block(forward, a=reader(), b=reader(), c=reader(4, 3), d=reader(4, 3)))
    parts = {line.merged for line in merged(model, LARGER, like=image(2, 4, 9, 9)).reparam_report.folds}
    assert ("a", "b") not in parts


def test_keep_and_hooks() -> None:
    model = trained(Block(two, a=stem(), b=stem()))
    for keep in ("a", "a.0"):
        folded = merged(model, LARGER, like=X, keep=[keep])
        assert not together(folded)
        assert folded.get_submodule(keep)(X).shape == X.shape
    seen: list[Tensor] = []
    model.b.register_forward_hook(lambda module, args, result: seen.append(result))
    folded = reparam.reparameterize(model, X)
    assert not together(folded)
    seen.clear()
    folded(X)
    assert len(seen) == 1


def test_a_layer_whose_weight_is_read_elsewhere_stays_apart() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return tokens(m, x) * m.v.weight.sum()

    x = image(2, 7, 12)
    model = trained(Block(forward, **{name: nn.Linear(12, 12) for name in "qkv"}))
    assert together(merged(model, image(1, 3, 12), like=x)) == [("q", "k")]


def test_a_view_with_a_literal_number_of_tokens_stays() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 3, 2, 6) for layer in (m.q, m.k, m.v))
        return F.scaled_dot_product_attention(q, k, v)

    model = trained(Block(forward, **{name: nn.Linear(12, 12) for name in "qkv"}))
    folded = merged(model, image(1, 6, 12), image(2, 9, 12), like=image(2, 3, 12))
    assert not together(folded)


def test_folds_stay_where_fusing_cannot_be_written() -> None:
    """A fusion that cannot be written is given up, and every fold stays."""
    model = trained(Block(_branching, a=stem(), b=stem()))
    folded = merged(model, LARGER, ODD, like=X)
    assert not together(folded)
    assert norms_ran(folded, X) == norms_ran(merged(trained(Block(two, a=stem(), b=stem())), like=X), X)


# --- what else has to hold


def test_fused_models_can_be_saved_undone_and_exported(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Heads().eval()

    x = image(2, 5, 12)
    model = trained(make(), x)
    folded = merged(model, like=x)
    assert together(folded)
    reparam.save(folded, tmp_path / "net.safetensors")
    loaded = reparam.load(tmp_path / "net.safetensors", make().double())
    assert distance(folded, loaded, image(1, 4, 12)) == 0
    back = reparam.undo(folded, model.state_dict())
    assert distance(model, back, x) == 0
    program = torch.export.export(folded, (x,)).module()
    assert torch.equal(program(x), folded(x))


@pytest.mark.zoo
def test_keys_and_values_of_a_class_token() -> None:
    attention = pytest.importorskip("timm.models.cait").ClassAttn(48, num_heads=4, qkv_bias=True)
    model, x = trained(attention, image(2, 10, 48)), image(2, 10, 48)
    assert together(merged(model, image(1, 5, 48), like=x)) == [("k", "v")]


class Plain(nn.Module):
    """Linear layers of one tensor; each output is read by an activation as it is, or copied."""

    def __init__(self, widths: list[int], copied: list[bool]) -> None:
        super().__init__()
        self.layers, self.copied = nn.ModuleList(nn.Linear(8, width) for width in widths), copied

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.tanh(x)
        read = (layer(x) for layer in self.layers)
        return [torch.cumsum(y, 1) if copy else torch.relu(y) for y, copy in zip(read, self.copied, strict=True)]


@cache
def price_of_linear(width: int, length: int) -> float:
    """What a linear layer of 8 channels costs on rows of `length` tokens, in microseconds."""
    alone = record(nn.Linear(8, width).eval(), Inputs.of(image(2, length, 8, dtype=torch.float32)))
    return cost.of_node(cost.CPU, alone.outputs[0]).time


LAYERS = st.lists(st.tuples(st.sampled_from([1, 8, 500, 4000]), st.booleans()), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(LAYERS, st.sampled_from([1, 3, 40]))
def test_no_set_of_parts_saves_more(layers: list[tuple[int, bool]], length: int) -> None:
    model = Plain([width for width, _ in layers], [copied for _, copied in layers]).eval()
    recorded = record(model, Inputs.of(image(2, length, 8, dtype=torch.float32)))
    planned = plan(recorded)
    better = horizontal.fused(recorded, planned, cost.CPU, ())
    saved = cost.FREE if better is None else planned.after - better.after

    def gain(some: tuple[tuple[int, bool], ...]) -> float:
        """In microseconds, from scratch."""
        alone = sum(price_of_linear(width, length) for width, _ in some)
        copies = sum(cost.of_copy(cost.CPU, 2 * length * width).time for width, copied in some if copied)
        one = price_of_linear(sum(width for width, _ in some), length) + cost.CPU.view * (1 + len(some)) + copies
        return alone - one if one <= 0.75 * alone else 0.0

    sets = [some for count in range(2, len(layers) + 1) for some in combinations(layers, count)]
    assert saved.time == pytest.approx(max(map(gain, sets)), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STEPS, min_size=2, max_size=9),
    st.lists(st.integers(0, 8), min_size=1, max_size=4),
    st.sampled_from([1, 5, 9]),
)
def test_random_networks_stay_exact(steps: list[Step], sinks: list[int], size: int) -> None:
    model, x = trained(Network(steps, sinks)), image(2, CHANNELS, size, size + 2)
    folded = reparam.reparameterize(model, x, verify=False)
    for each in (x, image(1, CHANNELS, size + 3, size)):
        assert distance(model, folded, each) < EXACT
    assert not reparam.reparameterize(folded, x, verify=False).reparam_report.folds


@pytest.mark.parametrize("asked", [lambda y: y.stride()[0], lambda y: y.transpose(1, 2).stride(0)])
def test_a_tensor_that_is_asked_for_its_strides_stays_apart(asked: Callable[[Tensor], int]) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.one(x)
        return y * asked(y) + m.two(x).relu()

    x = image(2, 4, 3, 5)
    merged(trained(Block(forward, one=nn.Conv2d(4, 4, 1), two=nn.Conv2d(4, 4, 1))), like=x)
