"""A conversion is a fixed point: converting what came out finds nothing more. Truth is the original in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, convs_ran, distance, fold_exactly, image, norms_ran, ran, trained
from tests.networks import X, network


def settled(model: nn.Module, *others: Tensor, like: Tensor) -> nn.Module:
    """The model folded, equal on the example and on others; a second time nothing is found."""
    folded = fold_exactly(model, like, *others)
    assert not reparam.reparameterize(folded, like).reparam_report.folds
    return folded


def two_heads(m: Block, x: Tensor) -> Tensor:
    x = m.norm(x).mean((2, 3))
    return (m.head(x) + m.other(x)) / 2


def test_two_heads_and_the_norm_in_front_of_their_mean_become_one_layer() -> None:
    model = trained(Block(two_heads, norm=nn.BatchNorm2d(5), head=nn.Linear(5, 3), other=nn.Linear(5, 3)))
    x = image(2, 5, 3, 7)
    folded = settled(model, image(1, 5, 1, 1), image(3, 5, 4, 2), like=x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)


def residual_tokens(m: Block, x: Tensor) -> Tensor:
    y = x + m.conv(x)
    return m.head(y.flatten(2).transpose(1, 2))


def test_a_residual_branch_goes_into_the_layer_behind_a_reshape() -> None:
    model = trained(Block(residual_tokens, conv=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 3)))
    x = image(2, 4, 5, 3)
    folded = settled(model, image(1, 4, 1, 1), image(3, 4, 2, 6), like=x)
    assert convs_ran(folded, x) == 1
    assert folded.reparam_report.after.elementwise == 0


def both_ends(m: Block, x: Tensor) -> Tensor:
    y = m.norm(x) - 0.5 * m.conv(x)
    y = y.permute(0, 2, 3, 1)
    return m.head(y) + m.low(m.down(y))


def test_branches_on_both_sides_of_a_permutation() -> None:
    layers = {"head": nn.Linear(6, 5), "down": nn.Linear(6, 1), "low": nn.Linear(1, 5)}
    model = trained(Block(both_ends, norm=nn.BatchNorm2d(6), conv=nn.Conv2d(6, 6, 1), **layers))
    x = image(2, 6, 5, 3)
    folded = settled(model, image(1, 6, 1, 1), image(3, 6, 2, 7), like=x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)


def kernels_in_front(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x) + m.other(x)
    return m.norm(y.flatten(2))


def test_branches_take_the_norm_behind_a_reshape() -> None:
    layers = {"conv": nn.Conv2d(4, 6, 3, padding=1), "other": nn.Conv2d(4, 6, 1)}
    model = trained(Block(kernels_in_front, norm=nn.BatchNorm1d(6), **layers))
    x = image(2, 4, 5, 3)
    folded = settled(model, image(1, 4, 1, 1), image(3, 4, 2, 6), like=x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)


class Low(nn.Module):
    """A low-rank branch beside its input, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(5, 2), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


def test_a_block_behind_a_mean_takes_the_norm_in_front_of_it() -> None:
    model = trained(Block(lambda m, x: m.low(m.norm(x).mean((2, 3))), norm=nn.BatchNorm2d(5), low=Low()))
    x = image(2, 5, 3, 7)
    folded = settled(model, image(1, 5, 1, 1), like=x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)


