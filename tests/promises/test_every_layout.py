"""Whatever order of memory the input has, the result is the same, and code that takes views finds what it relies on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, distance, image, norms_ran, trained, trained_and_converted


class _Windows(nn.Module):
    """Attention in windows: the copy in the middle is what makes the last view possible."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).permute(0, 2, 3, 1)
        windows = y.view(-1, 2, 4, 2, 4, 4).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 4)
        return (windows * self.scale).softmax(1)


class _Strided(nn.Module):
    """A copy before a convolution decides the strides of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x.relu().permute(0, 3, 1, 2).contiguous()))
        return y.view(-1, 4, 64).softmax(1)


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2).contiguous().view(-1, 4)  # a 4 that is 3 before the conv
        return self.norm(self.head(y)).relu()


class _Flattened(nn.Module):
    """A view in front of everything that folds."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(x.relu().view(-1, 4))).relu()


@pytest.mark.parametrize(
    ("model", "shape"),
    [(_Flattened(), (2, 8, 4)), (_Windows(), (2, 3, 8, 8)), (_Strided(), (2, 8, 8, 8)), (_Pooled(), (2, 3, 8, 8))],
)
def test_a_copy_is_kept_where_a_later_view_needs_it(model: nn.Module, shape: tuple[int, ...]) -> None:
    # timm maxvit_pico_rw_256
    x = torch.randn(shape)
    assert norms_ran(trained_and_converted(model, x), x) == 0


@pytest.mark.parametrize("size", [(5, 6), (1, 5)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(x.contiguous() * 2).view(len(x), -1),
        lambda m, x: m.conv((x * 2).contiguous()).view(len(x), -1),
        lambda m, x: m.conv((x * 2).clone(memory_format=torch.contiguous_format)).view(len(x), -1),
        lambda m, x: m.conv(m.norm(x).contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).view(-1, 4),
    ],
)
def test_contiguous_is_kept_where_a_later_view_needs_it(
    forward: Callable[[nn.Module, Tensor], Tensor], order: torch.memory_format, size: tuple[int, int]
) -> None:
    model = trained(Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
    folded = reparam.reparameterize(model, image(2, 4, *size).contiguous(memory_format=order), verify=False)
    for other in (torch.contiguous_format, torch.channels_last):
        assert distance(model, folded, image(2, 4, *size).contiguous(memory_format=other)) < EXACT


@pytest.mark.parametrize("size", [(5, 6), (1, 1), (5, 1)])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(x.contiguous() + m.norm(x).contiguous()).view(len(x), -1),
        lambda m, x: m.norm(m.conv(x.relu().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))).view(len(x), -1),
        lambda m, x: m.last((m.wide(x) * m.norm.weight.view(-1, 1, 1)).flatten(2).transpose(1, 2)).view(len(x), -1),
        lambda m, x: (F.conv2d(x.relu(), m.conv.weight).contiguous() * m.norm.weight.view(-1, 1, 1)).view(len(x), -1),
    ],
)
def test_contiguous_is_kept_where_it_was_a_no_op_on_the_example(
    forward: Callable[[nn.Module, Tensor], Tensor], size: tuple[int, int]
) -> None:
    layers = {"conv": nn.Conv2d(4, 4, 1), "wide": nn.Conv2d(4, 4, 3, padding=1), "last": nn.Linear(4, 4)}
    model = trained(Block(forward, norm=nn.BatchNorm2d(4), **layers))
    folded = reparam.reparameterize(model, image(2, 4, *size), verify=False)
    for order in (torch.contiguous_format, torch.channels_last):
        for other in (size, (3, 4), (4, 1), (1, 1)):
            x = image(2, 4, *other).contiguous(memory_format=order)
            assert distance(model, folded, x) < EXACT


class _Adds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


@pytest.mark.parametrize("same", [False, True])
def test_contiguous_may_copy_at_other_inputs_so_a_write_behind_it_is_no_write_to_its_input(same: bool) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = m.adds(y.contiguous())
        return m.norm(z if same else y)

    model = trained(Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4), adds=_Adds()))
    folded = reparam.reparameterize(model, image(2, 4, 5, 6), verify=False)
    assert not folded.reparam_report.folds
    for order in (torch.contiguous_format, torch.channels_last):
        assert distance(model, folded, image(2, 4, 3, 7).contiguous(memory_format=order)) < EXACT


