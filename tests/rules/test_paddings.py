"""Branches that pad by reflection, replication or wrapping round become one convolution that pads so itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import (
    EXACT,
    Block,
    accepted,
    convs_ran,
    distance,
    fold_exactly,
    image,
    norms_ran,
    plain_convs,
    summed,
    trained,
)

MODES = ["reflect", "replicate", "circular"]


def keeping(channels: int, kernel: int | tuple[int, ...], mode: str, **options: object) -> nn.Conv2d:
    """A convolution without a bias that keeps the size of the image."""
    return nn.Conv2d(channels, channels, kernel, padding="same", padding_mode=mode, bias=False, **options)


def normed(*layers: nn.Module, channels: int = 4) -> nn.Module:
    return nn.Sequential(*layers, nn.BatchNorm2d(channels))


# By number of axes: all small ones, among them the smallest that a model takes, and some larger ones.
SIZES = {n: [*product(range(1, 8), repeat=n), (11, 9, 8)[:n], (10, 17, 9)[:n]] for n in (1, 2, 3)}


def fold_to_one(model: nn.Module, spatial: int = 2, channels: int = 4) -> nn.Module:
    """One convolution and no norm is left, and every size that the model takes gives the same."""
    model = trained(model)
    images = list(accepted(model, channels, SIZES[spatial]))
    return fold_exactly(model, *reversed(images), convs=1, norms=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 4])
def test_dense_point_and_identity(mode: str, groups: int) -> None:
    branches = normed(keeping(4, 3, mode, groups=groups)), normed(keeping(4, 1, mode, groups=groups)), nn.BatchNorm2d(4)
    (folded,) = plain_convs(fold_to_one(summed(*branches)))
    assert (folded.padding_mode, folded.padding, folded.kernel_size) == (mode, (1, 1), (3, 3))


@pytest.mark.parametrize("mode", MODES)
def test_square_row_and_column(mode: str) -> None:
    row, column = keeping(4, (1, 3), mode), keeping(4, (3, 1), mode)
    (folded,) = plain_convs(fold_to_one(summed(*map(normed, (keeping(4, 3, mode), row, column)))))
    assert (folded.padding_mode, folded.padding) == (mode, (1, 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2])
def test_less_padding_is_a_crop_of_more(mode: str, stride: int) -> None:
    wide, narrow = (nn.Conv2d(4, 4, k, stride, k // 2, padding_mode=mode) for k in (5, 3))
    point = nn.Conv2d(4, 4, 1, stride, padding_mode=mode, bias=False)
    (folded,) = plain_convs(fold_to_one(summed(*map(normed, (wide, narrow, point)))))
    assert (folded.padding_mode, folded.padding) == (mode, (2, 2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [2, 4, (3, 4)])
def test_even_kernels_pad_more_at_one_end(mode: str, kernel: int | tuple[int, int]) -> None:
    """No layer of torch pads that way: a padding module stands before the convolution, whose kernel keeps its size."""
    result = fold_to_one(summed(normed(keeping(4, kernel, mode)), normed(keeping(4, kernel, mode))))
    (folded,) = plain_convs(result)
    assert (folded.padding_mode, folded.padding) == ("zeros", (0, 0))
    assert folded.kernel_size == keeping(4, kernel, mode).kernel_size


@pytest.mark.parametrize("mode", MODES)
def test_a_norm_in_front(mode: str) -> None:
    """A copied pixel is a copy behind the norm too, so the border is right."""
    (folded,) = plain_convs(fold_to_one(nn.Sequential(nn.BatchNorm2d(4), keeping(4, 3, mode), nn.BatchNorm2d(4))))
    assert folded.padding_mode == mode


@pytest.mark.parametrize("mode", MODES)
def test_a_dilated_kernel_keeps_its_dilation(mode: str) -> None:
    (folded,) = plain_convs(fold_to_one(summed(normed(keeping(4, 3, mode, dilation=2)), normed(keeping(4, 1, mode)))))
    assert (folded.kernel_size, folded.dilation, folded.padding) == ((3, 3), (2, 2), (2, 2))


@pytest.mark.parametrize(("spatial", "mode"), list(product([1, 3], MODES)))
def test_other_numbers_of_axes(spatial: int, mode: str) -> None:
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[spatial]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[spatial]
    branches = [nn.Sequential(layer(4, 4, k, padding=k // 2, padding_mode=mode), norm(4)) for k in (3, 1)]
    (folded,) = plain_convs(fold_to_one(summed(*branches, norm(4)), spatial))
    assert folded.padding_mode == mode


def test_each_axis_may_have_its_own_mode() -> None:
    """One mode for each axis."""
    branches = [
        nn.Sequential(nn.CircularPad2d((k, k, 0, 0)), nn.Conv2d(4, 4, 2 * k + 1, padding=(k, 0))) for k in (1, 2)
    ]
    result = fold_to_one(summed(*map(normed, branches)))
    assert {type(module) for module in result.modules()} & {nn.CircularPad2d, nn.Conv2d} == {
        nn.CircularPad2d,
        nn.Conv2d,
    }


@pytest.mark.parametrize("mode", MODES)
def test_branches_that_read_one_padded_tensor(mode: str) -> None:
    """The padding stands once, before all of them."""
    pad = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "circular": nn.CircularPad2d}[mode](1)

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.pad(x)
        return torch.relu(m.norm(m.dense(y) + m.point(y)[:, :, 1:-1, 1:-1] + x))

    layers = {"dense": nn.Conv2d(4, 4, 3), "point": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    (folded,) = plain_convs(fold_to_one(Block(forward, pad=pad, **layers)))
    assert (folded.padding_mode, folded.padding) == (mode, (1, 1))


def test_a_layer_alone_is_left_as_it_is() -> None:
    model = trained(nn.Sequential(keeping(4, 3, "reflect"), nn.ReLU()))
    result = reparam.reparameterize(model, image(1, 4, 9, 7))
    assert not result.reparam_report.folds
    assert torch.equal(result[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: summed(keeping(4, 3, "reflect"), keeping(4, 3, "zeros")), "pads with"),
        (lambda: summed(keeping(4, 3, "circular"), keeping(4, 5, "replicate")), "pads with"),
        (lambda: nn.Sequential(keeping(4, 3, "reflect"), nn.BatchNorm2d(4), keeping(4, 3, "reflect")), "neighbouring"),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), keeping(4, 3, "reflect"), keeping(4, 3, "zeros")), "around a border"),
    ],
)
def test_two_kinds_of_border_stay_two_convolutions(make: Callable[[], nn.Module], why: str) -> None:
    """The convolutions stay; the norm folds into one of them."""
    model = trained(make())
    images = list(accepted(model, 4, SIZES[2]))
    result = reparam.reparameterize(model, images[-1])
    assert convs_ran(result, images[-1]) == 2
    assert norms_ran(result, images[-1]) == 0
    assert any(why in refusal.reason for refusal in result.reparam_report.refusals), result.reparam_report
    assert all(distance(model, result, x) < EXACT for x in images)


@pytest.mark.parametrize("mode", MODES)
def test_the_report_names_the_mode_and_a_second_run_finds_nothing(mode: str) -> None:
    model = trained(normed(keeping(4, 3, mode)))
    result = reparam.reparameterize(model, image(1, 4, 9, 7))
    assert [line.after for line in result.reparam_report.folds] == [f"Conv2d 4->4 3x3 s1 p1 {mode}"]
    assert not reparam.reparameterize(result, image(1, 4, 9, 7)).reparam_report.folds
    even = reparam.reparameterize(trained(normed(keeping(4, 2, mode))), image(1, 4, 9, 7))
    assert [line.after for line in even.reparam_report.folds] == ["Conv2d 4->4 2x2 s1 p0"]  # the padding stays
    assert not reparam.reparameterize(even, image(1, 4, 9, 7)).reparam_report.folds


def test_a_padded_convolution_behind_a_strided_one_stays() -> None:
    """In front of the image the strided window reads nothing but zeros. Behind it, it may read the last pixel."""
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1)))
    images = list(accepted(model, 4, SIZES[2]))
    fold_exactly(model, *reversed(images), convs=2)


@pytest.mark.parametrize(("off", "convs"), [(1e-8, 2), (1e-14, 1)])
def test_a_border_holds_the_bias_up_to_rounding(off: float, convs: int) -> None:
    def forward(m: Block, x: Tensor) -> Tensor:
        return m.second(F.pad(m.first(x), (1, 1, 1, 1), value=0.7 * (1 + off)))

    model = trained(Block(forward, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3)))
    nn.init.constant_(model.first.bias, 0.7)
    fold_exactly(model, image(2, 4, 5, 7), image(1, 4, 1, 1), convs=convs)