def also_read(m: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + m.conv(x)
    return m.head(y.flatten(2).transpose(1, 2)), torch.relu(y)


def twice_read(m: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    y = (x + m.conv(x)).flatten(2).transpose(1, 2)
    return torch.relu(m.head(y)), m.other(y)


def carried_twice(m: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    y = (x + m.conv(x)).flatten(2)
    return torch.relu(m.norm(y)), m.second(y)


def inner_size(m: Block, x: Tensor) -> Tensor:
    z = m.conv(x)
    y = (x + z).flatten(2).transpose(1, 2)
    return m.head(y) * z.shape[2]


def outer_size(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x) + m.other(x)
    b, c, h, w = y.shape
    return m.head(y.reshape(b, c, h * w).transpose(1, 2)) / c


def channels_asked(m: Block, x: Tensor) -> Tensor:
    y = (m.conv(x) + m.other(x)).flatten(2).transpose(1, 2)
    return m.head(y) / y.shape[-1]


def padded_and_cropped(m: Block, x: Tensor) -> Tensor:
    y = nn.functional.pad(m.conv(x), (2, 2, 1, 1), value=0.0)
    rows = y.shape[2]
    return m.head(y[:, :, 1:-1, 2:-2].flatten(2).transpose(1, 2)) * rows


@pytest.mark.parametrize(
    "forward",
    [also_read, twice_read, carried_twice, inner_size, outer_size, channels_asked, padded_and_cropped],
    ids=lambda forward: forward.__name__,
)
def test_tensors_that_are_read_between_two_folds_stay(forward: Callable[[Block, Tensor], object]) -> None:
    wide = 7 if forward in (outer_size, channels_asked) else 4
    layers = {name: nn.Conv2d(4, wide, 1, bias=forward is not padded_and_cropped) for name in ("conv", "other")}
    if forward in (twice_read, carried_twice):
        layers["other"] = nn.Linear(4, 2)
    norms = {"norm": nn.BatchNorm1d(4), "second": nn.BatchNorm1d(4)}
    model = trained(Block(forward, head=nn.Linear(wide, 3), **layers, **norms))
    x = image(2, 4, 5, 3)
    folded = reparam.reparameterize(model, x)
    for other in (x, image(1, 4, 1, 1), image(3, 4, 2, 7)):
        assert distance(model, folded, other) < EXACT


def test_a_refused_fold_behind_a_reshape_costs_no_fold_in_front_of_it() -> None:
    """Control flow depends on a value, so the sum stays; the norm in front of it still folds into its convolution."""

    def forward(m: Block, x: Tensor) -> Tensor:
        x = x if x.sum() < 1e9 else -x
        y = m.stem(x)
        y = y + m.conv(y)
        return m.head(y.flatten(2).transpose(1, 2))

    stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model = trained(Block(forward, stem=stem, conv=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 3)))
    folded = reparam.reparameterize(model, image(2, 3, 5, 3))
    assert distance(model, folded, image(2, 3, 5, 3)) < EXACT
    assert norms_ran(folded, image(2, 3, 5, 3)) == 0


class RowNorm(nn.Module):
    """A linear layer and a batch norm that takes rows: flattened for it, and put back (LeViT)."""

    def __init__(self, back: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.norm, self.back = nn.Linear(4, 6), nn.BatchNorm1d(6), back

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.back(self.norm(x.flatten(0, 1)), x)


@pytest.mark.parametrize(
    "back",
    [
        lambda y, x: y.reshape_as(x),
        lambda y, x: y.view(x.shape[0], -1, 6),
        lambda y, x: y.unflatten(0, (len(x), x.size(1))),
    ],
)
def test_flatten_and_reshape_around_a_norm_go_with_it(back: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = trained(nn.Sequential(RowNorm(back), nn.ReLU()))
    x = image(2, 5, 4)
    folded = settled(model, image(1, 1, 4), image(5, 2, 4), like=x)
    assert ran(folded, x) == ran(trained(nn.Sequential(nn.Linear(4, 6), nn.ReLU())), x)


def test_a_reshape_that_depends_on_the_size_is_kept() -> None:
    """Rows and columns are exchanged, or the sizes are those of the example."""
    model = trained(nn.Sequential(RowNorm(lambda y, x: y.view(x.shape[1], x.shape[0], 6)), nn.ReLU()))
    fixed = trained(nn.Sequential(RowNorm(lambda y, x: y.view(-1, 3, 6)), nn.ReLU()))
    for each in (model, fixed):
        folded = reparam.reparameterize(each, image(3, 3, 4), verify=False)
        assert norms_ran(folded, image(3, 3, 4)) == 0
        for size in [(3, 3, 4), (2, 3, 4), (3, 2, 4), (3, 5, 4)]:
            if each is model or size[0] * size[1] % 3 == 0:
                assert distance(each, folded, image(*size)) < EXACT


class NormOf(nn.BatchNorm2d):
    """A norm whose forward calls a module as well."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 1e-5)
        return self.act(x)


class Opaque(nn.Module):
    """Cannot be traced; its first layer could take the norm in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.sum() > 1e9:
            y = -y
        return y.relu().mean((2, 3)) + x.relu().mean()


def test_a_fold_is_made_where_it_stands_if_its_reader_cannot_be_rewritten() -> None:
    wide = nn.Sequential(nn.Conv2d(4, 32, 1), NormOf(32))
    model = trained(nn.Sequential(nn.ReLU(), nn.Sequential(wide, Opaque())))
    x = image(2, 4, 9, 7)
    folded = settled(model, image(1, 4, 3, 3), image(3, 4, 12, 5), like=x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (2, 0)


def test_a_second_conversion_finds_nothing() -> None:
    folded = reparam.reparameterize(network(), X)
    again = reparam.reparameterize(folded, X)
    assert again.reparam_report.folds == ()
    assert "Nothing to fold" in str(again.reparam_report)
    assert torch.equal(again(X), folded(X))
    assert again.reparam_report.before == again.reparam_report.after
