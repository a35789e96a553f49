"""Normalisations in two halves: what reads one takes its scale and shift, or everything stays as it is."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.zoo.models import build, example_input
from reparam import reparameterize
from tests.helpers import EXACT, Block, convs_ran, distance, image, report_of


def perturbed(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model in eval, with a number of its own in every place of every parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.to(dtype).parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(dtype), alpha=0.4)
    return model.eval()


def with_weights(model: nn.Module) -> list[str]:
    """The normalisations that have a weight or a bias."""
    kinds = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and any(True for _ in m.parameters())]


def split(model: nn.Module, *inputs: Tensor, others: tuple[Tensor, ...] = ()) -> nn.Module:
    """The converted model: no norm has weights, it computes the same, and it runs no more layers."""
    folded = reparameterize(model, inputs)
    assert with_weights(model)
    assert not with_weights(folded)
    assert distance(model, folded, *inputs) < EXACT
    for other in others:
        assert distance(model, folded, other) < EXACT
    assert convs_ran(folded, *inputs) <= convs_ran(model, *inputs)
    assert not report_of(reparameterize(folded, inputs)).folds
    return folded


def kept(model: nn.Module, *inputs: Tensor, **options: Any) -> nn.Module:
    """The converted model: its norms are as they were."""
    folded = reparameterize(model, inputs, **options)
    assert with_weights(folded) == with_weights(model)
    assert distance(model, folded, *inputs) < EXACT
    return folded


def reasons(model: nn.Module) -> str:
    return "\n".join(map(str, report_of(model).refusals))


# --- what takes them

CHAINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)), (3, 7, 8)),
    "two dimensions": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)), (3, 8)),
    "four dimensions": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)), (1, 3, 5, 8)),
    "another eps": (lambda: nn.Sequential(nn.LayerNorm(8, eps=0.3), nn.Linear(8, 5)), (3, 7, 8)),
    "no shift": (lambda: nn.Sequential(nn.LayerNorm(8, bias=False), nn.Linear(8, 5, bias=False)), (3, 7, 8)),
    "rms norm": (lambda: nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 5, bias=False)), (3, 7, 8)),
    "group norm, 1x1": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 5, 1)), (2, 8, 5, 3)),
    "group norm, 3x3": (lambda: nn.Sequential(nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 3, 2, groups=2)), (2, 8, 7, 5)),
    "group norm, vectors": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Linear(8, 5)), (3, 8)),
    "instance norm, 1d": (lambda: nn.Sequential(nn.InstanceNorm1d(8, affine=True), nn.Conv1d(8, 5, 2)), (2, 8, 5)),
    "instance norm, 2d": (lambda: nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 5, 1)), (2, 8, 5, 3)),
    "instance norm, 3d": (
        lambda: nn.Sequential(nn.InstanceNorm3d(8, affine=True), nn.Conv3d(8, 5, 1)),
        (2, 8, 5, 3, 4),
    ),
    "dropout between": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 5)), (3, 7, 8)),
    "transposed": (
        lambda: nn.Sequential(nn.LayerNorm(8), Block(lambda m, x: x.transpose(1, 2)), nn.Conv1d(8, 5, 1)),
        (3, 7, 8),
    ),
    "class token": (lambda: picked(lambda x: x[:, 0]), (3, 7, 8)),
    "last token": (lambda: picked(lambda x: x[:, -1, None]), (3, 7, 8)),
    "mean of the other tokens": (lambda: picked(lambda x: x[:, 1:].mean(1)), (3, 7, 8)),
    "some tokens": (lambda: picked(lambda x: x[:, 1:6:2]), (3, 7, 8)),
    "pixels by their number": (lambda: picked(lambda x: x[:, 2, ..., :3, :]), (3, 4, 1, 5, 8)),
    "downsampling": (
        lambda: nn.Sequential(nn.LayerNorm(8), Block(lambda m, x: x.permute(0, 3, 1, 2)), nn.Conv2d(8, 5, 2, 2)),
        (2, 5, 4, 8),
    ),
}


def picked(part: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(8), Block(lambda m, x: part(x)), nn.Linear(8, 5))


@pytest.mark.parametrize("name", CHAINS)
def test_the_layer_behind_takes_scale_and_shift(name: str) -> None:
    make, shape = CHAINS[name]
    model, x = perturbed(make()), image(*shape)
    folded = split(model, x)
    assert type(folded[0]) is type(model[0])  # type: ignore[index]
    assert folded[0].eps == model[0].eps  # type: ignore[index]
    assert convs_ran(folded, x) == 1


def test_a_scale_without_shift_passes_zero_padding() -> None:
    model = nn.Sequential(nn.GroupNorm(2, 8, bias=False), nn.Conv2d(8, 6, 3, padding=1))
    split(perturbed(model), image(2, 8, 5, 3))


def test_a_shift_does_not_pass_zero_padding() -> None:
    folded = kept(perturbed(nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3, padding=1))), image(2, 8, 5, 3))
    assert not report_of(folded).folds
    assert "the padding holds another value than the bias" in reasons(folded)


def test_a_shift_does_not_pass_zero_padding_behind_a_permutation() -> None:
    """A permutation between changes nothing; without a shift it folds."""
    folded = kept(perturbed(nn.Sequential(ChannelsFirst(8), nn.Conv2d(8, 5, 3, padding=1))), image(2, 8, 5, 4))
    assert "the padding holds another value than the bias" in reasons(folded)
    split(perturbed(nn.Sequential(ChannelsFirst(8, bias=False), nn.Conv2d(8, 5, 3, padding=1))), image(2, 8, 5, 4))


def test_two_readers_of_tokens() -> None:
    """One layer reads the class token, another the mean of the other tokens; both take scale and shift."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.a(y[:, 0]) * torch.sigmoid(m.b(y[:, 1:].mean(1)))

    model = perturbed(Block(forward, norm=nn.LayerNorm(8), a=nn.Linear(8, 5), b=nn.Linear(8, 5)))
    split(model, image(2, 7, 8), others=(image(3, 2, 8),))


