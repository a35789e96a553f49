"""Whatever code a forward is made of, the folded model computes the same. Each case was once wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import reparam
from reparam.compare.error import relative_error
from reparam.nn import draw_constants, draw_statistics
from tests.helpers import EXACT, Block, distance, image, norms_ran, ran, trained, trained_and_converted


class _Dense(nn.Module):
    """A layer of a DenseNet takes all tensors so far in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 1)
        self.after = nn.BatchNorm2d(4)

    def forward(self, tensors: list[Tensor]) -> Tensor:
        return self.after(self.conv(self.norm(torch.cat(tensors, 1)).relu()))


class _DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _Dense()

    def forward(self, x: Tensor) -> Tensor:
        tensors = [F.max_pool2d(x, 2)]
        tensors.append(self.layer(tensors))
        return torch.cat(tensors, 1)


def test_a_list_of_one_tensor_is_not_that_tensor() -> None:
    # timm densenet121
    x = torch.randn(2, 3, 8, 8)
    assert norms_ran(trained_and_converted(_DenseBlock(), x), x) == 1  # the one before the activation


class _ReadFromOutside(nn.Module):
    """The weight of a convolution is computed at every access, and code around it uses it a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.conv(x), self.conv.weight, self.conv.bias)
        return y.relu() if y.shape[2] > 2 else y


def test_a_computed_weight_that_other_code_reads_stays() -> None:
    # Found by a random network: the module in place of the convolution had no weight.
    x = torch.randn(2, 4, 8, 8)
    folded = trained_and_converted(_ReadFromOutside(), x)
    assert folded(x[..., :2, :]).shape == (2, 4, 2, 8)
    assert any("reads the parameters" in line.reason for line in folded.reparam_report.refusals)


class _OthersWeight(nn.Module):
    """Uses the computed weight of a convolution for a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(self.conv(x), self.conv.weight * 0.5)


def test_one_computed_weight_of_two_folds() -> None:
    x = torch.randn(1, 1, 5)
    model = draw_statistics(draw_constants(_OthersWeight())).eval()
    folded = reparam.reparameterize(model, x, fixed_size=True)
    torch.testing.assert_close(folded(x), model(x))


def test_a_negative_padding_may_crop_all_channels() -> None:
    x = torch.randn(2, 3, 5)
    model = nn.Sequential(nn.Linear(5, 1), nn.ConstantPad1d((1, -1), 0.0), nn.Linear(1, 2))
    folded = trained_and_converted(model, x)
    torch.testing.assert_close(folded(x), model(x))


class _PoolsAndMixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 2, 1), nn.AvgPool2d(2, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pool(x), self.conv.weight)


class _TwiceAndDoubled(nn.Module):
    """Calls a block twice; a fold behind the second call has to write its code out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _PoolsAndMixes()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        once = self.block(x)
        twice = self.block(once)
        return twice + twice, twice, once


def test_a_block_that_is_called_twice_is_rewritten_for_both_calls() -> None:
    x = torch.randn(1, 2, 1, 1)
    model = _TwiceAndDoubled().eval()
    folded = reparam.reparameterize(model, x, verify=False)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


class _JoinsTwo(nn.Module):
    """A block of two arguments, and how it joins them."""

    def __init__(self, join: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.conv, self.norm = join, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.join(self, a, b)


@pytest.mark.parametrize(
    "join",
    [
        lambda m, a, b: m.norm(m.conv(a) + b),
        lambda m, a, b: m.norm(m.conv(a) + m.conv(b)),
        lambda m, a, b: m.norm(m.conv(a)) + b,
        lambda m, a, b: m.norm(a - b),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_block_is_given_two_tensors_once_and_one_twice(
    join: Callable[[nn.Module, Tensor, Tensor], Tensor], swapped: bool
) -> None:
    """In the second call both arguments are one tensor, and all of the block is one convolution of it."""

    def forward(m: Block, x: Tensor) -> Tensor:
        if swapped:
            y = m.block(x, x)
            return m.block(y, y.relu())
        y = m.block(x, x.relu())
        return m.block(y, y)

    model = trained(Block(forward, block=_JoinsTwo(join)))
    folded = reparam.reparameterize(model, image(2, 4, 5, 7), verify=False)
    for size in [(2, 4, 5, 7), (1, 4, 1, 1), (3, 4, 6, 2)]:
        assert distance(model, folded, image(*size)) < EXACT


class _Shifts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class _ShiftsTwice(nn.Module):
    """One fold removes the module of a shift, and another would write its code out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(4, 1, 1))
        self.inner = _Shifts()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner(x - self.mean)
        return self.head(y), y


