"""Transposed convolutions take what stands behind them: norms, scales, branches of equal geometry, 1x1 convolutions."""

from __future__ import annotations

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
    ran,
    summed,
    trained,
)

DECONVS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# By number of axes: the smallest ones, and some odd ones.
SIZES = {n: [*product(range(1, 4 if n < 3 else 2), repeat=n), (7, 5, 6)[:n], (6, 9, 5)[:n]] for n in (1, 2, 3)}


def fold_one(model: nn.Module, channels: int = 4, spatial: int = 2, convs: int = 1, norms: int = 0) -> nn.Module:
    """`convs` convolutions and `norms` norms are left, and every size gives the same."""
    model = trained(model)
    images = list(accepted(model, channels, SIZES[spatial]))
    # Verification's own images are large, which takes long with three axes.
    return fold_exactly(model, *reversed(images), convs=convs, norms=norms, verify=spatial < 3)


GEOMETRIES = [
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 3, "stride": 3, "output_padding": 2},
    {"kernel_size": 2, "stride": 5},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 3, "output_padding": 2},
    {"kernel_size": 2, "stride": 2, "dilation": 4, "output_padding": 3},
    {"kernel_size": 3, "padding": 1},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("groups", "outputs"), [(1, 4), (2, 4), (4, 4), (2, 6)])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_a_norm_behind(geometry: dict[str, int], groups: int, outputs: int, spatial: int) -> None:
    """Most have as many inputs as outputs: the norm must scale the outputs."""
    layer = DECONVS[spatial](4, outputs, groups=groups, bias=groups == 2, **geometry)
    fold_one(nn.Sequential(layer, NORMS[spatial](outputs), nn.ReLU()), spatial=spatial)


def test_the_layer_keeps_its_name_kind_and_geometry() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, (4, 3), (2, 1), 1, groups=2, bias=False), nn.BatchNorm2d(4))
    folded = fold_one(model)[0]
    assert type(folded) is nn.ConvTranspose2d
    assert (folded.kernel_size, folded.stride, folded.padding) == ((4, 3), (2, 1), (1, 1))
    assert (folded.groups, folded.output_padding) == (2, (0, 0))
    assert folded.weight.shape == (4, 2, 4, 3)
    assert not folded.weight.requires_grad


def test_a_stride_of_one_is_a_convolution() -> None:
    assert type(fold_one(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)))[0]) is nn.Conv2d


def test_the_report_says_what_it_is_and_a_second_run_finds_nothing() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU())
    result = fold_one(model)
    (line,) = result.reparam_report.folds
    assert line.after == "ConvTranspose2d 4->6 3x3 s2 p1 o1 g2"
    again = reparam.reparameterize(result, image(1, 4, 5, 6))
    assert not again.reparam_report.folds


def test_multiply_adds_are_those_of_the_input_s_pixels() -> None:
    model = trained(nn.Sequential(nn.ConvTranspose2d(4, 6, 5, 3), nn.BatchNorm2d(6)))
    report = reparam.reparameterize(model, image(1, 4, 7, 9)).reparam_report
    assert report.before.macs == report.after.macs == 7 * 9 * 4 * 6 * 25


@pytest.mark.parametrize("groups", [1, 4])
def test_branches_of_equal_geometry(groups: int) -> None:
    """A 4x4 with padding 1 and a 2x2 without give equally many outputs: the smaller lies in the larger."""
    wide = nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=groups, bias=False), nn.BatchNorm2d(4))
    narrow = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2, groups=groups), nn.BatchNorm2d(4))
    same = nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4))
    result = fold_one(summed(wide, narrow, same))
    (folded,) = [module for module in result.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert (folded.kernel_size, folded.padding, folded.output_padding) == ((4, 4), (1, 1), (0, 0))


def test_branches_whose_windows_differ_at_one_end() -> None:
    """A 3x3 with output padding beside a 4x4: one window holds both."""
    first = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1), nn.BatchNorm2d(4))
    second = nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4))
    fold_one(summed(first, second))


def test_branches_of_other_strides_stay_apart() -> None:
    """Their outputs are equally large at one size alone."""
    first, second = nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 4, 4, 3, 1, output_padding=0)
    model = trained(Block(lambda m, x: m.a(x)[:, :, :3, :3] + m.b(x)[:, :, :3, :3], a=first, b=second))
    x = image(1, 4, 4, 4)
    result = reparam.reparameterize(model, x)
    assert convs_ran(result, x) == 2
    assert distance(model, result, image(1, 4, 5, 3)) < EXACT


def test_concatenated_outputs() -> None:
    branches = [nn.ConvTranspose2d(4, 3, 2, 2), nn.Sequential(nn.ConvTranspose2d(4, 5, 2, 2), nn.BatchNorm2d(5))]
    fold_one(Block(lambda m, x: torch.cat([b(x) for b in m.branches], 1).relu(), branches=nn.ModuleList(branches)))