def test_tokens_that_are_written_to_keep_the_norm() -> None:
    """The picked tokens are a view of the tensor that is overwritten."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        token = y[:, 0]
        y[:, 0, 3] = 2.0
        return m.linear(token) * y.sum(1)[:, :5]

    model = perturbed(Block(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 5)))
    kept(model, image(2, 7, 8))


def qkv(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    return x + F.scaled_dot_product_attention(m.q(y), m.k(y), m.v(y))


def heads(m: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = m.qkv(m.norm(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


def test_all_readers_take_scale_and_shift() -> None:
    model = Block(qkv, norm=nn.LayerNorm(8), q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))
    folded = split(perturbed(model), image(2, 7, 8), others=(image(3, 2, 8),))
    assert [line.before for line in report_of(folded).folds] == ["1 linear + 1 layer_norm's scale"] * 3
    assert report_of(folded).after.parameters == 3 * (64 + 8)


def test_attention_behind_reshape() -> None:
    model = Block(heads, norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24))
    split(perturbed(model), image(2, 7, 8), others=(image(3, 2, 8),))


class Transformer(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.attention = Block(heads, norm=norm(8), qkv=nn.Linear(8, 24))
        self.norm = norm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_transformer_block(norm: Callable[[int], nn.Module]) -> None:
    folded = split(perturbed(nn.Sequential(Transformer(norm), Transformer(norm))), image(2, 7, 8))
    assert type(folded[0]) is Transformer  # type: ignore[index]
    assert len(report_of(folded).folds) == 4
    counted = report_of(folded)
    assert (counted.before.elementwise, counted.before.norms) == (counted.after.elementwise, counted.after.norms)


def test_in_bfloat16() -> None:
    model = perturbed(nn.Sequential(Transformer(), nn.LayerNorm(8), nn.Linear(8, 8)), torch.bfloat16)
    folded = reparameterize(model, image(2, 7, 8, dtype=torch.bfloat16))
    assert not with_weights(folded)
    assert {each.dtype for each in folded.parameters()} == {torch.bfloat16}


# --- code of one's own


class OwnNorm(nn.LayerNorm):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Widened(nn.LayerNorm):
    """In float64 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return F.layer_norm(x.double(), self.normalized_shape, self.weight.double(), bias, self.eps).to(x.dtype)


