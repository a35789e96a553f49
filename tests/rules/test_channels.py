"""Channels and pixels moved about between convolutions: one convolution of the model, where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.algebra.kernels import finest_groups, regroup
from tests.helpers import (
    EXACT,
    Block,
    Launches,
    accepted,
    between,
    convs_ran,
    distance,
    image,
    norms_ran,
    plain_convs,
    ran,
    same_conv,
    trained,
)

SIZES = [(2, 4, 9, 7), (1, 4, 1, 1), (3, 4, 6, 11), (1, 4, 2, 13)]


def option_a(m: nn.Module, x: Tensor) -> Tensor:
    """A shortcut without parameters (He et al. 2015): every other pixel, and channels of zeros."""
    return m.bn(m.conv(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)


def _parts(y: Tensor) -> Tensor:
    a, b, c = y.tensor_split(3, 1)
    return a + b - c


ONE: dict[str, Callable[[], nn.Module]] = {
    "shuffle": lambda: nn.Sequential(
        same_conv(4, 6, 3, groups=2), nn.ChannelShuffle(3), nn.BatchNorm2d(6), same_conv(6, 4)
    ),
    "index": lambda: between(lambda y: y[:, [3, 1, 1, 5, 0]], same_conv(4, 6, 3), same_conv(5, 4)),
    "index tensor": lambda: Block(
        lambda m, x: m.b(m.a(x).index_select(1, m.index)), a=same_conv(4, 6), b=nn.BatchNorm2d(3),
        index=torch.tensor([4, 0, 2]),
    ),
    "flip": lambda: between(lambda y: y.flip(1), same_conv(4, 6, 3), nn.BatchNorm2d(6)),
    "roll": lambda: between(lambda y: y.roll(2, 1), same_conv(4, 6, 3), nn.BatchNorm2d(6)),
    "narrow": lambda: between(lambda y: y.narrow(1, 1, 3), same_conv(4, 6, 3), nn.BatchNorm2d(3)),
    "parts": lambda: between(_parts, same_conv(4, 6, 3), nn.BatchNorm2d(2)),
    "repeated": lambda: between(
        lambda y: y.repeat_interleave(2, 1) + y.repeat(1, 2, 1, 1), same_conv(4, 3, 3), same_conv(6, 4)
    ),
    "expanded": lambda: between(lambda y: y.expand(-1, 3, -1, -1), same_conv(4, 1, 3), nn.BatchNorm2d(3)),
    "option A": lambda: Block(option_a, conv=same_conv(4, 8, 3, 2, bias=False), bn=nn.BatchNorm2d(8)),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_becomes_one_convolution(name: str) -> None:
    model = trained(ONE[name]())
    result = reparam.reparameterize(model, image(*SIZES[0]), verify=False, cost=Launches())
    assert len(plain_convs(result)) == convs_ran(result, image(*SIZES[0])) == 1, result.reparam_report
    assert norms_ran(result, image(*SIZES[0])) == 0
    moved = {"index_select", "index", "flip", "roll", "clone", "repeat", "cat", "add", "native_channel_shuffle"}
    assert not moved & {name for name, count in ran(result, image(*SIZES[0])).items() if count}
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "index": lambda x: x[:, [3, 1, 1, 0]],
    "zeros": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "slices": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
}


@pytest.mark.parametrize("name", ALONE)
def test_moved_channels_alone_become_no_convolution(name: str) -> None:
    """The kernel of that convolution would be nearly all zeros."""
    model = Block(lambda m, x: ALONE[name](x).relu()).eval()
    result = reparam.reparameterize(model, image(2, 4, 8, 6), verify=False)
    assert not plain_convs(result)
    assert distance(model, result, image(2, 4, 8, 6)) < EXACT


class Focus(nn.Module):
    """Space to depth by slices, then a convolution with norm (Jocher 2020)."""

    def __init__(self, taps: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = same_conv(12, 6, taps, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        slices = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return F.silu(self.bn(self.conv(torch.cat(slices, 1))))


EVEN = [(2, 3, 8, 6), (1, 3, 2, 2), (3, 3, 10, 14)]


@pytest.mark.parametrize("taps", [1, 3])
def test_slices_of_pixels_side_by_side_are_one_strided_convolution(taps: int) -> None:
    model = trained(Focus(taps))
    result = reparam.reparameterize(model, image(*EVEN[0]), verify=False)
    assert [layer.stride for layer in plain_convs(result)] == [(2, 2)]
    assert convs_ran(result, image(*EVEN[0])) == 1
    assert norms_ran(result, image(*EVEN[0])) == ran(result, image(*EVEN[0]))["cat"] == 0
    for size in EVEN:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_blocks_of_pixels_are_a_strided_convolution() -> None:
    model = trained(nn.Sequential(nn.PixelUnshuffle(2), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1), nn.ReLU()))
    result = reparam.reparameterize(model, image(*EVEN[0]), verify=False)
    assert [(layer.kernel_size, layer.stride) for layer in plain_convs(result)] == [((2, 2), (2, 2))]
    assert ran(result, image(*EVEN[0]))["pixel_unshuffle"] == 0
    for size in EVEN:
        assert distance(model, result, image(*size, seed=1)) < EXACT


@pytest.mark.parametrize("taps", [1, 3])
def test_a_norm_behind_a_pixel_shuffle_goes_into_the_convolution_before_it(taps: int) -> None:
    model = trained(nn.Sequential(same_conv(4, 12, taps), nn.PixelShuffle(2), nn.BatchNorm2d(3), nn.ReLU()))
    result = reparam.reparameterize(model, image(*SIZES[0]), verify=False)
    assert norms_ran(result, image(*SIZES[0])) == 0
    assert [layer.out_channels for layer in plain_convs(result)] == [12]
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


SHUFFLED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "1x1": (lambda: nn.Sequential(same_conv(4, 12, 3), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), 8),
    "depthwise": (lambda: nn.Sequential(same_conv(4, 12), nn.PixelShuffle(2), nn.Conv2d(3, 3, 1, groups=3)), 12),
    "in groups": (lambda: nn.Sequential(same_conv(4, 16), nn.PixelShuffle(2), nn.Conv2d(4, 6, 1, groups=2)), 24),
    "in groups before": (
        lambda: nn.Sequential(
            same_conv(4, 16, 3, groups=4, bias=False), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1, groups=2)
        ),
        8,
    ),
    "two shuffles": (
        lambda: nn.Sequential(
            same_conv(4, 48, 3), nn.PixelShuffle(2), nn.BatchNorm2d(12), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)
        ),
        32,
    ),
    "sum with a bias": (
        lambda: Block(
            lambda m, x: m.last(F.pixel_shuffle(m.first(x), 3)) * m.scale + m.shift,
            first=same_conv(4, 18, 3), last=nn.Conv2d(2, 1, 1), scale=nn.Parameter(torch.randn(1, 1, 1)),
            shift=nn.Parameter(torch.randn(1, 1, 1)),
        ),
        9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHUFFLED)
def test_a_map_of_pixels_behind_a_pixel_shuffle_goes_into_the_convolution_before_it(name: str) -> None:
    make, channels = SHUFFLED[name]
    model = trained(make())
    result = reparam.reparameterize(model, image(*SIZES[0]))
    counted = ran(result, image(*SIZES[0]))
    assert convs_ran(result, image(*SIZES[0])) == 1, result.reparam_report
    assert norms_ran(result, image(*SIZES[0])) == counted["mul"] == counted["add"] == 0
    assert [layer.out_channels for layer in plain_convs(result)] == [channels]
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_a_convolution_behind_a_pixel_shuffle_stays_where_it_is_cheaper() -> None:
    """In front of the shuffle the map stands once for each pixel, and the 3x3 convolution would compute them all."""
    model = trained(nn.Sequential(same_conv(4, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 256, 1)))
    x = image(2, 4, 32, 32)
    result = reparam.reparameterize(model, x)
    assert [layer.out_channels for layer in plain_convs(result)] == [8, 256]
    assert distance(model, result, x) < EXACT


def test_two_readers_behind_a_pixel_shuffle_share_the_convolution_before_it() -> None:
    model = Block(
        lambda m, x: (lambda y: m.a(y) * m.b(y))(m.norm(m.shuffle(m.conv(x)))), conv=same_conv(4, 12, 3),
        shuffle=nn.PixelShuffle(2), norm=nn.BatchNorm2d(3), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 1),
    )  # fmt: skip
    model = trained(model, image(*SIZES[0]))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert norms_ran(result, image(*SIZES[0])) == 0
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_a_linear_layer_behind_the_tokens_of_a_convolution_goes_into_it() -> None:
    """Patches become tokens, then a projection: it folds although the convolution reads neighbours."""
    model = trained(
        Block(lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2)), a=nn.Conv2d(4, 8, 3, 3), b=nn.Linear(8, 6))
    )
    result = reparam.reparameterize(model, image(2, 4, 9, 7))
    assert [type(layer) for layer in plain_convs(result)] == [nn.Conv2d], result.reparam_report
    for size in [(2, 4, 9, 7), (1, 4, 3, 3), (3, 4, 6, 11)]:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_a_slice_of_channels_does_not_tell_their_number() -> None:
    """The layers read eight channels of any number; one layer for both would accept only eight."""
    model = Block(
        lambda m, x: (lambda y: torch.relu(m.a(y[..., :4]) + m.b(y[..., 4:8])))(x.transpose(1, 2)),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3),
    )  # fmt: skip
    model = trained(model, image(2, 8, 5))
    result = reparam.reparameterize(model, image(2, 8, 5))
    assert distance(model, result, image(2, 9, 5)) < EXACT


def test_two_branches_behind_the_tokens_of_a_convolution_go_into_it() -> None:
    model = Block(
        lambda m, x: (lambda y: m.a(y) + m.b(y))(m.conv(x).flatten(2).transpose(1, 2)),
        conv=nn.Conv2d(4, 8, 3, 3), a=nn.Linear(8, 6), b=nn.Linear(8, 6, bias=False),
    )  # fmt: skip
    model = trained(model)
    result = reparam.reparameterize(model, image(2, 4, 9, 7))
    assert convs_ran(result, image(2, 4, 9, 7)) == 1, result.reparam_report
    assert not reparam.reparameterize(result, image(2, 4, 9, 7), verify=False).reparam_report.folds
    assert distance(model, result, image(1, 4, 6, 11)) < EXACT


def test_a_shift_behind_a_transposition_becomes_a_map_at_a_fixed_size() -> None:
    model = trained(between(lambda y: y.transpose(2, 3), nn.BatchNorm2d(8), same_conv(8, 5, 3)), image(2, 8, 7, 5))
    result = reparam.reparameterize(model, image(2, 8, 7, 5), fixed_size=True)
    assert norms_ran(result, image(2, 8, 7, 5)) == 0
    assert distance(model, result, image(3, 8, 7, 5, seed=1)) < EXACT


def test_tokens_that_several_projections_read_are_computed_once() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x)).flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(m.q(y), m.k(y), m.v(y))

    parts = {name: nn.Linear(8, 8) for name in "qkv"}
    model = trained(Block(forward, conv=nn.Conv2d(4, 8, 3, 3), norm=nn.BatchNorm2d(8), **parts), image(2, 4, 9, 7))
    result = reparam.reparameterize(model, image(2, 4, 9, 7))
    assert norms_ran(result, image(2, 4, 9, 7)) == 0, result.reparam_report
    assert convs_ran(result, image(2, 4, 9, 7)) == 4
    assert distance(model, result, image(1, 4, 6, 11)) < EXACT


def test_a_norm_behind_a_flattened_convolution_goes_into_it() -> None:
    """The convolution may read neighbours: it stands in front of the rearranged pixels."""
    flat = Block(lambda m, x: m.bn(m.conv(x).flatten(2)), conv=same_conv(4, 6, 3), bn=nn.BatchNorm1d(6))
    named = Block(
        lambda m, x: m.bn(m.conv(x).reshape(x.shape[0], 6, -1)).transpose(1, 2),
        conv=same_conv(4, 6, 3),
        bn=nn.BatchNorm1d(6),
    )
    for model in (trained(flat), trained(named)):
        result = reparam.reparameterize(model, image(*SIZES[0]), verify=False)
        assert norms_ran(result, image(*SIZES[0])) == 0, result.reparam_report
        for size in SIZES:
            assert distance(model, result, image(*size, seed=1)) < EXACT


REARRANGED: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "transposed": (
        lambda: between(lambda y: y.transpose(2, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, (3, 2), 2)),
        [(2, 4, 9, 7), (1, 4, 2, 3), (3, 4, 6, 11)],
    ),
    "to the end and back": (
        lambda: Block(
            lambda m, x: m.conv(m.bn(m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))),
            linear=nn.Linear(4, 5), bn=nn.BatchNorm2d(5), conv=nn.Conv2d(5, 6, 2, 2),
        ),
        [(2, 4, 8, 6), (1, 4, 2, 3)],
    ),
    "steps on both sides": (
        lambda: Block(
            lambda m, x: m.last(m.conv(m.first(x).transpose(2, 3)).flatten(2)),
            first=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 6, 3), last=nn.BatchNorm1d(6),
        ),
        [(2, 4, 9, 7), (1, 4, 3, 3)],
    ),
    "pooled": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d((5, 4)), nn.Conv2d(4, 6, 3)), SIZES
    ),
    "pixels by their number": (
        lambda: between(lambda y: y[:, :, :5, 1], nn.BatchNorm2d(4), nn.Conv1d(4, 6, 3)),
        [(2, 4, 9, 7), (1, 4, 5, 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REARRANGED)
def test_a_norm_passes_what_is_rearranged_on_its_way_to_an_unpadded_convolution(name: str) -> None:
    make, sizes = REARRANGED[name]
    model = trained(make(), image(*sizes[0]))
    result = reparam.reparameterize(model, image(*sizes[0]))
    assert norms_ran(result, image(*sizes[0])) == 0, result.reparam_report
    assert convs_ran(result, image(*sizes[0])) == 1
    for size in sizes:
        assert distance(model, result, image(*size, seed=1)) < EXACT


@pytest.mark.parametrize(
    "second",
    [
        lambda: nn.Conv2d(4, 6, 3, padding=1),
        lambda: nn.Conv2d(4, 6, 3, padding=(1, 0), bias=False),
        lambda: nn.ConvTranspose2d(4, 6, 2, 2),
    ],
)
def test_a_shift_passes_no_border_of_zeros_behind_what_is_rearranged(second: Callable[[], nn.Module]) -> None:
    model = trained(between(lambda y: y.transpose(2, 3), nn.BatchNorm2d(4), second()), image(*SIZES[0]))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert norms_ran(result, image(*SIZES[0])) == 1
    for x in accepted(model, 4, [size[2:] for size in SIZES]):
        assert distance(model, result, x) < EXACT


def test_an_image_that_is_repeated_at_its_border_takes_the_norm() -> None:
    second = nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate")
    model = trained(between(lambda y: y.transpose(2, 3), nn.BatchNorm2d(4), second), image(*SIZES[0]))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert norms_ran(result, image(*SIZES[0])) == 0
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_groups_hidden_by_a_shuffle_are_found() -> None:
    """Two grouped convolutions with a shuffle and its inverse around them become one grouped convolution."""
    model = trained(
        nn.Sequential(
            same_conv(8, 8, 3, groups=2, bias=False),
            nn.ChannelShuffle(2),
            nn.ChannelShuffle(4),
            same_conv(8, 8, groups=2),
        )
    )
    result = reparam.reparameterize(model, image(2, 8, 9, 7), verify=False)
    assert [layer.groups for layer in plain_convs(result)] == [2]
    for size in [(2, 8, 9, 7), (1, 8, 1, 1), (3, 8, 6, 11)]:
        assert distance(model, result, image(*size, seed=1)) < EXACT


@pytest.mark.parametrize(("groups", "many"), [(1, 3), (2, 2), (1, 6), (3, 1)])
def test_the_finest_groups(groups: int, many: int) -> None:
    """The groups of the blocks that are not zero; a dense kernel and a kernel of zeros keep their groups."""
    inner = 12 // groups // many
    kernel = torch.rand(24, inner, 3, 2) + 1
    found, own = finest_groups(regroup(kernel, groups * many, groups), groups)
    assert found == groups * many
    assert torch.equal(own, kernel)
    zeros = torch.zeros(24, 12 // groups, 3, 2)
    assert finest_groups(zeros, groups)[0] == groups