def test_a_pointwise_convolution_behind_where_it_pays() -> None:
    fold_one(nn.Sequential(nn.ConvTranspose2d(4, 16, 2, 2), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4)))
    wide = nn.Sequential(nn.ConvTranspose2d(64, 4, 2, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 128, 1))
    model, x = trained(wide), image(1, 64, 28, 20)
    assert convs_ran(reparam.reparameterize(model, x), x) == 2  # as one it would be sixteen times the work


def test_a_pointwise_convolution_in_front() -> None:
    fold_one(nn.Sequential(nn.Conv2d(4, 16, 1, bias=False), nn.ConvTranspose2d(16, 4, 3, 2, 1), nn.BatchNorm2d(4)))


def test_a_bias_in_front_stays() -> None:
    """The zeros that the stride inserts would become biases."""
    fold_one(nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3, 2), nn.BatchNorm2d(4)), norms=1)


def test_a_padded_convolution_behind_stays() -> None:
    layers = nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    fold_one(nn.Sequential(*layers), convs=2)


def test_a_strided_convolution_behind_stays() -> None:
    result = fold_one(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, 2)), convs=2)
    assert any("no layer has" in refusal.reason for refusal in result.reparam_report.refusals)


@pytest.mark.parametrize("crop", [slice(1, -1), slice(None, -1), slice(2, None), slice(3, -3)])
def test_a_crop_behind_becomes_padding(crop: slice) -> None:
    """Audio decoders crop their output, which padding of the layer does as well."""

    def forward(m: Block, x: Tensor) -> Tensor:
        return torch.relu(m.bn(m.up(x)[..., crop]) * m.gain)

    gain = torch.randn(4, 1)
    fold_one(Block(forward, up=nn.ConvTranspose1d(4, 4, 8, 4), bn=nn.BatchNorm1d(4), gain=gain), spatial=1)


def test_the_functional_form() -> None:
    def forward(m: Block, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, m.weight * m.gain, stride=(2, 3), padding=1, groups=2, dilation=(1, 2))
        return torch.relu(m.bn(y))

    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    fold_one(Block(forward, weight=weight, gain=torch.randn(4, 1, 1, 1), bn=nn.BatchNorm2d(6)))


@pytest.mark.parametrize("behind", ["norm", "crop", "sum"])
def test_output_size_is_kept(behind: str) -> None:
    """`output_size` is read at every call, also after folding."""

    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.up(x, output_size=(2 * x.shape[2], 2 * x.shape[3] - 1))
        y = m.bn(y[:, :, 1:] if behind == "crop" else y + m.other(x)[..., :-1] if behind == "sum" else y)
        return torch.relu(y)

    up, other = nn.ConvTranspose2d(4, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2)
    model = trained(Block(forward, up=up, other=other, bn=nn.BatchNorm2d(4)))
    images = list(accepted(model, 4, SIZES[2]))
    result = reparam.reparameterize(model, images[-1])
    assert norms_ran(result, images[-1]) == (1 if behind == "crop" else 0)
    for x in images:
        assert distance(model, result, x) < EXACT


def test_output_size_may_follow_another_tensor() -> None:
    """As the decoders of segmentation networks ask for it."""

    def forward(m: Block, x: Tensor) -> Tensor:
        y = torch.relu(m.down(x))
        return torch.relu(m.bn(m.up(y, output_size=x.shape[2:])) + x)

    up, down = nn.ConvTranspose2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
    fold_one(Block(forward, up=up, down=down, bn=nn.BatchNorm2d(4)), convs=2)


def test_as_a_user_calls_it_in_float32() -> None:
    model = trained(nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2), nn.BatchNorm2d(8)), dtype=torch.float32)
    x = image(2, 8, 9, 7, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    result = reparam.reparameterize(model.to(memory_format=torch.channels_last), x)
    assert result.reparam_report.verification.ok
    assert result[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_one_operation_runs() -> None:
    model = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4)))
    x = image(1, 4, 5, 5)
    counted = ran(reparam.reparameterize(model, x), x)
    assert set(counted) - {"detach", "alias", "linear"} == {"convolution"}


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("crop", [slice(None, -1), slice(1, None), slice(3, None), slice(None, -3), slice(4, -2)])
def test_a_crop_and_a_norm_behind_a_dilated_layer(dilation: int, crop: slice) -> None:
    """A layer that results has an `output_padding` that torch accepts."""

    def forward(m: Block, x: Tensor) -> Tensor:
        return torch.relu(m.bn(m.up(x)[..., crop]))

    up = nn.ConvTranspose1d(4, 4, 3, 2, 1, dilation=dilation, output_padding=1)
    model = trained(Block(forward, up=up, bn=nn.BatchNorm1d(4)))
    fold_exactly(model, *[image(2, 4, length) for length in (7, 5, 8)], convs=1)


def test_two_layers_that_stretch_different_axes_become_one() -> None:
    rows, columns = nn.ConvTranspose2d(4, 4, (2, 1), (2, 1), bias=False), nn.ConvTranspose2d(4, 4, (1, 3), (1, 3))
    result = fold_one(nn.Sequential(rows, columns))
    (folded,) = [module for module in result.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert (folded.stride, folded.kernel_size) == ((2, 3), (2, 3))