class OnlyInName(nn.LayerNorm):
    """A subclass without a forward of its own."""


class ChannelsFirst(nn.LayerNorm):
    """Over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class PlusOne(nn.Module):
    """A norm whose weight is stored as its difference from 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight + 1, 1e-6)


OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "subclass": (lambda: nn.Sequential(OwnNorm(8), nn.Linear(8, 5)), (3, 7, 8)),
    "widened": (lambda: nn.Sequential(Widened(8), nn.Linear(8, 5)), (3, 7, 8)),
    "channels first": (lambda: nn.Sequential(ChannelsFirst(8), nn.Conv2d(8, 5, 1)), (2, 8, 5, 3)),
    "in a transformer": (lambda: Transformer(OwnNorm), (2, 7, 8)),
    "channels first, downsampling": (lambda: nn.Sequential(ChannelsFirst(8), nn.Conv2d(8, 5, 2, 2)), (2, 8, 5, 4)),
    "channels first, overlapping": (
        lambda: nn.Sequential(ChannelsFirst(8), nn.Conv2d(8, 6, 3, 2, groups=2)),
        (2, 8, 3, 6),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_subclass_with_a_forward_loses_its_parameters(name: str) -> None:
    make, shape = OWN[name]
    model, x = perturbed(make()), image(*shape)
    folded = split(model, x)
    assert [type(m).__name__ for m in folded.modules()] == [type(m).__name__ for m in model.modules()]
    assert "elementwise_affine=False" in repr(folded)


def test_a_subclass_without_code_is_not_rewritten() -> None:
    folded = split(perturbed(nn.Sequential(OnlyInName(8), nn.Linear(8, 5))), image(3, 7, 8))
    assert type(folded[0]) is OnlyInName  # type: ignore[index]


def test_a_computed_weight_is_not_computed_any_more() -> None:
    model, x = perturbed(nn.Sequential(PlusOne(8), nn.Linear(8, 5))), image(3, 7, 8)
    folded = reparameterize(model, x)
    assert distance(model, folded, x) < EXACT
    assert not list(folded[0].parameters())  # type: ignore[index]
    assert "add" not in folded[0].code  # type: ignore[index]


def test_norm_and_layer_in_one_forward() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.layer_norm(x, (8,), m.gamma, m.beta)
        n = y.shape[1]
        return torch.relu(F.linear(y, m.weight).reshape(y.shape[0], n * 5))

    gamma, beta, weight = (nn.Parameter(torch.randn(shape)) for shape in ((8,), (8,), (5, 8)))
    model, x = perturbed(Block(forward, gamma=gamma, beta=beta, weight=weight)), image(3, 7, 8)
    folded = reparameterize(model, x)
    assert distance(model, folded, x) < EXACT
    assert distance(model, folded, image(2, 3, 8)) < EXACT
    assert [name for name, _ in folded.named_parameters()] == ["linear.weight", "linear.bias"]


def two_layers(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    return torch.relu(m.a(y) + m.b(y))


def beside_itself(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    return torch.relu(m.a(y) + y)


@pytest.mark.parametrize("forward", [two_layers, beside_itself])
def test_a_sum_of_readers_becomes_one_layer(forward: Callable[..., Tensor]) -> None:
    model, x = perturbed(Block(forward, norm=nn.LayerNorm(8), a=nn.Linear(8, 8), b=nn.Linear(8, 8))), image(2, 7, 8)
    assert convs_ran(split(model, x), x) == 1


# --- what is refused


def test_an_activation_does_not_take_scale_and_shift() -> None:
    folded = kept(perturbed(nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5))), image(2, 7, 8))
    assert "0 (layer_norm's scale) kept: not every reader can take its scale and shift (gelu)" in reasons(folded)


def test_one_reader_that_cannot_take_scale_and_shift_keeps_them_all() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return x + F.gelu(m.linear(y)) + y

    folded = kept(perturbed(Block(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 8))), image(2, 7, 8))
    assert not report_of(folded).folds
    assert "norm (layer_norm's scale) kept: not every reader can take its scale and shift (linear and add)" in reasons(
        folded
    )