def test_a_module_stays_where_its_code_is_written_out_elsewhere() -> None:
    x = torch.randn(2, 4, 5, 3)
    model = draw_statistics(draw_constants(_ShiftsTwice())).eval()
    folded = reparam.reparameterize(model, x, verify=False)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class _PassesThrough(nn.Module):
    """A container that does nothing, and a slice that takes everything."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[..., :]


class _TwoThatHandOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Sequential(nn.Identity(), nn.Identity())
        self.first, self.second = _PassesThrough(shared), _PassesThrough(shared)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def test_a_container_shared_by_two_blocks_keeps_what_either_needs() -> None:
    x = torch.randn(1, 2, 3)
    model = _TwoThatHandOn().eval()
    folded = reparam.reparameterize(model, x, verify=False)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


class _ReadsOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 4, 5)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.conv(x)


def test_an_argument_that_a_module_does_not_read_is_still_computed() -> None:
    # Tensors on the way to it must keep their size.
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.first(x)
        both = torch.stack([y, m.second(x)]).sum(0)
        return m.norm(both), m.inner(y, both)

    layers = {
        "first": nn.Conv1d(6, 6, 3, padding=2, dilation=2, stride=2),
        "second": nn.Conv1d(6, 6, 3, padding=1, stride=2),
        "norm": nn.BatchNorm1d(6),
        "inner": _ReadsOne(),
    }
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 6, 9), verify=False)
    for x in (image(1, 6, 9), image(2, 6, 12)):
        for result, truth in zip(folded(x), model(x), strict=True):
            assert relative_error(truth, result) < EXACT


def constant_index(m: nn.Module, x: Tensor) -> Tensor:
    y = x.index_select(1, torch.tensor([2, 0, 3, 1]))
    return (m.first(y) + m.second(y)).relu()


def unpacked(m: nn.Module, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    both = torch.cat([b, a], 1)
    return (m.first(both) + m.second(both)).relu()


def unread(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    y += m.second(x)
    y.transpose(1, 2)
    return y * 2


@pytest.mark.parametrize("function", [constant_index, unpacked, unread])
def test_code_beside_a_fold_stays(function: Callable[[Any, Tensor], Any]) -> None:
    model = trained(Block(function, first=nn.Conv2d(4, 4, 1), second=nn.Conv2d(4, 4, 3, padding=1)))
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    assert distance(model, folded, image(3, 4, 6, 5)) < EXACT
    assert ran(folded, image(3, 4, 6, 5))["convolution"] == 1
    assert distance(model, copy.deepcopy(folded), image(1, 4, 3, 3)) < EXACT


class TwoArguments(nn.Module):
    """A block that does not read its second argument."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 0.5


def test_a_module_called_with_two_arguments_is_no_layer() -> None:
    model = trained(Block(lambda m, x: m.conv(m.block(x, x)).relu(), block=TwoArguments(), conv=nn.Conv2d(4, 6, 3)))
    assert distance(model, reparam.reparameterize(model, image(2, 4, 8, 9)), image(3, 4, 7, 5)) < EXACT


@pytest.mark.parametrize("others", [{}, {"conv": nn.Conv2d(4, 4, 1)}])
def test_a_model_without_weights_gets_weights_of_its_inputs_dtype(others: dict[str, nn.Module]) -> None:
    model = Block(lambda m, x: torch.stack([x, x.index_select(1, torch.arange(4))]).mean(0).relu(), **others).eval()
    folded = reparam.reparameterize(model, image(2, 4, 5, 3))
    assert distance(model, folded, image(1, 4, 3, 3)) < EXACT


@pytest.mark.parametrize("computed", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weight_norm_goes_with_its_hook(computed: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(nn.Sequential(computed(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")), nn.ReLU()))
    folded = reparam.reparameterize(model, image(2, 4, 7, 9))
    assert distance(model, folded, image(3, 4, 6, 5)) < EXACT