def test_a_view_behind_a_convolution_of_one_channel() -> None:
    # Strides do not tell whether one channel is in channels-last format, so torch guesses.
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        moved = m.norm(m.first(x)).movedim(1, -1)
        return m.second(moved * 0.5 + moved).view(len(x), -1)

    layers = {"first": nn.Conv1d(4, 4, 1), "norm": nn.BatchNorm1d(4), "second": nn.Conv1d(1, 2, 1)}
    model = trained(Block(forward, **layers))
    x = torch.stack([image(3, 4, 1), image(3, 4, 1)], -1)[..., 0]
    assert distance(model, reparam.reparameterize(model, x, verify=False), x) < EXACT


def test_a_view_behind_a_transposed_single_channel() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.second(m.linear(m.first(x)).transpose(1, 2))
        return y.view(len(y), -1)

    layers = {"first": nn.Conv1d(1, 3, 1), "linear": nn.Linear(1, 4), "second": nn.Conv1d(4, 3, 1)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 1, 1), verify=False)
    assert distance(model, folded, image(2, 1, 1)) < EXACT
    assert distance(model, folded, image(1, 1, 1)) < EXACT


def scaled_rows(m: nn.Module, x: Tensor) -> Tensor:
    y = (x.transpose(2, 3) * m.scale + m.shift) * m.scale + 1
    return y.transpose(2, 3).view(-1)


def viewed_behind_a_layer(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mix(x.transpose(2, 3)).view(len(x), 4, -1)
    return m.last(y.transpose(1, 2))


def viewed_between_layers(m: nn.Module, x: Tensor) -> Tensor:
    return m.last(m.last(x.permute(0, 2, 3, 1)).view(-1, 4))


def pooled_and_viewed(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mix(x)
    a, b = m.pool(m.mix_again(y)), m.mix(y)
    a.view(-1).add_(1)
    return torch.cat([a.flatten(), b.flatten()])


def viewed_in_rows(m: nn.Module, x: Tensor) -> Tensor:
    return m.last(m.mix(x).permute(0, 2, 3, 1)).view(-1)


def put_in_order(m: nn.Module, x: Tensor) -> Tensor:
    return m.mix(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)).contiguous().view(-1)


_ORDERED = [scaled_rows, viewed_behind_a_layer, viewed_between_layers, viewed_in_rows, put_in_order]


_FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize(
    ("function", "memory_format"),
    [(pooled_and_viewed, torch.contiguous_format), *((each, form) for each in _ORDERED for form in _FORMATS)],
)
def test_views_find_the_strides_that_they_need(
    function: Callable[[Any, Tensor], Any], memory_format: torch.memory_format
) -> None:
    members = {"mix": nn.Conv2d(4, 4, 1), "mix_again": nn.Conv2d(4, 4, 1, bias=False), "last": nn.Linear(4, 4)}
    numbers = {"scale": torch.rand(4, 1, 1) + 0.5, "shift": torch.randn(4, 1, 1)}
    model = trained(Block(function, pool=nn.AvgPool2d(3, 2, 1), **members, **numbers))
    model = model.to(memory_format=memory_format)
    folded = reparam.reparameterize(model, image(2, 4, 6, 5))
    for shape in ((2, 4, 6, 5), (1, 4, 7, 3), (3, 4, 2, 2)):
        assert distance(model, folded, image(*shape)) < EXACT


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("last", [False, True])
def test_new_weights_have_plain_strides(channels: int, last: bool) -> None:
    conv, after = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 4, (1, 3))
    form = torch.channels_last if last else torch.contiguous_format
    model = trained(nn.Sequential(conv, after, nn.ReLU())).to(memory_format=form)
    weight = reparam.reparameterize(model, image(2, channels, 5, 9))[0].weight
    assert weight.shape == (4, channels, 1, 3)
    assert weight.stride() == torch.empty_like(weight, memory_format=form).stride()
    model = trained(nn.Sequential(nn.Conv1d(4, 4, 1), nn.AvgPool1d(3, 2, 1)))
    assert reparam.reparameterize(model, image(2, 4, 9))[0].weight.is_contiguous()