def test_a_reader_still_folds_where_the_norm_stays_whole() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(x)
        return m.bn(m.conv(y)), F.gelu(y)

    model = Block(forward, norm=nn.GroupNorm(2, 8), conv=nn.Conv2d(8, 6, 1), bn=nn.BatchNorm2d(6))
    folded = kept(perturbed(model), image(2, 8, 5, 3))
    assert [line.before for line in report_of(folded).folds] == ["1 conv + 1 bn"]


def test_a_norm_over_several_dimensions_is_not_split() -> None:
    folded = kept(perturbed(nn.Sequential(nn.LayerNorm((7, 8)), nn.Linear(8, 5))), image(2, 7, 8))
    assert not report_of(folded).folds


def test_a_norm_that_writes_its_statistics_is_not_split() -> None:
    """torch copies the running statistics onto themselves, in eval as well."""
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    kept(perturbed(nn.Sequential(norm, nn.Conv2d(8, 5, 1))), image(2, 8, 5, 3))


def test_a_weight_of_another_dtype_is_not_split() -> None:
    model = perturbed(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)), torch.bfloat16)
    model[0].float()  # type: ignore[index]
    folded = reparameterize(model, image(2, 7, 8, dtype=torch.bfloat16))
    assert with_weights(folded) == ["0"]


def test_a_hooked_norm_is_kept() -> None:
    seen: list[Tensor] = []
    model, x = perturbed(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))), image(2, 7, 8)
    model[0].register_forward_hook(lambda m, args, y: seen.append(y))  # type: ignore[index]
    folded = kept(model, x)
    assert "a hook or `keep` watches" in reasons(folded)


@pytest.mark.parametrize("norm", [nn.LayerNorm, OwnNorm])
def test_a_norm_named_by_keep_is_kept(norm: Callable[[int], nn.Module]) -> None:
    kept(perturbed(nn.Sequential(norm(8), nn.Linear(8, 5))), image(2, 7, 8), keep=["0"])


def test_a_returned_norm_is_kept() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(x)
        return y, m.linear(y)

    kept(perturbed(Block(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 8))), image(2, 7, 8))


def test_a_norm_whose_parameters_are_read_elsewhere_is_kept() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.gelu(m.linear(m.norm(x))) * m.norm.weight.exp()

    kept(perturbed(Block(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 8))), image(2, 7, 8))


def test_a_norm_whose_dtype_is_asked_for_is_kept() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.gelu(m.linear(m.norm(x.to(m.norm.weight.dtype))))

    folded = kept(perturbed(Block(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 8))), image(2, 7, 8))
    assert "other code asks for the dtype" in reasons(folded)


