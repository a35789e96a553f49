"""Nothing more runs than before, and nothing that could fold is left without a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import (
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
    summed,
    trained,
    trained_and_converted,
)


class _Bordered(nn.Module):
    """The padding stays, because its input has a bias; everything behind it still folds."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 2)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.before(x.relu()), (0, 1, 0, 1))
        return torch.cat([self.bn(self.conv(x)).relu(), F.max_pool2d(x, 2, 1)], 1)


class _Qkv(nn.Module):
    """One convolution for all three, as in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(8, 12, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.bn(self.qkv(x.relu())).split([4, 4, 4], 1)
        return q.sigmoid() * k.tanh() + v.relu()


class _Mixed(nn.Module):
    """A batch norm behind a concatenation folds into the 1x1 convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.tall, self.wide = (nn.Conv2d(2, 2, (11, 1), padding=(5, 0)), nn.Conv2d(2, 2, (1, 11), padding=(0, 5)))
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, a, b = x.relu().split([4, 2, 2], 1)
        return self.fc(self.norm(torch.cat([kept, self.tall(a), self.wide(b)], 1))).relu()


@pytest.mark.parametrize(("model", "channels", "norms"), [(_Bordered(), 4, 1), (_Qkv(), 8, 0), (_Mixed(), 8, 0)])
def test_no_batch_norm_is_left_that_could_fold(model: nn.Module, channels: int, norms: int) -> None:
    # timm hgnetv2_b0, shvit_s1, inception_next_atto
    x = torch.randn(2, channels, 16, 16)
    assert norms_ran(trained_and_converted(model, x), x) == norms


def test_multiply_adds_behind_a_mean_are_not_counted_per_pixel() -> None:
    # timm swiftformer_xs: the report said twice as many multiply-adds as before
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    folded = trained_and_converted(model, torch.randn(2, 4, 8, 8))
    assert folded.reparam_report.after.macs == folded.reparam_report.before.macs == 2 * 4 * 10


class _ReturnsMore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        z = F.conv2d(y, self.second.weight - 0.5)
        return 2 * z, z


class _TakesOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = _ReturnsMore()

    def forward(self, x: Tensor) -> Tensor:
        doubled, _ = self.block(x)
        return doubled.relu()


def test_a_tensor_that_is_also_returned_is_not_computed_twice() -> None:
    # Found by a random network: the convolution was folded, and ran a second time for the other output.
    x = torch.randn(2, 4, 8, 8)
    model = _TakesOne()
    folded = trained_and_converted(model, x)
    assert convs_ran(folded, x) <= convs_ran(model, x)
    assert any("also returns it" in line.reason for line in folded.reparam_report.refusals)


class _ReturnsBetween(nn.Module):
    """Returns the tensor between two layers as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bn(self.first(x) - self.second(x))
        return self.last(y).relu(), y


def test_a_returned_tensor_may_be_the_output_of_a_fold() -> None:
    x = torch.randn(2, 4, 8, 8)
    folded = trained_and_converted(_ReturnsBetween(), x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (2, 0)


class _Undecided(nn.Module):
    """Passes a tensor from one part to the next in code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) if bool(x.isfinite().all()) else x


def test_parts_fold_one_by_one_where_they_cannot_fold_together() -> None:
    # transformers mobilevitv2: a projection of one stage and the expansion of the next were refused together, and the
    # batch norm of the expansion was left.
    x = torch.randn(2, 4, 7, 9)
    folded = trained_and_converted(_Undecided(), x)
    assert norms_ran(folded, x) == 0
    assert convs_ran(folded, x) == 1


@pytest.mark.parametrize("dilation", [2, 24])
def test_a_dilated_kernel_is_not_made_dense(dilation: int) -> None:
    """Folding a norm into a dilated convolution never makes its kernel dense."""
    model = trained(seq(conv(4, 4, 3, padding=dilation, dilation=dilation), bn()))
    folded = converted(model, image(1, 4, 30, 27))
    assert [tuple(layer.weight.shape[2:]) for layer in plain_convs(folded)] == [(3, 3)]
    assert folded[0].dilation == (dilation, dilation)


def test_dilated_branches_become_one_dilated_kernel() -> None:
    branches = [seq(conv(4, 4, 3, padding=d, dilation=d), bn()) for d in (2, 4)]
    wide = conv(4, 4, 5, padding=4, dilation=2)
    folded = converted(trained(summed(*branches, wide, seq(conv(4, 4, 1), bn()))), image(1, 4, 15, 12))
    assert [(tuple(layer.weight.shape[2:]), layer.dilation) for layer in plain_convs(folded)] == [((5, 5), (2, 2))]


def test_a_network_of_one_norm_is_converted() -> None:
    """Some tools silently skip models of fewer than ten norms."""
    model = trained(seq(conv(4, 4, 3), bn()))
    assert len(converted(model, image(1, 4, 5, 5)).reparam_report.folds) == 1


def _attention_scores(m: nn.Module, x: Tensor) -> Tensor:
    return (x.amax(1, keepdim=True).expand(-1, 4, -1, -1).relu() / 8 + m.shift).sigmoid()


def _norms_in_a_row(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.second(m.first(x.relu())))


@pytest.mark.parametrize("forward", [_attention_scores, _norms_in_a_row], ids=["scores", "norms"])
def test_scales_and_shifts_alone_stay_elementwise(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """A depthwise 1x1 convolution takes several times as long as two of them."""
    shift, norms = nn.Parameter(torch.ones(1, 4, 1, 1)), [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    model = trained(Block(forward, shift=shift, first=norms[0], second=norms[1]))
    folded = reparam.reparameterize(model, image(2, 4, 5, 7))
    assert convs_ran(folded, image(2, 4, 5, 7)) == 0
    assert distance(model, folded, image(2, 4, 3, 1)) == 0