def test_in_place_writes_keep_the_norm() -> None:
    def every_pixel(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        a = m.a(y)
        y.mul_(2)
        return torch.relu(a) * torch.sigmoid(m.b(y))

    def one_pixel(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        y[:, 0] = 0
        return torch.relu(m.a(y))

    members = {"norm": nn.LayerNorm(8), "a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}
    split(perturbed(Block(every_pixel, **members)), image(2, 7, 8))
    kept(perturbed(Block(one_pixel, **members)), image(2, 7, 8))


def test_norms_that_share_their_weight() -> None:
    a, b = nn.LayerNorm(8), nn.LayerNorm(8)
    b.weight = a.weight
    both = perturbed(nn.Sequential(a, nn.Linear(8, 8), nn.GELU(), b, nn.Linear(8, 5)))
    split(both, image(2, 7, 8))
    one = perturbed(nn.Sequential(a, nn.Linear(8, 8), nn.GELU(), b, nn.GELU()))
    kept(one, image(2, 7, 8))


@pytest.mark.parametrize("norm", [nn.LayerNorm, OwnNorm])
def test_a_norm_that_is_called_twice(norm: Callable[[int], nn.Module]) -> None:
    def same(m: Any, x: Tensor) -> Tensor:
        return m.a(m.norm(F.gelu(m.a(m.norm(x)))))

    def both(m: Any, x: Tensor) -> Tensor:
        return m.b(m.norm(F.gelu(m.a(m.norm(x)))))

    def one(m: Any, x: Tensor) -> Tensor:
        return F.gelu(m.norm(F.gelu(m.a(m.norm(x)))))

    def members() -> dict[str, nn.Module]:
        return {"norm": norm(8), "a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}

    split(perturbed(Block(same, **members())), image(2, 7, 8))
    split(perturbed(Block(both, **members())), image(2, 7, 8))
    folded = kept(perturbed(Block(one, **members())), image(2, 7, 8))
    assert "is called 2 times" in reasons(folded)


def test_one_layer_behind_two_norms_keeps_both() -> None:
    """Their scales differ, and one weight cannot take both."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(m.second(F.gelu(m.a(m.first(x)))))

    kept(perturbed(Block(forward, first=nn.LayerNorm(8), second=nn.LayerNorm(8), a=nn.Linear(8, 8))), image(2, 7, 8))


def test_control_flow_on_sizes_keeps_the_norm() -> None:
    """At small sizes, code that did not run in the record reads the normalised tensor."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return F.gelu(m.linear(y)) * y if x.shape[1] < 4 else F.gelu(m.linear(y))

    model = perturbed(Block(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 8)))
    folded = kept(model, image(2, 7, 8))
    assert distance(model, folded, image(2, 3, 8)) < EXACT


def test_the_transformer_layer_of_torch_reads_weights_itself() -> None:
    """Outside the record it passes them to one fused kernel."""
    block = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    kept(perturbed(block), image(2, 7, 8))


def test_a_parametrized_weight() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model, x = perturbed(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))), image(2, 7, 8)
    parametrize.register_parametrization(model[0], "weight", Double())  # type: ignore[index]
    assert distance(model, reparameterize(model.eval(), x), x) < EXACT


# --- what comes out is an ordinary model


@pytest.mark.parametrize("norm", [nn.LayerNorm, OwnNorm])
def test_it_pickles_copies_loads_and_exports(norm: Callable[[int], nn.Module]) -> None:
    model, x = perturbed(Transformer(norm)), image(2, 7, 8)
    folded = split(model, x)
    buffer = io.BytesIO()
    pickle.dump(folded, buffer)
    for other in (pickle.loads(buffer.getvalue()), copy.deepcopy(folded)):
        assert distance(folded, other, x) == 0
        other.load_state_dict(folded.state_dict())
    assert distance(folded, torch.export.export(folded, (x,)).module(), x) < EXACT
    assert with_weights(model)  # the original is what it was


def test_in_place_conversion() -> None:
    model, x = perturbed(Transformer()), image(2, 7, 8)
    truth = copy.deepcopy(model)
    assert reparameterize(model, x, inplace=True) is model
    assert not with_weights(model)
    assert distance(truth, model, x) < EXACT


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("deit_tiny_patch16_224", []),
        ("convnext_atto", ["stem.1"]),  # a shortcut reads it as well
    ],
)
def test_published_networks(name: str, left: list[str]) -> None:
    model = perturbed(build(name), torch.float32)
    x = example_input(model)
    folded = reparameterize(model, x)
    assert with_weights(folded) == left
    outcome = report_of(folded).verification
    assert outcome is not None
    assert outcome.ok
    assert outcome.fp64_error < 1e-10
    assert not report_of(reparameterize(folded, x, verify=False)).folds
